"""JSONL, JSON and TSV files in any order of rows."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO

from model.corpus.shard import BLANK, Place, Shard, Unit
from model.data.jsonl import columns_of_line, placed_lines
from model.data.raw_rows import MAX_ROW_BYTES, RawRow, require_file
from model.data.tsv import header_of, placed_rows, row_of_bytes

_UNIT_BYTES = 32 * 2**20
_ARRAY_CHUNK = 2**20
_GAP = re.compile(r"[ \t\r\n,]*")
_LONGEST_KEY = 256  # bytes of a key and what may stand between it and its list


def bytes_at(path: Path, place: Place) -> bytes:
    """The bytes at (first byte, number of bytes). `ValueError` where they cannot be read, or the file is shorter."""
    start, size = place
    try:
        with path.open("rb") as file:
            file.seek(start)
            found = file.read(size)
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable file, found: {error}") from None
    if len(found) != size:
        raise ValueError(f"data: {path}: expected {size} bytes at {start}, found {len(found)}; the file has changed")
    return found


class JsonLines(Shard):
    """A JSONL file; a place is (first byte, number of bytes)."""

    def units(self) -> list[Unit]:
        require_file(self.path, "JSONL")
        size = self.path.stat().st_size
        return [Unit(start, min(start + _UNIT_BYTES, size)) for start in range(0, size, _UNIT_BYTES)]

    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        """Yield the lines that begin in the part."""
        for number, (start, size, line) in enumerate(placed_lines(self.path, unit.start, unit.stop), 1):
            if line is None:
                problem = f"expected a row of at most {MAX_ROW_BYTES} bytes, found more"
                yield (start, size), RawRow(self.path, number, problem=problem)
            elif line.strip():
                yield (start, size), _row_of_json(self.path, line, number)
            else:
                yield (start, size), RawRow(self.path, number, problem=BLANK)

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        return _row_of_json(self.path, bytes_at(self.path, place).removeprefix(codecs.BOM_UTF8), 0)


class TabSeparated(Shard):
    """A TSV file; a place is (first byte, number of bytes). A row cannot take its image from another row."""

    def units(self) -> list[Unit]:
        require_file(self.path, "TSV")
        return [Unit(0, self.path.stat().st_size)]

    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        for start, size, row in placed_rows(self.path):
            yield (start, size), row

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        return row_of_bytes(self.path, self._header, bytes_at(self.path, place))

    @cached_property
    def _header(self) -> list[str]:
        return header_of(self.path)


class JsonArray(Shard):
    """A JSON file that is one list of objects, as LLaVA's annotations are; a place is (first byte, number of bytes)."""

    def units(self) -> list[Unit]:
        require_file(self.path, "JSON")
        return [Unit(0, self.path.stat().st_size)]

    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        return placed_items(self.path)

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        return _row_of_json(self.path, bytes_at(self.path, place), 0)


def placed_items(path: Path, key: str = "") -> Iterator[tuple[Place, RawRow]]:
    """(place, row) of every object in a JSON file that is one list, or in the list behind the first `"key": [` of it.

    `ValueError` for a file that cannot be read, has no such list, or is cut off.
    """
    try:
        for number, (start, content) in enumerate(_array_items(path, key), 1):
            yield (start, len(content)), _row_of_json(path, content, number)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data: {path}: expected a readable JSON file in UTF-8, found: {error}") from None


def _row_of_json(path: Path, content: bytes, number: int) -> RawRow:
    try:
        return RawRow(path, number, columns_of_line(content))
    except ValueError as error:
        return RawRow(path, number, problem=str(error))


def _array_items(path: Path, key: str) -> Iterator[tuple[int, bytes]]:
    """(first byte, bytes) of every item of a JSON list, of which never more than one item and one chunk is in memory.

    `ValueError` for a file that is no list, or is cut off.
    """
    decoder = json.JSONDecoder(parse_float=str, parse_int=str)  # only the end of each item is wanted
    with path.open("rb") as file:
        at = _start_of_list(path, file, key) if key else _start_of_text(file)
        file.seek(at)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        buffer, position = text.read(_ARRAY_CHUNK), 1
        if not buffer.startswith("["):
            raise ValueError(f"data: {path}: expected a list of objects, found {buffer[:40]!r}; JSONL ends in .jsonl")
        at += 1
        while True:
            gap = _GAP.match(buffer, position)
            begin = gap.end() if gap else position
            at, position = at + begin - position, begin
            if buffer.startswith("]", position):
                return
            try:
                _, end = decoder.raw_decode(buffer, position)
                is_whole = end < len(buffer)
            except ValueError:
                is_whole, end = False, 0
            except RecursionError:
                raise ValueError(f"data: {path}: expected JSON objects, found some nested too deeply at {at}") from None
            if is_whole:
                content = buffer[position:end].encode()
                yield at, content
                at, position = at + len(content), end
                continue
            left = len(buffer) - position
            more = text.read(max(_ARRAY_CHUNK, left))
            if not more or left > MAX_ROW_BYTES:
                raise ValueError(
                    f"data: {path}: expected JSON objects up to a closing bracket, found other text at {at}"
                )
            buffer, position = buffer[position:] + more, 0


def _start_of_text(file: IO[bytes]) -> int:
    head = file.read(_ARRAY_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    return file.tell() - len(head)


def _start_of_list(path: Path, file: IO[bytes], key: str) -> int:
    """The place of the bracket behind the first `"key": [`."""
    pattern = re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*\[')
    before, kept = 0, b""
    while chunk := file.read(_ARRAY_CHUNK):
        kept += chunk
        if found := pattern.search(kept):
            return before + found.end() - 1
        left = kept[-_LONGEST_KEY:]
        before += len(kept) - len(left)
        kept = left
    raise ValueError(f'data: {path}: expected an object with the list "{key}", found none')
