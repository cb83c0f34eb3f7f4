"""The rows of every step from several corpora: mixed, packed, read ahead."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from model.batch import Row
from model.corpus.corpus import Corpus
from model.corpus.mixture import Draw, Mixture
from model.corpus.reading import ChangedRow, RowTask, build_row
from model.data.bad_rows import BadRows
from model.data.config import LoaderConfig, PackingConfig
from model.data.packing import PackedStep, StreamPacker
from model.data.sources import StepContent
from model.processing.processor import Processor
from model.processing.workers import Workers
from model.run.identity import Input
from model.run.state import State


@dataclass(frozen=True)
class _RowBuilder:
    """Builds rows in a worker."""

    processor: Processor

    def __call__(self, task: RowTask) -> Row:
        return build_row(task, self.processor)


@dataclass(frozen=True)
class _Planned:
    packed: PackedStep
    before: State  # the packer's state before this step was packed
    num_bytes: int  # memory of its pixels


@dataclass(frozen=True)
class _Built:
    content: StepContent
    bad: list[tuple[Draw, str]]  # rows that cannot be read, and why


class Stream:
    """The rows of each step. Which they are depends on the seed and on the number of the step alone; they are read by
    worker processes while earlier steps are trained."""

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        weights: Mapping[str, float],
        processor: Processor,
        packing: PackingConfig,
        loader: LoaderConfig,
        num_bins: int,
        capacity: int,
        seed: int,
        opens_images: bool,
    ) -> None:
        """`num_bins` micro-batches of `capacity` tokens a step. `opens_images`: rows come with decoded images as bytes,
        else with references that are opened where they are needed."""
        self._names, self._corpora = list(corpora), list(corpora.values())
        self._opens_images, self._num_bins, self._capacity = opens_images, num_bins, capacity
        self._mixture = Mixture({name: one.mixed(weights[name]) for name, one in corpora.items()}, seed)
        candidates = packing.candidates * num_bins
        self._packer = StreamPacker(self._length, num_bins, capacity, candidates, packing.max_wait)
        self._builder, self._loader = _RowBuilder(processor.keeping_bytes()), loader
        self._bytes_each = 3 * processor.config.pixels_per_token**2  # memory of the pixels of a visual token, as bytes
        self._submitted: set[int] = set()  # planned steps whose rows are being built
        self._step = 0  # the next one to be given out
        self._planned: dict[int, _Planned] = {}
        self._built: dict[int, _Built] = {}  # planned steps whose rows were taken from the workers
        self._draws: dict[int, Draw] = {}  # by position, of the rows that wait or are planned
        self._returned: float | None = None

    def content(self, step: int) -> StepContent:
        """Rows of one step, in micro-batches. One that cannot be read is named and left out.

        Steps come in order. `ValueError` behind the end of the stream, where all sources end.
        """
        assert step == self._step
        begin = time.monotonic()
        if step not in self._planned:
            self._plan(step)
        self._submit(step)
        for ahead in range(step + 1, step + 1 + self._loader.ahead):
            if ahead not in self._planned:
                try:
                    self._plan(ahead)
                except ValueError:  # the end of the stream; it is an error once the step is wanted
                    break
            held = sum(self._planned[one].num_bytes for one in self._submitted if one > step)
            if held + self._planned[ahead].num_bytes <= self._loader.ahead_mib * 2**20:
                self._submit(ahead)
        self._submitted.discard(step)
        built = self._built.pop(step, None) or self._build(step)
        planned = self._planned.pop(step)
        for position in (position for one in planned.packed.bins for position in one):
            del self._draws[position]
        for draw, reason in built.bad:
            self._corpora[draw.source].name_bad(draw.row, reason)
        if not built.content.rows:
            raise ValueError(f"data.sources: no row of step {step + 1} can be used; see the bad rows named above")
        self._step += 1
        now = time.monotonic()
        metrics = dict(planned.packed.metrics)
        if self._returned is not None:
            metrics["data/wait_share"] = (now - begin) / max(now - self._returned, 1e-9)
        self._returned = now
        return replace(built.content, metrics=metrics)

    def following(self) -> StepContent | None:
        """The rows of the step behind the last one that `content` gave, if they are ready; it will give the same."""
        step = self._step
        if step not in self._built:
            if step not in self._submitted:
                return None
            positions = (position for one in self._planned[step].packed.bins for position in one)
            if not self._workers.is_done((step, position) for position in positions):
                return None
            self._built[step] = self._build(step)
        return self._built[step].content

    @property
    def loader(self) -> LoaderConfig:
        return self._loader

    def state(self) -> State:
        """Data that a checkpoint keeps: what waits in the packer's buffer, by positions of the stream."""
        planned = self._planned.get(self._step)
        packer = planned.before if planned else self._packer.state()
        bad_rows = {name: one.bad_rows.state() for name, one in zip(self._names, self._corpora, strict=True)}
        return {"packer": packer, "bad_rows": bad_rows}

    def restore(self, state: State) -> None:
        self._planned.clear()
        self._built.clear()
        self._submitted.clear()
        self._draws.clear()
        if "_workers" in self.__dict__:
            self._workers.forget()
        self._packer.restore(state["packer"])
        self._step = state["packer"]["step"]
        self._returned = None
        for name, one in zip(self._names, self._corpora, strict=True):
            one.bad_rows.restore(state["bad_rows"][name])

    def close(self) -> None:
        """End the worker processes."""
        if "_workers" in self.__dict__:
            self._workers.close()
            del self._workers

    @property
    def inputs(self) -> dict[str, Input]:
        return {key: one for corpus in self._corpora for key, one in corpus.inputs.items()}

    def described(self) -> list[str]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(self._names, self._mixture.shares, strict=True))
        lines = [line for corpus in self._corpora for line in corpus.described()]
        num_rows = self._mixture.num_rows
        end = "" if num_rows is None else f"; all sources end after {num_rows} rows"
        update = f"data.micro_batches_per_step={self._num_bins} of {self._capacity} tokens at most are an update"
        lines.append(f"data.sources: shares of the rows: {shares}{end}; {update}")
        visual = self._mean(lambda corpus: corpus.totals["visual"] / len(corpus))
        if self._opens_images and visual:
            num_bytes = self._num_bins * self._capacity * visual / self._mean_tokens * self._bytes_each
            lines.append(
                f"images of a step: about {ceil(num_bytes / 2**20):,} MiB of memory, and at most data.loader.ahead_mib="
                f"{self._loader.ahead_mib} MiB for steps that are read ahead"
            )
        return lines

    @property
    def steps_per_pass(self) -> int:
        """Steps after which every source has made a pass, about: from the mean length of rows."""
        positions = self._mixture.positions_per_pass
        if self._mixture.num_rows is not None:
            positions = min(positions, self._mixture.num_rows)
        return max(1, round(positions * self._mean_tokens / (self._num_bins * self._capacity)))

    @property
    def _mean_tokens(self) -> float:
        return self._mean(lambda corpus: corpus.mean_tokens)

    def _mean(self, of: Callable[[Corpus], float]) -> float:
        """The mean over the rows of the stream of what `of` says of a row of each source, on average."""
        return sum(share * of(one) for share, one in zip(self._mixture.shares, self._corpora, strict=True))

    @property
    def bad_rows(self) -> Sequence[BadRows]:
        return [corpus.bad_rows for corpus in self._corpora]

    @cached_property
    def _workers(self) -> Workers:
        return Workers(self._builder, self._loader.workers, self._loader.patience_s)

    def _length(self, position: int) -> tuple[int, int] | None:
        draw = self._mixture.at(position)
        if draw is None:
            return None
        self._draws[position] = draw
        corpus = self._corpora[draw.source]
        return corpus.length(draw.row), corpus.visual_tokens(draw.row)

    def _plan(self, step: int) -> None:
        """Pack a step. `ValueError` behind the end of the stream."""
        before = self._packer.state()
        try:
            packed = self._packer.next()
        except IndexError:
            raise ValueError(
                f"data.sources: all sources end after {self._mixture.num_rows} rows, at step {step + 1}; expected rows "
                "for more steps: lower max_steps, or raise data.sources.NAME.max_epochs"
            ) from None
        positions = [position for one in packed.bins for position in one]
        visual = sum(self._corpora[d.source].visual_tokens(d.row) for d in map(self._draws.__getitem__, positions))
        self._planned[step] = _Planned(packed, before, visual * self._bytes_each if self._opens_images else 0)

    def _submit(self, step: int) -> None:
        """Have the rows of a planned step built, unless that is under way."""
        if not self._loader.workers or step in self._submitted:
            return
        self._submitted.add(step)
        for position in (position for one in self._planned[step].packed.bins for position in one):
            task = self._task(self._draws[position])
            self._workers.submit((step, position), task, task.address.group)

    def _task(self, draw: Draw) -> RowTask:
        return self._corpora[draw.source].task(draw.row, self._opens_images)

    def _build(self, step: int) -> _Built:
        """Build the rows of a planned step, or wait for them."""
        rows: list[Row] = []
        sources: list[str] = []
        bins: list[list[int]] = []
        bad: list[tuple[Draw, str]] = []
        for positions in self._planned[step].packed.bins:
            numbers = []
            for draw in map(self._draws.__getitem__, positions):
                try:
                    row = self._row(step, draw)
                except ChangedRow:
                    raise
                except ValueError as error:
                    bad.append((draw, str(error)))
                    continue
                numbers.append(len(rows))
                rows.append(row)
                sources.append(self._names[draw.source])
            if numbers:
                bins.append(numbers)
        return _Built(StepContent(rows, bins, sources), bad)

    def _row(self, step: int, draw: Draw) -> Row:
        """The row of a draw. `ValueError` for one that cannot be read."""
        return self._workers.result((step, draw.position)) if self._loader.workers else self._builder(self._task(draw))
