"""A question to a language model at an endpoint that speaks OpenAI's chat completions protocol, asked until it answers.

Replies are kept by a key in a folder, so that the same question is not asked twice.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError

from rewards.endpoint import Endpoint
from rewards.http_post import post
from rewards.verifiers.verifier import parse_json

Reply = TypeVar("Reply")
_MAX_REPLY_BYTES = 1 << 20
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)


class JudgeError(RuntimeError):
    """The judge gave no usable verdict."""


def ask(endpoint: Endpoint, payload: Mapping[str, object], read: Callable[[str], Reply]) -> Reply:
    """Return what `read` makes of the text of the reply; it raises `JudgeError` for one that is not as asked.

    Asks again after failures that may pass; the waits double, with jitter. `JudgeError` once `endpoint.retries` are
    used up.
    """
    endpoint.key()
    problem = ""
    for attempt in range(endpoint.retries + 1):
        if attempt:
            print(
                f"no verdict from {endpoint.base_url}: {endpoint.without_key(problem)}; request {attempt + 1} follows",
                file=sys.stderr,
            )
            time.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
        if not endpoint.limiter.take(endpoint.max_requests):
            raise JudgeError(
                f"judge {endpoint.model}: the budget of {endpoint.max_requests} requests of this scorer process is "
                "spent; raise max_requests, or start again to spend as many more"
            )
        endpoint.limiter.wait(endpoint.requests_per_minute)
        try:
            return read(_text_of(_post(endpoint, payload)))
        except HTTPError as error:
            problem = f"HTTP status {error.code}"
            if error.code not in _TRANSIENT:
                break
        except (OSError, HTTPException, ValueError, JudgeError) as error:
            problem = f"{type(error).__name__}: {error}"
    raise JudgeError(
        endpoint.without_key(f"judge {endpoint.model}: no verdict after {attempt + 1} requests: {problem}")
    )


def _post(endpoint: Endpoint, payload: Mapping[str, object]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key := endpoint.key():
        headers["Authorization"] = f"Bearer {key}"
    url = endpoint.base_url.rstrip("/") + "/chat/completions"
    return post(url, json.dumps(payload).encode(), headers, endpoint.request_seconds, _MAX_REPLY_BYTES)


def _text_of(body: bytes) -> str:
    """Return the text of a reply. `JudgeError` where it is none of the protocol's."""
    try:
        reply: Any = parse_json(body.decode())
        text = reply["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise JudgeError("expected one JSON verdict in the reply, found something else")
    return text


def kept_reply(folder: str, key: str) -> dict[str, Any] | None:
    """Return the reply that is kept under a key, None where none is, or where its file is torn or another program's."""
    file = Path(folder) / f"{key}.json"
    if not folder or not file.is_file():
        return None
    try:
        reply: Any = parse_json(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return reply if isinstance(reply, dict) else None


def keep_reply(folder: str, key: str, reply: Mapping[str, object]) -> None:
    """Keep a reply, so that a reader finds all of it or nothing. An empty `folder` keeps none."""
    if not folder:
        return
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    scratch = place / f".{key}.{os.getpid()}.{threading.get_ident()}"
    scratch.write_text(json.dumps(reply), encoding="utf-8")
    scratch.replace(place / f"{key}.json")
