"""Rows of a JSONL file. A line that cannot be read costs one row."""

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from model.data.raw_rows import MAX_ROW_BYTES, MAX_ROW_VALUES, RawRow, require_file
from model.json_values import JsonObject


def json_rows(path: Path) -> Iterator[RawRow]:
    """Lines that are not blank, numbered from 1. `ValueError` for a file that cannot be opened or read."""
    require_file(path, "JSONL")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(bounded_lines(file), 1):
                if line is None:
                    yield RawRow(path, number, problem=f"expected a row of at most {MAX_ROW_BYTES} bytes, found more")
                elif line.strip():
                    try:
                        yield RawRow(path, number, _columns(line))
                    except ValueError as error:
                        yield RawRow(path, number, problem=str(error))
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable JSONL file, found: {error}") from None


def bounded_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines, the first without a byte order mark; None for one that is too long to be read."""
    is_first = True
    while line := file.readline(MAX_ROW_BYTES + 1):
        if is_first:
            line, is_first = line.removeprefix(codecs.BOM_UTF8), False
        if len(line) <= MAX_ROW_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_ROW_BYTES)
        yield None


def _columns(line: bytes) -> JsonObject:
    """`ValueError` for a line that is no JSON object in UTF-8, or has too many values."""
    if (found := line.count(b",") + line.count(b"[") + line.count(b"{")) > MAX_ROW_VALUES:
        raise ValueError(f"expected a row of at most {MAX_ROW_VALUES} values, found about {found}")
    try:
        columns = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, found: {error.reason} at byte {error.start} of the line") from None
    except RecursionError:
        raise ValueError("expected a JSON object, found: JSON that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"expected a JSON object, found: {error}") from None
    if not isinstance(columns, dict):
        raise ValueError(f"expected a JSON object, found {type(columns).__name__}")
    return columns


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text:.40}, which is too large to be held")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which JSON does not have; leave the key out, or write null or a text")
