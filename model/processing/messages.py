"""Messages that somebody else wrote, checked and taken apart. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from model.data.media import Picture, open_image, open_image_bytes
from model.data.raw_rows import from_base64
from model.interface import DEFAULT_SYSTEM_TEXT
from model.json_values import JsonObject

ROLES = ("system", "user", "assistant")
DEFAULT_NUM_FRAMES = 16
MAX_NUM_FRAMES = 1024

ImageSource = str | Image.Image | Picture
"""A file name under the root folder of the data, an image in memory, or one that is opened where it is needed."""


@dataclass(frozen=True)
class Media:
    """An image, or a video of which `num_frames` frames are shown."""

    source: ImageSource
    num_frames: int = 0  # 0: a still image


@dataclass(frozen=True)
class Turn:
    role: str
    parts: list[str | Media]


def read_turns(messages: Sequence[object]) -> list[Turn]:
    """Turns of a conversation, the default system text first where there is none. `ValueError` names what is wrong."""
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not turns or turns[0].role != "system":
        turns.insert(0, Turn("system", [DEFAULT_SYSTEM_TEXT]))
    return turns


def require_last_role(messages: Sequence[object], role: str) -> None:
    """`ValueError` unless the last message has this role."""
    objects = [_object(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not objects or objects[-1].get("role") != role:
        wanted = {"user": "a user", "assistant": "an assistant"}[role]
        raise ValueError(f"messages: expected a list that ends with {wanted} message")


def with_open_images(messages: Sequence[object]) -> list[Any]:
    """The messages of a caller who may read any file: image files, relative to the working directory, are opened.

    Messages from data keep their file names, and `root` says which folder these may be in.
    """
    return [
        {**message, "content": [_opened(part, f"messages[{index}].content") for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for index, message in enumerate(messages)
    ]


def texts_of(messages: Sequence[object]) -> list[str]:
    """All text of these messages, as far as they have any."""
    found: list[str] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        found += [
            text for part in parts if isinstance(text := part.get("text") if isinstance(part, dict) else part, str)
        ]
    return found


def _turn(given: object, where: str) -> Turn:
    message = _object(given, where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}.role: expected system, user or assistant, found {shown(role)}")
    if isinstance(content, str):
        return Turn(role, [content])
    if not isinstance(content, list):
        raise ValueError(f"{where}.content: expected text or a list of parts, found {shown(content)}")
    parts = [_part(part, f"{where}.content") for part in content]
    if role == "assistant" and any(isinstance(part, Media) for part in parts):
        raise ValueError(f"{where}.content: expected an assistant to write text, found an image or a video")
    return Turn(role, parts)


def _part(part: object, where: str) -> str | Media:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image", "image": given} | {"type": "image", "url": given} | {"type": "image", "path": given}:
            return Media(_source_of(given, where))
        case {"type": "image_url", "image_url": {"url": str(given)} | str(given)}:
            return Media(_source_of(given, where))
        case {"type": "video", "video": str(name), **rest}:
            num_frames = rest.get("num_frames", DEFAULT_NUM_FRAMES)
            if type(num_frames) is not int or not 1 <= num_frames <= MAX_NUM_FRAMES:
                raise ValueError(f"{where}: num_frames: expected 1 to {MAX_NUM_FRAMES}, found {shown(num_frames)}")
            return Media(name, num_frames)
    raise ValueError(f"{where}: expected parts of type text, image, image_url or video, found {shown(part)}")


def _source_of(given: object, where: str) -> ImageSource:
    """The image that a part has: a file name, or an image in memory. `ValueError` for what is neither.

    Addresses of the Web are refused, because data must not make a training run ask other hosts.
    """
    if isinstance(given, Image.Image | Picture):
        return given
    if isinstance(given, np.ndarray):
        return _from_array(given, where)
    if not isinstance(given, str):
        raise ValueError(
            f"{where}: image: expected a file name, a data: address, a PIL image or an array of uint8, found "
            f"{shown(given)}"
        )
    if given.startswith("data:"):
        return open_image_bytes(from_base64(given))
    if given.startswith("file:"):
        return unquote(urlsplit(given).path)
    if given.startswith(("http:", "https:")):
        raise ValueError(
            f"{where}: image: expected a file name or a data: address, found {given[:80]!r}; nothing is downloaded "
            "here: fetch the image first, and give its file, its bytes as a data: address, or a PIL image"
        )
    return given


def _from_array(array: np.ndarray, where: str) -> Image.Image:
    is_grey, is_coloured = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (is_grey or is_coloured) or not array.size:
        raise ValueError(
            f"{where}: image: expected an array of uint8 of the shape [height, width] or [height, width, 3 or 4], "
            f"found {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array)


def _opened(part: object, where: str) -> object:
    read = _part(part, where)
    if isinstance(read, str) or read.num_frames:
        return part
    source = read.source
    if isinstance(source, str):
        path = Path(source).expanduser()
        source = open_image(path.parent, path.name)
    return {"type": "image", "image": source}


def shown(value: object) -> str:
    """A short text for an error message, which never has the content of an array, an image or a long list."""
    match value:
        case str():
            return repr(value if len(value) <= 60 else f"{value[:60]}...")
        case dict():
            return f"{{{', '.join(f'{str(key)[:20]!r}: {shown(one)}' for key, one in list(value.items())[:5])}}}"
        case None | bool() | int() | float():
            return f"{value!r:.80}"
        case np.ndarray():
            return f"array of {value.dtype} {list(value.shape)}"
        case list() | tuple() | set():
            return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _object(message: object, where: str) -> JsonObject:
    if not isinstance(message, dict):
        raise ValueError(f"{where}: expected an object with role and content, found {shown(message)}")
    return message
