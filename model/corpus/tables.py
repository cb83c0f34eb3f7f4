"""Parquet files and the Arrow files of `datasets` in any order of rows."""

import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from model.corpus.shard import Place, Shard, Unit, Withheld
from model.data.columnar import (
    DamagedFile,
    arrow_batches,
    byte_columns,
    parquet_byte_columns,
    parquet_group,
    parquet_group_sizes,
    row_of,
    rows_of,
)
from model.data.raw_rows import RawRow
from model.data.sources import BoundedCache

_KEPT_BYTES = 2 * 2**30
"""Row groups that a process keeps in memory, of all its files together; the one that was used last always stays."""
_UNIT_ROWS = 20_000
_groups = BoundedCache[Any](_KEPT_BYTES, lambda group: group.nbytes, least=1)
_reading = threading.Lock()


def _units(sizes: list[int]) -> list[Unit]:
    """Runs of groups or batches that hold some thousands of rows."""
    units, start, rows = [], 0, 0
    for number, size in enumerate(sizes, 1):
        rows += size
        if rows >= _UNIT_ROWS or number == len(sizes):
            units.append(Unit(start, number))
            start, rows = number, 0
    return units


def _withholding(row: RawRow, left_out: list[str], num_pictures: int) -> RawRow:
    """The row with images that were not read in each of the columns that were left out."""
    if num_pictures:
        row.columns.update((name, [Withheld() for _ in range(num_pictures)]) for name in left_out)
    return row


class ParquetShard(Shard):
    """A Parquet file; a place is (row group, row in it). Row groups that were used lately are kept in memory."""

    reads_groups = True

    def units(self) -> list[Unit]:
        return _units(self._sizes)

    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        number = 0
        for group in range(unit.start, unit.stop):
            for index, row in enumerate(self._rows_of_group(group)):
                number += 1
                yield (group, index), RawRow(row.file, number, row.columns, row.problem)

    def _rows_of_group(self, group: int) -> Iterator[RawRow]:
        """The rows of a row group; of one that is damaged as many as it should have, without columns."""
        try:
            yield from rows_of(self.path, parquet_group(self.path, group))
        except DamagedFile as error:
            yield from (RawRow(self.path, number, problem=str(error)) for number in range(1, 1 + self._sizes[group]))

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        group, index = place
        row = row_of(self.path, self._group(group, num_pictures is None), index)
        return row if num_pictures is None else _withholding(row, self._byte_columns, num_pictures)

    def _group(self, number: int, with_bytes: bool) -> Any:
        with _reading:  # a thread that opens images reads beside the one that builds rows
            return _groups.get((self.path, number, with_bytes), lambda: parquet_group(self.path, number, with_bytes))

    @cached_property
    def _sizes(self) -> list[int]:
        return parquet_group_sizes(self.path)

    @cached_property
    def _byte_columns(self) -> list[str]:
        return parquet_byte_columns(self.path)


class ArrowShard(Shard):
    """An Arrow file as `datasets` writes it; a place is (record batch, row in it)."""

    def units(self) -> list[Unit]:
        return _units([batch.num_rows for batch in self._batches])

    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        number = 0
        for batch in range(unit.start, unit.stop):
            for index, row in enumerate(rows_of(self.path, self._batches[batch])):
                number += 1
                yield (batch, index), RawRow(row.file, number, row.columns, row.problem)

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        batch, index = place
        row = row_of(self.path, self._batches[batch], index, with_bytes=num_pictures is None)
        return (
            row if num_pictures is None else _withholding(row, byte_columns(self._batches[batch].schema), num_pictures)
        )

    @cached_property
    def _batches(self) -> list[Any]:
        return arrow_batches(self.path)
