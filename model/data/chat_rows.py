"""From the columns of a row to messages: what is the question, what the answer, which images belong to it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from model.data.config import ChatTableConfig, TableConfig
from model.data.media import MediaError, inside
from model.data.media_store import MediaStore
from model.data.tables import RawRow, Table, as_json, from_base64
from model.json_values import JsonObject
from model.run.identity import MediaDigest

_ID = ("id", "index")
_QUESTION = ("messages", "question", "problem", "prompt")
_REFERENCE = ("reference", "answer", "solution", "reward_model.ground_truth")
_IMAGE = ("images", "image", "image_path")
_DATASET = ("dataset", "data_source")
_PLACE = re.compile(r"<image>\n?")  # the template puts a line break behind every image itself
_LONGEST_NAME = 64
"""A longer text without a dot is no file name but base64: its alphabet has no dot."""

Message = JsonObject
MediaSource = str | bytes
"""A file name under the data's folder, or an image's bytes."""


@dataclass(frozen=True)
class ChatRow:
    """Messages, what is known about them, where their image files lie, and where the row came from."""

    id: str
    messages: list[Message]
    reference: str | None  # None where the row has no such column
    meta: JsonObject  # all other columns, as JSON data
    root: Path
    dataset: str
    file: Path
    number: int


class ChatReader:
    """Reads rows as `config` says; bytes of images go to `media`."""

    def __init__(self, config: TableConfig, media: MediaStore) -> None:
        self._config, self._media = config, media
        self.digest = MediaDigest()  # of all image and video files that rows name
        chat = config if isinstance(config, ChatTableConfig) else ChatTableConfig()
        self._id = _names(config.id_column, _ID)
        self._question = _names(chat.question_column, _QUESTION)
        self._reference = _names(chat.reference_column, _REFERENCE)
        self._image = _names(config.image_column, _IMAGE)
        self._dataset = _names(chat.dataset_column, _DATASET)

    def read(self, raw: RawRow, table: Table, ordinal: int) -> ChatRow:
        """The messages of a row, the `ordinal`-th of its table.

        `ValueError` says why it cannot be used.
        """
        if raw.problem:
            raise ValueError(raw.problem)
        columns = raw.columns
        question_column, question = _first(columns, self._question)
        image_column, images = _first(columns, self._image)
        id_column, _ = _first(columns, self._id)
        reference_column, reference = _first(columns, self._reference)
        dataset_column, dataset = _first(columns, self._dataset)
        messages, used = _messages(question_column, question, _sources(images))
        messages, root = self._with_files(messages, table.root)
        self._note_videos(messages, root)
        own = {id_column, question_column, reference_column, image_column if used else ""}
        meta = {key: as_json(value) for key, value in columns.items() if key not in own}
        if dataset_column != "data_source":
            meta["dataset"] = table.name if dataset is None else dataset
        return ChatRow(
            id=self.id_of(raw, table, ordinal),
            messages=messages,
            reference=None if reference is None else _reference_text(reference),
            meta=meta,
            root=root,
            dataset=table.name if dataset is None else str(dataset),
            file=raw.file,
            number=raw.number,
        )

    def id_of(self, raw: RawRow, table: Table, ordinal: int) -> str:
        """The id of a row that need not hold messages. `ValueError` where it is no text or number."""
        if raw.problem:
            raise ValueError(raw.problem)
        return table.prefix + _id(_first(raw.columns, self._id)[1], f"{table.name}-{ordinal}")

    def images(self, columns: Mapping[str, object], root: Path) -> tuple[list[str], Path]:
        """(file names, the one folder they are relative to) of the row's image column, checked."""
        parts = [{"type": "image", "image": source} for source in _sources(_first(columns, self._image)[1])]
        folder = self._put_files(parts, root)
        return [part["image"] for part in parts], folder

    def _with_files(self, messages: list[Message], root: Path) -> tuple[list[Message], Path]:
        """Messages whose images are file names, and the one folder that these are relative to."""
        return messages, self._put_files([part for part in _parts(messages) if part.get("type") == "image"], root)

    def _put_files(self, images: Sequence[Message], root: Path) -> Path:
        """Make the images of these parts file names; the folder they are relative to."""
        held = any(isinstance(part["image"], bytes) for part in images)
        for part in images:
            source = part["image"]
            if isinstance(source, str):
                path = self._checked_file(root, source)
                part["image"] = self._media.put(path.read_bytes()) if held else source
            else:
                self._check_size(len(source), f"image of {len(source)} bytes")
                part["image"] = self._media.put(source)
        return self._media.folder if held else root

    def _note_videos(self, messages: list[Message], root: Path) -> None:
        """Add video files to the digest. Those that are no files are refused when their headers are read."""
        for part in _parts(messages):
            name = part.get("video") if part.get("type") == "video" else None
            if isinstance(name, str) and (path := inside(root, name, "video")).is_file():
                self.digest.add(path, name)

    def _checked_file(self, root: Path, name: str) -> Path:
        path = inside(root, name)
        try:
            if not path.is_file():
                raise MediaError(f"image {path}: expected a file, found none")
            self._check_size(path.stat().st_size, f"image {path}")
            self.digest.add(path, name)
        except OSError as error:  # a name that is too long for the file system
            raise MediaError(
                f"image: expected a file that can be opened, found {name!r:.80}: {error.strerror}"
            ) from None
        return path

    def _check_size(self, size: int, what: str) -> None:
        limit = self._config.max_image_bytes
        if size > limit:
            raise MediaError(f"{what}: expected at most data.max_image_bytes={limit}, found {size}")


