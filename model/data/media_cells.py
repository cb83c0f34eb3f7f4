"""Where the images and videos of a row stand in its messages."""

import re
from collections.abc import Iterator, Mapping, Sequence

from model.data.raw_rows import from_base64
from model.json_values import JsonObject

Message = JsonObject
MediaSource = str | bytes
"""A file name under the data's folder, or an image's bytes."""
Sources = Mapping[str, Sequence[MediaSource]]
"""Kind of media, image or video -> what the row's columns hold of it, in order."""
VIDEO_COLUMNS = ("videos", "video")
_OTHER_COLUMNS = ("audios", "audio")
_PLACE = re.compile(r"<(image|video)>\n?")  # the template puts a line break behind every image itself
_LONGEST_NAME = 64
"""A longer text without a dot is no file name but base64: its alphabet has no dot."""


def sources_of(columns: Mapping[str, object], images: object) -> Sources:
    """The media of a row whose image column holds `images`. `ValueError` for media that the model does not take."""
    for name in _OTHER_COLUMNS:
        if columns.get(name):
            raise ValueError(f"{name}: expected images and videos only, found sound, which the model does not hear")
    videos = next((columns[name] for name in VIDEO_COLUMNS if columns.get(name) is not None), None)
    return {"image": image_sources(images), "video": [_video(value) for value in _listed(videos)]}


def image_sources(images: object) -> list[MediaSource]:
    """An image cell, or a list of them."""
    return [image_source(value) for value in _listed(images)]


def image_source(value: object) -> MediaSource:
    """An image cell: a file name, bytes, base64, or the struct of `datasets`, whose bytes count before its path."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"image: expected a file name, bytes or base64, found {value!r:.80}")
    if value.startswith(("http:", "https:")):
        raise ValueError(
            f"image: expected a file name, bytes or base64, found {value[:80]!r}; nothing is downloaded during a run: "
            "fetch the images first, and name their files"
        )
    is_encoded = value.startswith("data:image/") or (len(value) > _LONGEST_NAME and "." not in value)
    return from_base64(value) if is_encoded else value


def _listed(cell: object) -> list[object]:
    if cell is None or (isinstance(cell, str | bytes | list | dict) and not cell):
        return []
    return cell if isinstance(cell, list) else [cell]


def _video(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("path") or value.get("video")
    if not isinstance(value, str) or not value or value.startswith("data:"):
        raise ValueError(f"video: expected the name of a file beside the data, found {value!r:.80}")
    return value


def placed(column: str, question: object, sources: Sources, first: bool = False) -> tuple[list[Message], set[str]]:
    """(messages with a source behind every image and video part, the kinds of `sources` that are among them).

    `<image>` and `<video>` in a user's text are places where the row has such a column; without any place, media come
    before the last user's text, or the first one's. Rows of `messages` that place media themselves keep theirs.
    """
    if isinstance(question, str) and column != "messages":
        question = [{"role": "user", "content": question}]
    if not isinstance(question, list):
        if not column:
            raise ValueError("messages: expected list, found None; nor is there a column question, problem, prompt")
        kind = "list" if column == "messages" else "text or list"
        raise ValueError(f"{column}: expected {kind}, found {question!r:.80}")
    # In messages without a column of that kind, the text is all there is, and `<image>` is text.
    places = {kind for kind in sources if sources[kind] or column != "messages"}
    messages: list[Message] = [dict(m) if isinstance(m, dict) else m for m in question]
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), str | list):
            message["content"] = _content(message, places)
    used = {kind for kind in sources if _fill(messages, kind, sources[kind], first)}
    return messages, used


def media_parts(messages: Sequence[object]) -> Iterator[Message]:
    """All parts of messages that are objects, in order."""
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            yield from (part for part in message["content"] if isinstance(part, dict))


def _fill(messages: list[Message], kind: str, sources: Sequence[MediaSource], first: bool) -> bool:
    """Give every place of this kind its source; whether the row's column was used."""
    parts = [part for part in media_parts(messages) if part.get("type") == kind]
    empty: list[Message] = [part for part in parts if kind not in part]
    if not parts and sources:
        users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
        asked = users[0 if first else -1] if users else None
        if asked is None:
            raise ValueError("messages: expected a list that ends with a user message")
        empty = [{"type": kind} for _ in sources]
        asked["content"] = [*empty, *_as_parts(asked.get("content"))]
    if sources and parts and not empty:
        return False
    if len(empty) != len(sources):
        raise ValueError(f"{kind}s: expected {len(empty)} for the places in the text, found {len(sources)}")
    for part, source in zip(empty, sources, strict=True):
        part[kind] = source
    return bool(sources)


def _content(message: Message, places: set[str]) -> str | list[object]:
    """Copied content: image parts as sources, and the places of these kinds taken out of a user's text."""
    content = message["content"]
    splits = message.get("role") == "user" and bool(places)
    if isinstance(content, str) and not (splits and _PLACE.search(content)):
        return content
    parts: list[object] = []
    for part in _as_parts(content):
        if not isinstance(part, dict):
            parts.append(part)
        elif part.get("type") == "image_url":  # OpenAI's spelling
            url = part.get("image_url")
            parts.append({"type": "image", "image": image_source(url.get("url") if isinstance(url, dict) else url)})
        elif part.get("type") == "image" and part.get("image") is not None:
            parts.append({**part, "image": image_source(part["image"])})
        elif splits and part.get("type") == "text" and isinstance(part.get("text"), str):
            parts += _split(part["text"], places)
        else:
            parts.append(dict(part))
    return parts


def _split(text: str, places: set[str]) -> Iterator[Message]:
    begin = 0
    for match in _PLACE.finditer(text):
        if match[1] in places:
            if match.start() > begin:
                yield {"type": "text", "text": text[begin : match.start()]}
            yield {"type": match[1]}
            begin = match.end()
    if begin < len(text):
        yield {"type": "text", "text": text[begin:]}


def _as_parts(content: object) -> list[object]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else [content]
