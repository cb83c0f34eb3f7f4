"""Which row of which source stands at a position of an endless stream: a pure function of (seed, position)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from model.data.order import KeyedPermutation, mixed

BLOCK = 100
"""Positions whose sources are laid out together: every source has its share of them, rounded down or up."""
_GOLDEN = 0.6180339887498949
_EXACT = 2.0**-53


@dataclass(frozen=True)
class MixedSource:
    """A source as the mixture sees it."""

    num_rows: int
    weight: float = 1.0  # its share of the stream, relative to the weights of the others
    max_epochs: float = 0.0  # passes after which it ends and the others share its place; 0: it never ends
    row_weights: np.ndarray | None = None  # [num_rows] how often each row comes in a pass, on average; None: once
    blocks: np.ndarray | None = None  # sizes of the runs of rows that are read together; None: each row stands alone

    @property
    def rows_per_pass(self) -> float:
        """Rows that a pass gives, on average."""
        return self.num_rows if self.row_weights is None else float(self.row_weights.sum())


@dataclass(frozen=True)
class Draw:
    """A row of the stream."""

    position: int
    source: int  # number of the source
    row: int


class Mixture:
    """Interleaves sources by weight. Every source passes through its rows in an order of its own for each pass.

    Blocks hold every source as often as its weight says, up to one row, and so do many blocks together. So any 10,000
    positions in a row hold it so often up to some rows of the two blocks at their ends.
    """

    def __init__(self, sources: Mapping[str, MixedSource], seed: int) -> None:
        """`ValueError` for weights that give no row."""
        self._sources = list(sources.values())
        for name, source in sources.items():
            if source.num_rows < 1:
                raise ValueError(f"data.sources.{name}: expected at least one row, found none")
        self._weights = np.array([source.weight for source in self._sources], np.float64)
        if not self._weights.sum() > 0:
            raise ValueError("data.sources: expected a weight above 0, found none; give one to a source")
        self._seed = seed
        self._passes = [_Passes(source, seed, number) for number, source in enumerate(self._sources)]
        self._block = -1
        self._taken = np.zeros(len(self._sources), np.int64)  # rows that each source has given before the block
        self._counts = self._taken
        self._draws: list[Draw | None] = []

    def at(self, position: int) -> Draw | None:
        """The row at a position. None where a source that ends within the block of the position has no row left.

        `IndexError` at and behind `end`.
        """
        block, offset = divmod(position, BLOCK)
        if block != self._block:
            self._draws = self._laid_out(block)
        return self._draws[offset]

    @cached_property
    def end(self) -> int | None:
        """The first position that has no row nor any behind it; None for a stream that never ends."""
        return None if self._phases[-1].weights.any() else self._phases[-1].first_block * BLOCK

    @property
    def num_rows(self) -> int | None:
        """Rows of the whole stream; None for one that never ends."""
        lasts = [one.last for one, weight in zip(self._passes, self._weights, strict=True) if weight > 0]
        return None if None in lasts else sum(last for last in lasts if last is not None)

    @cached_property
    def positions_per_pass(self) -> int:
        """Positions after which every source with a weight has made a pass, were no source to end."""
        shares = self._weights / self._weights.sum()
        return max(
            int(np.ceil(one.rows_per_pass / share)) for one, share in zip(self._sources, shares, strict=True) if share
        )

    @property
    def shares(self) -> list[float]:
        """The share of each source of the stream, before any ends."""
        return list(self._weights / self._weights.sum())

    def _laid_out(self, block: int) -> list[Draw | None]:
        phase = next(phase for phase in reversed(self._phases) if phase.first_block <= block)
        if not phase.weights.any():
            raise IndexError(block * BLOCK)
        if block == self._block + 1 and block != phase.first_block:
            taken = self._taken + self._counts
        else:
            taken = phase.taken + phase.counts(phase.first_block, block).sum(0)
        counts = phase.counts(block, block + 1)[0]
        self._block, self._taken, self._counts = block, taken, counts
        order = np.repeat(np.arange(len(counts)), counts)
        order = order[KeyedPermutation(BLOCK, self._seed, 1, block)(np.arange(BLOCK))]
        draws: list[Draw | None] = [None] * BLOCK
        for number in np.flatnonzero(counts):
            offsets = np.flatnonzero(order == number)
            first, last = int(taken[number]), self._passes[number].last
            count = len(offsets) if last is None else min(len(offsets), last - first)
            rows = self._passes[number].rows(first, count)
            for offset, row in zip(offsets, rows, strict=False):
                draws[offset] = Draw(block * BLOCK + int(offset), int(number), int(row))
        return draws

    @cached_property
    def _phases(self) -> "list[_Phase]":
        """The parts of the stream in which the same sources take turns; a source that ends begins the next one."""
        phases = [_Phase(0, self._weights / self._weights.sum(), np.zeros(len(self._weights), np.int64))]
        lasts = np.array([one.last if one.last is not None else -1 for one in self._passes], np.int64)
        while True:
            phase = phases[-1]
            ending = [n for n in range(len(lasts)) if lasts[n] >= 0 and phase.weights[n] > 0]
            if not ending:
                return phases
            stop = min(phase.first_block + _blocks_until(phase, n, int(lasts[n])) for n in ending)
            taken = phase.taken + phase.counts(phase.first_block, stop).sum(0)
            weights = phase.weights.copy()
            for number in ending:
                if taken[number] >= lasts[number]:
                    weights[number] = 0.0
            total = weights.sum()
            phases.append(_Phase(stop, weights / total if total > 0 else weights, np.maximum(taken, 0)))


@dataclass(frozen=True)
class _Phase:
    first_block: int
    weights: np.ndarray  # [S], their sum is 1 unless the stream has ended
    taken: np.ndarray  # [S] rows that each source has given before

    def counts(self, start: int, stop: int) -> np.ndarray:
        """[blocks, S] how many rows of each source the blocks from `start` to before `stop` hold.

        Points at equal distances fall into the intervals that the weights make of a block; the first point moves
        from block to block by the golden section, so that the sums of many blocks are as exact as those of one.
        """
        edges = np.concatenate([[0.0], np.cumsum(self.weights) * BLOCK])
        edges[-1] = BLOCK
        shifts = np.modf(np.arange(start, stop) * _GOLDEN)[0]
        reached = np.ceil(edges[None, :] - shifts[:, None] - _EXACT * BLOCK)
        reached[:, 0], reached[:, -1] = 0, BLOCK
        return np.diff(np.clip(reached, 0, BLOCK), axis=1).astype(np.int64)


def _blocks_until(phase: _Phase, source: int, last: int) -> int:
    """Blocks of the phase after which the source has given all its `last` rows, at least one."""
    missing = last - int(phase.taken[source])
    stride = max(1, int(missing / (phase.weights[source] * BLOCK)))
    found, start = 0, phase.first_block
    while True:
        sums = np.cumsum(phase.counts(start, start + stride)[:, source])
        reached = int(np.searchsorted(sums, missing - found))
        if reached < stride:
            return start + reached + 1 - phase.first_block
        found += int(sums[-1])
        start, stride = start + stride, 16


class _Passes:
    """The rows of one source by their ordinal in the stream of that source."""

    def __init__(self, source: MixedSource, seed: int, number: int) -> None:
        self._source, self._key = source, (seed, 2, number)
        self._pass = -1
        self._first = self._stop = 0  # ordinals of the pass that is laid out
        self._rows: np.ndarray | None = None  # its rows by place, in the order of the file; None: the rows themselves
        self._places: Callable[[np.ndarray], np.ndarray] = KeyedPermutation(1, 0)  # position in the pass -> place
        self.last = round(source.max_epochs * source.rows_per_pass) if source.max_epochs else None

    def rows(self, start: int, count: int) -> np.ndarray:
        """[count] the rows at ordinals start .. start + count."""
        found = np.empty(max(0, count), np.int64)
        done = 0
        while done < count:
            self._seek(start + done)
            stop = min(start + count, self._stop)
            places = self._places(np.arange(start + done - self._first, stop - self._first))
            found[done : done + len(places)] = places if self._rows is None else self._rows[places]
            done += len(places)
        return found

    def _seek(self, ordinal: int) -> None:
        """Lay out the pass that `ordinal` is in."""
        if self._source.row_weights is None:
            number = ordinal // self._source.num_rows
            if number != self._pass:
                self._lay_out(number, number * self._source.num_rows, None, self._source.num_rows)
            return
        if ordinal < self._first or self._pass < 0:
            self._lay_out_weighted(0, 0)
        while ordinal >= self._stop:
            self._lay_out_weighted(self._pass + 1, self._stop)

    def _lay_out_weighted(self, number: int, first: int) -> None:
        """Let every row come so often in this pass that over all passes so far it came as its weight says, up to 1."""
        weights = self._source.row_weights
        assert weights is not None
        rows = np.arange(self._source.num_rows, dtype=np.uint64)
        key = np.random.SeedSequence((*self._key, 3)).generate_state(1, np.uint64)
        shifts = mixed(rows * np.uint64(0x9E3779B97F4A7C15) + key) / 2.0**64
        copies = np.floor(weights * (number + 1) + shifts) - np.floor(weights * number + shifts)
        chosen = np.repeat(np.arange(len(weights)), copies.astype(np.int64))
        self._lay_out(number, first, chosen, len(chosen))

    def _lay_out(self, number: int, first: int, rows: np.ndarray | None, size: int) -> None:
        self._pass, self._first, self._stop, self._rows = number, first, first + size, rows
        key, blocks = (*self._key, number), self._source.blocks
        if blocks is None or not size:
            self._places = KeyedPermutation(max(1, size), *key)
            return
        if rows is not None:
            stops = np.searchsorted(rows, np.cumsum(blocks))
            blocks = np.diff(stops, prepend=0)
        self._places = Windows(blocks[blocks > 0], key).rows


class Windows:
    """Shuffles rows that are read in blocks: blocks in a keyed order, then the rows of a few blocks among each other.

    So a reader that keeps the blocks of one window reads each of them once in a pass.
    """

    SIZE = 4
    """Blocks of a window."""

    def __init__(self, sizes: np.ndarray, key: Sequence[int]) -> None:
        """`sizes`: rows of each block, in the order of the rows."""
        self._key = tuple(key)
        self._order = KeyedPermutation(len(sizes), *key, 4)(np.arange(len(sizes)))
        self._first_rows = np.concatenate([[0], np.cumsum(sizes)])
        self._sizes = sizes
        ends = np.cumsum(sizes[self._order])
        self._window_ends = ends[self.SIZE - 1 :: self.SIZE]
        if len(ends) % self.SIZE:
            self._window_ends = np.append(self._window_ends, ends[-1])

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """[N] the rows at `positions` [N] of the pass."""
        windows = np.searchsorted(self._window_ends, positions, side="right")
        found = np.empty(len(positions), np.int64)
        for window in np.unique(windows):
            mine = windows == window
            blocks = self._order[window * self.SIZE : (window + 1) * self.SIZE]
            rows = np.concatenate([np.arange(self._first_rows[b], self._first_rows[b + 1]) for b in blocks])
            first = self._window_ends[window] - len(rows)
            order = KeyedPermutation(len(rows), *self._key, 5, int(window))
            found[mine] = rows[order(positions[mine] - first)]
        return found
