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
                        yield RawRow(path, number, columns_of_line(line))
                    except ValueError as error:
                        yield RawRow(path, number, problem=str(error))
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable JSONL file, found: {error}") from None


def placed_lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, int, bytes | None]]:
    """(first byte, number of bytes, line) of the lines that begin in bytes `start` to before `stop` of a file.

    Blank lines count; None stands for a line that is too long to be read. `ValueError` for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                if file.read(1) != b"\n":  # the line that is under way belongs to the part before
                    while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                        pass
            first = file.tell()
            lines = bounded_lines(file, has_mark=not first)
            while first < stop and (line := next(lines, b"")) != b"":
                after = file.tell()
                yield first, after - first, line
                first = after
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable JSONL file, found: {error}") from None


def bounded_lines(file: IO[bytes], has_mark: bool = True) -> Iterator[bytes | None]:
    """Lines, the first without a byte order mark where it may have one; None for one that is too long to be read."""
    is_first = has_mark
    while line := file.readline(MAX_ROW_BYTES + 1):
        if is_first:
            line, is_first = line.removeprefix(codecs.BOM_UTF8), False
        if len(line) <= MAX_ROW_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_ROW_BYTES)
        yield None


def columns_of_line(line: bytes) -> JsonObject:
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
