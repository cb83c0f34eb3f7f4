"""Which rows of a stream go into which micro-batch of a step, from their lengths alone (report, section 5).

Rows wait in a buffer of candidates. A step fills a fixed number of bins with them to the token limit, and gives all
bins about as many visual tokens: processes that work side by side wait for the one whose vision tower has most to do.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.run.state import State


@dataclass(frozen=True)
class Candidate:
    """A row that waits."""

    position: int  # in the stream; it names the row
    tokens: int  # packed tokens, visual ones included
    visual: int  # visual tokens
    since: int  # the step before which it came into the buffer


_MOST_EXCHANGES = 8
"""Rows that are exchanged in one bin, at most."""

Length = Callable[[int], "tuple[int, int] | None"]
"""Position of the stream -> (packed tokens, visual tokens) of its row; None where there is no row to train on.
`IndexError` behind the end of the stream."""


@dataclass(frozen=True)
class PackedStep:
    """The rows of one step."""

    bins: list[list[int]]  # positions of the stream; a bin is a micro-batch
    metrics: dict[str, float]


@dataclass
class _Bin:
    rows: list[Candidate] = field(default_factory=list)
    tokens: int = 0
    visual: int = 0

    def add(self, row: Candidate) -> None:
        self.rows.append(row)
        self.tokens += row.tokens
        self.visual += row.visual

    def remove(self, row: Candidate) -> None:
        self.rows.remove(row)
        self.tokens -= row.tokens
        self.visual -= row.visual


class _Pool:
    """The rows that wait, for the search of one that suits a bin."""

    def __init__(self, rows: list[Candidate]) -> None:
        self._rows = rows
        self._tokens = np.array([row.tokens for row in rows], np.int64)
        self._visual = np.array([row.visual for row in rows], np.int64)

    def best(self, room: int, over: float) -> tuple[int, float]:
        """(number of the row that suits best a bin with `room` tokens left and `over` the target of visual tokens, the
        distance that is left). (-1, infinity) where none fits."""
        if not self._rows:
            return -1, float("inf")
        left = room - self._tokens
        costs = np.where(left >= 0, left + np.abs(self._visual + over), np.inf)
        number = int(costs.argmin())
        return (number, float(costs[number])) if left[number] >= 0 else (-1, float("inf"))

    def exchange(self, number: int, other: Candidate | None) -> Candidate:
        """Take a row out; `other` waits in its place."""
        found = self._rows[number]
        if other is None:  # nothing fits into this place any more
            self._tokens[number] = np.iinfo(np.int64).max // 2
        else:
            self._rows[number] = other
            self._tokens[number], self._visual[number] = other.tokens, other.visual
        return found


class StreamPacker:
    """Packs a stream step by step. Its state is the next position and the positions in the buffer."""

    def __init__(self, length: Length, num_bins: int, capacity: int, num_candidates: int, max_wait: int) -> None:
        """`capacity`: tokens of a bin, which no row may exceed; `num_candidates`: rows in the buffer before a step;
        `max_wait`: steps after which a row that was passed over goes in before all others."""
        self._length, self._num_bins, self._capacity = length, num_bins, capacity
        self._num_candidates, self._max_wait = num_candidates, max_wait
        self._position = 0
        self._step = 0
        self._buffer: list[Candidate] = []  # the oldest first

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        waiting = [[row.position, row.since] for row in self._buffer]
        return {"position": self._position, "step": self._step, "waiting": waiting}

    def restore(self, state: State) -> None:
        self._position, self._step = state["position"], state["step"]
        self._buffer = []
        for position, since in state["waiting"]:
            found = self._length(position)
            assert found is not None
            self._buffer.append(Candidate(position, *found, since))

    def next(self) -> PackedStep:
        """The rows of the next step. `IndexError` where the stream has ended and nothing waits any more."""
        self._fill()
        if not self._buffer:
            raise IndexError(self._position)
        bins = [_Bin() for _ in range(self._num_bins)]
        self._place(bins)
        taken = {row.position for one in bins for row in one.rows}
        self._buffer = [row for row in self._buffer if row.position not in taken]
        oldest = self._step - self._buffer[0].since if self._buffer else 0
        self._step += 1
        return PackedStep([[row.position for row in one.rows] for one in bins if one.rows], self._metrics(bins, oldest))

    def _fill(self) -> None:
        try:
            while len(self._buffer) < self._num_candidates:
                if (found := self._length(self._position)) is not None:
                    self._buffer.append(Candidate(self._position, *found, self._step))
                self._position += 1
        except IndexError:  # the stream has ended; what waits is used up
            pass

    def _place(self, bins: list[_Bin]) -> None:
        """Fill the bins with rows of the buffer.

        The oldest rows that fill the bins give the number of visual tokens that this step should have. First come rows
        that waited too long; then rows with images, the one with most visual tokens first, each into the bin that has
        fewest; then the longest row that still fits the emptiest bin, over and over; at last single rows are exchanged.
        """
        forced = [row for row in self._buffer if self._step - row.since >= self._max_wait]
        others = self._buffer[len(forced) :]
        target = self._visual_target(len(bins))
        placed = [row for row in forced if self._into_least_visual(row, bins, None)]
        visual = self._oldest(others, target * len(bins) - sum(one.visual for one in bins))
        placed += [row for row in sorted(visual, key=_by_visual) if self._into_least_visual(row, bins, target)]
        done = {row.position for row in placed}
        self._into_gaps([row for row in others if row.position not in done], bins, target)
        kept, inside = {row.position for row in forced}, {row.position for one in bins for row in one.rows}
        self._refine(bins, [row for row in others if row.position not in inside], kept, target)

    def _visual_target(self, num_bins: int) -> float:
        """Visual tokens of a bin, if all bins were filled with the oldest rows."""
        room, visual = num_bins * self._capacity, 0
        total = 0
        for row in self._buffer:
            if total + row.tokens > room:
                break
            total += row.tokens
            visual += row.visual
        return visual / num_bins

    @staticmethod
    def _oldest(rows: Sequence[Candidate], visual: float) -> list[Candidate]:
        """The oldest rows with images that have so many visual tokens together, or a little less."""
        found, total = [], 0
        for row in rows:
            if row.visual and total + row.visual <= visual:
                found.append(row)
                total += row.visual
        return found

    def _into_least_visual(self, row: Candidate, bins: Sequence[_Bin], target: float | None) -> bool:
        """Put a row into the bin with the fewest visual tokens that has room. A row may go over the target by an eighth
        of itself."""
        fits = [one for one in bins if one.tokens + row.tokens <= self._capacity]
        if not fits:
            return False
        best = min(fits, key=lambda one: (one.visual, one.tokens))
        if target is not None and best.visual + row.visual > target + row.visual / 8:
            return False
        best.add(row)
        return True

    def _into_gaps(self, rows: Sequence[Candidate], bins: Sequence[_Bin], target: float) -> None:
        """Fill what is left of every bin with the longest rows that fit; those with images as the target allows."""
        texts = sorted((row for row in rows if not row.visual), key=_by_tokens)
        images = sorted((row for row in rows if row.visual), key=_by_tokens)
        open_bins = list(bins)
        while open_bins:
            one = min(open_bins, key=lambda one: one.tokens)
            gap = self._capacity - one.tokens
            text, image = _longest(texts, gap), _longest(images, gap)
            if image is not None and one.visual + images[image].visual > target + images[image].visual / 2:
                image = self._fitting_image(images, gap, target - one.visual)
            wants_image = image is not None and (text is None or images[image].tokens > texts[text].tokens)
            if wants_image and image is not None:
                one.add(images.pop(image))
            elif text is not None:
                one.add(texts.pop(text))
            else:
                open_bins.remove(one)

    @staticmethod
    def _fitting_image(images: Sequence[Candidate], gap: int, visual: float) -> int | None:
        """The longest row with at most so many visual tokens, half its own more allowed."""
        first = bisect_right(images, gap, key=lambda row: row.tokens) - 1
        return next((n for n in range(first, -1, -1) if images[n].visual / 2 <= visual), None)

    def _refine(self, bins: Sequence[_Bin], waiting: list[Candidate], kept: set[int], target: float) -> None:
        """Exchange a row of a bin for one that waits, or add one, as long as that brings the bin closer to the token
        limit and to the target of visual tokens; rows at the positions `kept` stay."""
        pool = _Pool(waiting)
        for one in bins:
            for _ in range(_MOST_EXCHANGES):
                cost, leaves, enters = self._cost(one.tokens, one.visual, target), None, -1
                for row in [None, *(row for row in one.rows if row.position not in kept)]:
                    tokens, visual = one.tokens - (row.tokens if row else 0), one.visual - (row.visual if row else 0)
                    number, found = pool.best(self._capacity - tokens, visual - target)
                    if found < cost:
                        cost, leaves, enters = found, row, number
                if enters < 0:
                    break
                one.add(pool.exchange(enters, leaves))
                if leaves:
                    one.remove(leaves)

    def _cost(self, tokens: int, visual: int, target: float) -> float:
        return self._capacity - tokens + abs(visual - target)

    def _metrics(self, bins: Sequence[_Bin], oldest: int) -> dict[str, float]:
        visual = np.array([one.visual for one in bins], np.float64)
        used = [one for one in bins if one.rows]
        return {
            "pack/waste": 1.0 - sum(one.tokens for one in used) / (len(bins) * self._capacity),
            "pack/visual_tokens_max_over_mean": float(visual.max() / visual.mean()) if visual.any() else 1.0,
            "pack/oldest_age": float(oldest),
        }


def _by_visual(row: Candidate) -> tuple[int, int, int]:
    return -row.visual, -row.tokens, row.position


def _by_tokens(row: Candidate) -> tuple[int, int]:
    return row.tokens, row.position


def _longest(rows: Sequence[Candidate], gap: int) -> int | None:
    """Number of the longest row of at most `gap` tokens; rows are sorted by tokens."""
    number = bisect_right(rows, gap, key=lambda row: row.tokens) - 1
    return number if number >= 0 else None