def _names(configured: str, known: Sequence[str]) -> Sequence[str]:
    return (configured,) if configured else known


def require_reference(row: ChatRow) -> str:
    """`ValueError` for a row without one."""
    if row.reference is None:
        raise ValueError("reference: expected str, found None")
    return row.reference


def _first(columns: Mapping[str, object], names: Sequence[str]) -> tuple[str, Any]:
    """(name, value) of the first of these columns that a row has; a dot leads into an object."""
    for name in names:
        value: object = columns
        for key in [name] if name in columns else name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return name, value
    return "", None


def _id(value: object, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"id: expected str or int, found {value!r:.80}")
    return str(value)


def _reference_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"reference: expected str, found {value!r:.80}")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"reference: expected a finite number, found {value}")
    if not str(value).strip():
        raise ValueError("reference: expected an answer, found nothing")
    return str(value)


def _sources(images: object) -> list[MediaSource]:
    """An image cell, or a list of them."""
    if not images:
        return []
    return [_source(value) for value in (images if isinstance(images, list) else [images])]


def _source(value: object) -> MediaSource:
    """An image cell: a file name, bytes, base64, or the struct of `datasets`, whose bytes count before its path."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"image: expected a file name, bytes or base64, found {value!r:.80}")
    is_encoded = value.startswith("data:image/") or (len(value) > _LONGEST_NAME and "." not in value)
    return from_base64(value) if is_encoded else value


def _messages(column: str, question: object, sources: list[MediaSource]) -> tuple[list[Message], bool]:
    """(messages with an image behind every image part, whether `sources` are among them).

    `<image>` in a user's text is a place for an image where the row has an image column; without any place, images come
    before the last user's text. Rows of `messages` that place images themselves keep theirs.
    """
    if isinstance(question, str) and column != "messages":
        question = [{"role": "user", "content": question}]
    if not isinstance(question, list):
        if not column:
            raise ValueError(f"messages: expected list, found None; nor is there a column {', '.join(_QUESTION[1:])}")
        kind = "list" if column == "messages" else "text or list"
        raise ValueError(f"{column}: expected {kind}, found {question!r:.80}")
    plain = column == "messages" and not sources
    messages: list[Message] = [dict(m) if isinstance(m, dict) else m for m in question]
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), str | list):
            message["content"] = _content(message, plain)
    places = [part for part in _parts(messages) if part.get("type") == "image"]
    empty: list[Message] = [part for part in places if "image" not in part]
    if not places and sources:
        asked = next((m for m in reversed(messages) if isinstance(m, dict) and m.get("role") == "user"), None)
        if asked is None:
            raise ValueError("messages: expected a list that ends with a user message")
        empty = [{"type": "image"} for _ in sources]
        asked["content"] = [*empty, *_as_parts(asked.get("content"))]
    if sources and places and not empty:
        return messages, False
    if len(empty) != len(sources):
        raise ValueError(f"images: expected {len(empty)} for the places in the text, found {len(sources)}")
    for part, source in zip(empty, sources, strict=True):
        part["image"] = source
    return messages, bool(sources)


def _content(message: Message, plain: bool) -> str | list[object]:
    """Copied content: image parts as sources, and a user's `<image>` places taken out of the text unless `plain`."""
    content = message["content"]
    splits = message.get("role") == "user" and not plain
    if isinstance(content, str) and not (splits and _PLACE.search(content)):
        return content
    parts: list[object] = []
    for part in _as_parts(content):
        if not isinstance(part, dict):
            parts.append(part)
        elif part.get("type") == "image" and part.get("image") is not None:
            parts.append({**part, "image": _source(part["image"])})
        elif splits and part.get("type") == "text" and isinstance(part.get("text"), str):
            parts += _split(part["text"])
        else:
            parts.append(dict(part))
    return parts


def _split(text: str) -> Iterator[Message]:
    for number, piece in enumerate(_PLACE.split(text)):
        if number:
            yield {"type": "image"}
        if piece:
            yield {"type": "text", "text": piece}


def _as_parts(content: object) -> list[object]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else [content]


def _parts(messages: Sequence[object]) -> Iterator[Message]:
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            yield from (part for part in message["content"] if isinstance(part, dict))
