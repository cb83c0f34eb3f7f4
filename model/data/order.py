"""Which rows a step uses: a pure function of seed and step, so that a restart needs no cursor."""

import zlib

import numpy as np


class KeyedOrder:
    """Endless epochs over `num_rows` rows, each epoch in its own order keyed by (seed, name, epoch)."""

    def __init__(self, num_rows: int, seed: int, name: str) -> None:
        if num_rows < 1:
            raise ValueError(f"{name}: expected at least one row, found none")
        self._num_rows = num_rows
        self._key = (seed, zlib.crc32(name.encode()))
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def rows(self, start: int, count: int) -> list[int]:
        """Row numbers at positions start .. start + count of the endless order."""
        return [self._row(position) for position in range(start, start + count)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self._num_rows)
        if epoch != self._epoch:
            self._order = np.random.default_rng([*self._key, epoch]).permutation(self._num_rows)
            self._epoch = epoch
        return int(self._order[offset])
