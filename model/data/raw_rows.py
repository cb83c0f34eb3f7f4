"""A row as it stands in its file, and the bounds within which any file is read."""

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

from model.json_values import JsonObject, refuse_special_file

MAX_ROW_BYTES = 96 * 2**20
"""Largest row, images inside it included, once it is expanded."""
MAX_TEXT_BYTES = 4 * 2**20
"""Most text of a row, images apart: what a row says is kept in memory for the whole run."""
MAX_ROW_VALUES = 2_000_000
"""Most values in one row: each takes some 60 bytes in memory, however few it takes in the file."""


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its file; `problem` says why there are no columns."""

    file: Path
    number: int  # line of a JSONL file, else row, from 1
    columns: JsonObject = field(default_factory=dict)
    problem: str = ""


def check_text(columns: object) -> None:
    """`ValueError` for columns that hold too much text, or text that UTF-8 cannot hold; the latter names its column.

    JSON can spell half of a surrogate pair: an emoji that another tool cut in two.
    """
    total = 0
    waiting: list[tuple[str, object]] = [("", columns)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, dict):
            waiting += ((where or str(key), key) for key in value)
            waiting += ((where or str(key), inner) for key, inner in value.items())
        elif isinstance(value, list):
            waiting += ((where, inner) for inner in value)
        elif isinstance(value, str):
            try:
                total += len(value.encode())
            except UnicodeEncodeError:
                raise ValueError(
                    f"{where!a}: expected what UTF-8 can hold, found a lone surrogate in {value!a:.80}"
                ) from None
    if total > MAX_TEXT_BYTES:
        raise ValueError(f"expected at most {MAX_TEXT_BYTES} bytes of text, images apart, found {total}")


def require_file(path: Path, kind: str) -> None:
    """`ValueError` unless a regular file is there: the opening of a pipe waits for a writer, for ever."""
    try:
        refuse_special_file(path)
    except FileNotFoundError:
        raise ValueError(f"data: expected a {kind} file at {path}, found none; write it or correct the path") from None
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable {kind} file, found: {error}") from None


def from_base64(text: str) -> bytes:
    """`ValueError` for text that is no base64; white space and a data URL's head are left out."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"image: expected base64, found {text!r:.80}") from None
