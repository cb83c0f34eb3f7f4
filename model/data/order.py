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


class KeyedPermutation:
    """A permutation of the numbers below `size`, computed for any position on its own: nothing is stored.

    A Feistel network permutes a power of four that is at least `size`; a number outside is permuted again until it is
    inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """

    _ROUNDS = 6

    def __init__(self, size: int, *key: int) -> None:
        """`key`: numbers of 0 or more that choose the permutation."""
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._round_keys = np.random.SeedSequence(key).generate_state(self._ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at `positions` [N], each of them 0 or more and below `size`."""
        numbers = self._permuted(positions.astype(np.uint64))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._permuted(numbers[outside])
        return numbers.astype(np.int64)

    def _permuted(self, numbers: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = numbers >> bits, numbers & mask
        for key in self._round_keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        return (left << bits) | right


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers [N] of 64 bits whose every bit depends on every bit of `numbers` (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
