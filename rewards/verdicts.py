"""Questions of yes or no to a language model at an endpoint, about data that it must not obey.

What is judged stands between two lines that carry a random marker, and the reply must carry it too. A reply without
it, off the schema, or with anything but true and false is no verdict, and is asked for again.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from rewards.chat_endpoint import JudgeError, ask, keep_reply, kept_reply
from rewards.endpoint import Endpoint
from rewards.measured import measure
from rewards.verifiers.verifier import parse_json

Content = list[dict[str, object]]


def verdicts(
    endpoint: Endpoint, instructions: str, names: Sequence[str], content: Callable[[str], Content]
) -> dict[str, bool]:
    """Return what the endpoint, or the folder of its earlier replies, says to each name.

    `instructions` hold `{marker}` where the marker is to stand; `content` makes the user's message of a marker.
    `JudgeError` when no verdict comes. Measures `cached`, 1 or 0 for every verdict, and of those that were asked for
    `seconds` until they came or failed, the waits for `requests_per_minute` included, and `failed`, 1 or 0.
    """
    marker = secrets.token_hex(8)
    asked = content(marker)
    said = json.dumps([endpoint.base_url, endpoint.model, list(names), instructions, asked]).replace(marker, "")
    key = hashlib.sha256(said.encode()).hexdigest()
    kept = kept_reply(endpoint.cache, key)
    if kept is not None and all(type(kept.get(name)) is bool for name in names):
        measure("cached", 1.0)
        return {name: kept[name] for name in names}
    measure("cached", 0.0)
    payload = {
        "model": endpoint.model,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": instructions.replace("{marker}", marker)},
            {"role": "user", "content": asked},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": _schema(names)},
        },
    }
    began, failed = time.monotonic(), 1.0
    try:
        found = ask(endpoint, payload, lambda text: _read(text, marker, names))
        failed = 0.0
    finally:
        measure("seconds", time.monotonic() - began)
        measure("failed", failed)
    keep_reply(endpoint.cache, key, found)
    return found


def _schema(names: Sequence[str]) -> Mapping[str, object]:
    return {
        "type": "object",
        "properties": {"marker": {"type": "string"}, **{name: {"type": "boolean"} for name in names}},
        "required": ["marker", *names],
        "additionalProperties": False,
    }


def _read(text: str, marker: str, names: Sequence[str]) -> dict[str, bool]:
    """Return the verdicts of a reply. `JudgeError` unless it keeps the schema and carries this request's marker."""
    try:
        verdict = parse_json(text)
    except ValueError:
        raise JudgeError("expected one JSON verdict in the reply, found something else") from None
    if not isinstance(verdict, dict) or set(verdict) != {"marker", *names} or verdict["marker"] != marker:
        raise JudgeError(f"expected a verdict with the request's marker and {', '.join(names)}, found another")
    if not all(isinstance(verdict[name], bool) for name in names):
        raise JudgeError("expected true or false for every check, found something else")
    return {name: verdict[name] for name in names}
