"""JSONL and TSV files in any order of rows."""

import codecs
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from model.corpus.shard import BLANK, Place, Shard, Unit
from model.data.jsonl import columns_of_line, placed_lines
from model.data.raw_rows import MAX_ROW_BYTES, RawRow, require_file
from model.data.tsv import header_of, placed_rows, row_of_bytes

_UNIT_BYTES = 32 * 2**20


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
                yield (start, size), self._row(line, number)
            else:
                yield (start, size), RawRow(self.path, number, problem=BLANK)

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        return self._row(bytes_at(self.path, place).removeprefix(codecs.BOM_UTF8), 0)

    def _row(self, line: bytes, number: int) -> RawRow:
        try:
            return RawRow(self.path, number, columns_of_line(line))
        except ValueError as error:
            return RawRow(self.path, number, problem=str(error))


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
