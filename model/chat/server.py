"""Answers from a server that speaks OpenAI's chat completions protocol, as they are written."""

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any

from PIL import Image

from model.chat.config import ChatConfig
from model.json_values import JsonObject, parse_json
from model.run.printable import printable

_PATIENCE_S = 300.0  # until the next piece of an answer; a queue of other requests may be before it
_MOST_BYTES = 1 << 20  # read from an answer that is no stream: a list of models, an error


class Server:
    """The server at `config.endpoint`, and the model that it serves."""

    def __init__(self, config: ChatConfig) -> None:
        """`ValueError` where no server of the protocol answers."""
        self._config = config
        self._address = config.endpoint.rstrip("/")
        with self._ask("models", None) as reply:
            found = _parsed(reply.read(_MOST_BYTES))
        try:
            self._model = str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"endpoint: expected a list of models at {self._address}/models, found {printable(str(found), 200)}"
            ) from None

    def answer(self, messages: Sequence[JsonObject]) -> Iterator[str]:
        """Yield pieces of the answer to a conversation. `ValueError` for one that the server refuses, or breaks off."""
        config = self._config
        payload: JsonObject = {
            "model": self._model,
            "messages": [_message(message) for message in messages],
            "temperature": config.temperature,
            "max_tokens": config.max_completion_tokens,
            "seed": config.seed,
            "stream": True,
            "chat_template_kwargs": {"thinking": config.mode.template_value},
        }
        with self._ask("chat/completions", payload) as reply:
            try:
                for line in reply:
                    name, _, data = line.decode(errors="replace").strip().partition(":")
                    if name != "data":
                        continue
                    if data.strip() == "[DONE]":
                        return
                    yield self._piece(_parsed(data.strip().encode()))
            except (OSError, HTTPException) as error:
                raise ValueError(f"endpoint: {self._address} broke its answer off: {printable(str(error))}") from None
        raise ValueError(f"endpoint: {self._address} broke its answer off before its end")

    def _piece(self, event: Any) -> str:
        try:
            choices = event["choices"]
            return str(choices[0]["delta"].get("content") or "") if choices else ""
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"endpoint: {self._address} answered: {printable(str(event), 400)}") from None

    def _ask(self, path: str, payload: JsonObject | None) -> Any:
        """The reply, still to be read. `ValueError` says what the server says, without the key."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._config.api_key_env, "").strip() if self._config.api_key_env else "":
            if not key.isascii() or not key.isprintable():
                raise ValueError(f"{self._config.api_key_env}: expected a key of printable ASCII, found other letters")
            headers["Authorization"] = f"Bearer {key}"
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(f"{self._address}/{path}", body, headers)
        try:
            return urllib.request.build_opener(_StayHere).open(request, timeout=_PATIENCE_S)
        except urllib.error.HTTPError as error:
            with error:
                said = printable(error.read(_MOST_BYTES).decode(errors="replace"), 400)
            raise ValueError(f"endpoint: {self._address} answered with status {error.code}: {said}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(
                f"endpoint: expected a server at {self._address}, found: {printable(str(reason))}; start one with "
                "python -m rlhf.serve checkpoint=DIR, and wait until it has loaded the model"
            ) from None


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would carry the key to another address; its status is told instead."""

    def redirect_request(self, *_: object) -> None:
        return None


def _parsed(body: bytes) -> Any:
    try:
        return parse_json(body)
    except ValueError:
        raise ValueError(f"endpoint: expected JSON, found {printable(body.decode(errors='replace'), 200)}") from None


def _message(message: JsonObject) -> JsonObject:
    """A message with its images as data: addresses."""
    if isinstance(message["content"], str):
        return message
    parts = [
        {"type": "image_url", "image_url": {"url": _address_of(part["image"])}} if part["type"] == "image" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def _address_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
