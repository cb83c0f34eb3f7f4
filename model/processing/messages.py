"""Messages that somebody else wrote, checked and taken apart. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from model.interface import DEFAULT_SYSTEM_TEXT
from model.json_values import JsonObject

ROLES = ("system", "user", "assistant")
DEFAULT_NUM_FRAMES = 16
MAX_NUM_FRAMES = 1024

ImageSource = str | Image.Image
"""A file name under the root folder of the data, or an image in memory."""


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
        raise ValueError(f"{where}.role: expected system, user or assistant, found {role!r:.80}")
    if isinstance(content, str):
        return Turn(role, [content])
    if not isinstance(content, list):
        raise ValueError(f"{where}.content: expected text or a list of parts, found {content!r:.80}")
    parts = [_part(part, f"{where}.content") for part in content]
    if role == "assistant" and any(isinstance(part, Media) for part in parts):
        raise ValueError(f"{where}.content: expected an assistant to write text, found an image or a video")
    return Turn(role, parts)


def _part(part: object, where: str) -> str | Media:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image", "image": str() | Image.Image() as source}:
            return Media(source)
        case {"type": "video", "video": str(name), **rest}:
            num_frames = rest.get("num_frames", DEFAULT_NUM_FRAMES)
            if type(num_frames) is not int or not 1 <= num_frames <= MAX_NUM_FRAMES:
                raise ValueError(f"{where}: num_frames: expected 1 to {MAX_NUM_FRAMES}, found {num_frames!r:.80}")
            return Media(name, num_frames)
    raise ValueError(f"{where}: expected parts of type text, image or video, found {part!r:.200}")


def _object(message: object, where: str) -> JsonObject:
    if not isinstance(message, dict):
        raise ValueError(f"{where}: expected an object with role and content, found {message!r:.80}")
    return message
