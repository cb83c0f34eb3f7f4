"""The engine of several processes as the loop sees it: rank 0 leads, the other ranks follow.

Each verb on rank 0 is sent to all ranks with the micro-batches of each, done by all, and answered to rank 0. Loops, run
folders, ledgers and signals know no ranks.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.batch import Batch, ModelInputs
from model.checkpoint import write_checkpoint
from model.config import StoredDtype
from model.engine.base import AnyBatch, LossFn, LossSums, ModelShape, StepResult
from model.engine.config import DeepspeedConfig, EngineConfig, FsdpConfig, OptimizerConfig
from model.engine.fsdp import FsdpEngine
from model.engine.parts import Costs, deal
from model.engine.ranks import Ranks
from model.engine.sharded import ShardedEngine
from model.engine.source import ModelSource
from model.engine.watch import RankFailure, is_lost_connection
from model.logprobs import TokenScores
from model.processing.opener import OpenAhead
from model.processing.processor import Processor
from model.run.failpoints import reach
from model.run.manifest import Digests

if TYPE_CHECKING:
    from model.engine.deepspeed import DeepspeedEngine

_ALONE = ("build", "save", "begin saving", "is saved", "end saving", "check", "load", "sample", "expect")
"""Verbs in which no rank waits for another, so that an error of one comes to rank 0 as its answer."""


@dataclass
class Here:
    """The engines, references and samplers of a rank, by the numbers that rank 0 gave them."""

    ranks: Ranks
    held: dict[Any, Any] = field(default_factory=dict)
    drawn: Callable[[Iterator[tuple[str, Tensor]]], object] | None = None  # takes weights that all ranks draw


class Lead:
    """Rank 0's side: does verbs on all ranks at once. One verb is under way at a time."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.here = Here(ranks)
        self.is_broken = False  # the others cannot be reached any more
        self.is_waited_for = False  # the others do a verb whose answers nobody has taken yet
        self._next = 0

    def new_number(self) -> int:
        """A number for something that all ranks hold."""
        self._next += 1
        return self._next

    def on_all(self, verb: str, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call `function(here, *arguments[rank])` on every rank; the results in the order of the ranks.

        An error of one rank is raised here: a `RankFailure` names the rank, unless it is an error of the user's.
        """
        self.begin(verb, function, arguments)
        own: Any = None
        error: Exception | None = None
        try:
            own = function(self.here, *arguments[0])
        except Exception as raised:
            if is_lost_connection(raised):
                raise self.ranks.watch.verdict(raised) from raised
            error = raised
            if verb not in _ALONE:  # the others may wait for this rank, and never answer
                self.ranks.watch.failed(raised)
        return [own, *self.answers(error)]

    def begin(self, verb: str, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """Begin a verb on the other ranks; the caller does rank 0's part, and then asks for the `answers`."""
        assert len(arguments) == self.ranks.num_ranks
        self.ranks.watch.marks.begin(verb)
        self.is_waited_for = True
        with self._naming_failures():
            messages = {id(own): (verb, function, own) for own in arguments}  # equal ones are packed once
            self.ranks.link.send([messages[id(own)] for own in arguments[1:]])

    def give_up(self) -> None:
        """Tell the other ranks that nobody waits for what they do in this verb; they look at it when they can."""
        self.ranks.watch.give_up()

    def on_all_alike(self, verb: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same with equal arguments for all."""
        return self.on_all(verb, function, [arguments] * self.ranks.num_ranks)

    def draw(self, number: int, dtype: torch.dtype | None) -> Generator[tuple[str, Tensor], None, None]:
        """Weights of an engine, which all ranks draw together.

        Rank 0 draws to the end even where its caller does not, because the others would wait for it.
        """
        self.ranks.watch.marks.begin("weights")
        self.is_waited_for = True
        with self._naming_failures():
            self.ranks.link.send([("weights", _draw, (number, dtype))] * (self.ranks.num_ranks - 1))
        tensors = self.here.held[number].weights(dtype)
        try:
            with self._naming_failures():
                # `yield from` would close them where the caller stops.
                for pair in tensors:  # noqa: UP028
                    yield pair
        finally:
            deque(tensors, maxlen=0)
            self.answers()

    def close(self, exit_code: int) -> None:
        """Let the other ranks end, with this exit code. In the middle of a verb they cannot be asked, and are ended."""
        for one in self.here.held.values():
            if isinstance(one, ShardedEngine):
                one.close()
        if self.is_broken or self.is_waited_for:
            self.ranks.watch.abandon()
            return
        with self._naming_failures():
            self.ranks.link.send([exit_code] * (self.ranks.num_ranks - 1))
        self.ranks.close()

    def answers(self, error: Exception | None = None) -> list[Any]:
        """The results of the other ranks. Raises the first error, `error` of rank 0 before those of others."""
        self.ranks.watch.marks.wait()
        with self._naming_failures():
            answers = self.ranks.link.replies()
        self.is_waited_for = False
        self.ranks.watch.marks.end()
        failed = [(rank, answer) for rank, answer in enumerate(answers, 1) if isinstance(answer, _Failed)]
        for rank in [0, *(rank for rank, _ in failed)] if error is not None or failed else []:
            self.ranks.watch.withdraw(rank)
        if error is not None:
            raise error
        for rank, answer in failed:
            raise answer.as_error(rank)
        return answers

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """A block in which other ranks are waited for: a lost one is named by the watch."""
        try:
            yield
        except Exception as error:
            if not is_lost_connection(error):
                raise
            self.is_broken = True
            raise self.ranks.watch.verdict(error) from error


@dataclass(frozen=True)
class _Failed:
    """An error of a rank that follows."""

    error: Exception | None  # where it can be sent
    text: str

    def as_error(self, rank: int) -> Exception:
        if isinstance(self.error, ValueError | OSError) or hasattr(self.error, "exit_code"):
            assert self.error is not None
            if isinstance(self.error, RankFailure):
                return RankFailure(f"rank {rank}: {self.error}")
            return self.error
        return RankFailure(f"rank {rank} raised {self.text}")


def follow(ranks: Ranks) -> None:
    """Do the verbs that rank 0 sends, as every other rank does, until it says that the run ends. Ends the process."""
    here = Here(ranks)
    watch = ranks.watch
    while True:
        message = _next_message(ranks)
        if not isinstance(message, tuple):
            ranks.close()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(message)  # at once: torchrun sends SIGTERM to a process that is still ending
        verb, function, arguments = message
        watch.marks.begin(verb)
        try:
            answer = function(here, *arguments)
        except Exception as error:
            if verb not in _ALONE:
                watch.failed(error)
            answer = _failed(error)
        watch.marks.end()
        reach(f"verb.{verb}")
        try:
            ranks.link.reply(answer)
        except RuntimeError as error:
            raise watch.verdict(error) from error


def _next_message(ranks: Ranks) -> Any:
    try:
        return ranks.link.receive()
    except RuntimeError as error:
        raise ranks.watch.verdict(error) from error


def _failed(error: Exception) -> _Failed:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ValueError):
        return _Failed(ValueError(str(error)), text)
    if isinstance(error, OSError):
        return _Failed(OSError(error.errno, error.strerror, error.filename), text)
    return _Failed(error if hasattr(error, "exit_code") else None, text)


class LeadScorer:
    """`Scorer` by a model that all ranks hold."""

    def __init__(self, lead: Lead, number: int, costs: Costs) -> None:
        self._lead, self._number, self._costs = lead, number, costs

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        dealt = deal([self._costs.of_inputs(one) for one in batches], self._lead.ranks.num_ranks)
        with_tiles = any(one.num_tiles for one in batches)
        arguments = [(self._number, _chosen(batches, own), with_tiles) for own in dealt]
        return _in_order(self._lead.on_all("logprobs", _logprobs, arguments), dealt)


class LeadEngine:
    """`TrainEngine` over all ranks."""

    estimated = ""
    """the line about an update that the start of a run prints; `open_engine` sets it"""

    def __init__(
        self,
        lead: Lead,
        source: ModelSource,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        temperature: float = 1.0,
        barred_ids: Sequence[int] | None = None,
    ) -> None:
        """`total_steps` optimizer updates shape the schedule; `temperature` and `barred_ids` are the sampler's."""
        self.lead, self._number = lead, lead.new_number()
        settings = config, optimizer, total_steps, temperature, tuple(barred_ids) if barred_ids else None
        # The processes of DeepSpeed wait for each other in verbs in which those of FSDP2 do not.
        self._together = "" if isinstance(config, FsdpConfig) else " together"
        lead.on_all_alike(f"build{self._together}", _build, self._number, source, *settings)
        self._own: FsdpEngine | DeepspeedEngine = lead.here.held[self._number]
        self._costs = Costs.of(self._own.shape.config)
        self.before_update: list[Callable[[], None]] = []  # is called before gradients are made
        self._scorer = LeadScorer(lead, self._number, self._costs)

    @property
    def step_count(self) -> int:
        return self._own.step_count

    @property
    def shape(self) -> ModelShape:
        return self._own.shape

    @property
    def num_parts(self) -> int:
        return self.lead.ranks.num_ranks

    def described(self, start: str) -> list[str]:
        """Say in a few lines what trains, from which `start`, where, and what it takes of the memory for sure."""
        first, *others = self._own.described()
        return [f"model: {start}, {first}", *others, *([self.estimated] if self.estimated else [])]

    def accumulate(self, batches: Sequence[AnyBatch], loss: LossFn[AnyBatch], denominator: float) -> LossSums:
        for call in self.before_update:
            call()
        dealt = deal([self._costs.of_inputs(batch.inputs) for batch in batches], self.lead.ranks.num_ranks)
        with_tiles = any(batch.inputs.num_tiles for batch in batches)
        arguments = [(self._number, _chosen(batches, own), with_tiles, loss, denominator) for own in dealt]
        answers = self.lead.on_all("accumulate", _accumulate, arguments)
        return LossSums(tuple(_in_order([sums.parts for sums in answers], dealt)))

    def expect(self, batches: Sequence[Batch], how: OpenAhead) -> None:
        dealt = deal([self._costs.of_inputs(batch.inputs) for batch in batches], self.lead.ranks.num_ranks)
        own = [tuple(batches[number].inputs for number in numbers if number is not None) for numbers in dealt]
        self.lead.on_all("expect", _expect, [(self._number, inputs, how) for inputs in own])

    def step(self, rate_scale: float = 1.0) -> StepResult:
        return self.lead.on_all_alike("step", _step, self._number, rate_scale)[0]

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        return self._scorer.logprobs(batches)

    def embeddings(self, inputs: ModelInputs) -> Tensor:
        return self.lead.on_all_alike("embeddings", _embeddings, self._number, inputs)[0]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.lead.draw(self._number, None)

    def frozen(self) -> LeadScorer:
        number = self.lead.new_number()
        self.lead.on_all_alike("frozen", _frozen, self._number, number)
        return LeadScorer(self.lead, number, self._costs)

    def save(self, folder: Path) -> Digests:
        answers = self.lead.on_all_alike(f"save{self._together}", _save, self._number, str(folder.absolute()))
        return {name: digest for digests in answers for name, digest in digests.items()}

    def save_in_background(self, folder: Path) -> "LeadWriting":
        number = self.lead.new_number()
        self.lead.on_all_alike("begin saving", _begin_saving, self._number, number, str(folder.absolute()))
        return LeadWriting(self.lead, number)

    def load(self, folder: Path) -> None:
        self.lead.on_all_alike("check", _check, self._number, str(folder.absolute()))
        self.lead.on_all_alike(f"load{self._together}", _load, self._number, str(folder.absolute()))

    def export(self, folder: Path, processor: Processor, dtype: StoredDtype | str = StoredDtype.keep) -> None:
        self.lead.on_all_alike("adapters", _adapters, self._number, str(folder.absolute()))
        tensors = self.lead.draw(self._number, torch.float32)
        try:
            write_checkpoint(folder, self.shape.config, processor, tensors, dtype=dtype)
        finally:
            tensors.close()


class LeadWriting:
    """`Writing` by a thread of every rank."""

    def __init__(self, lead: Lead, number: int) -> None:
        self._lead, self._number = lead, number

    @property
    def is_ready(self) -> bool:
        return all(self._lead.on_all_alike("is saved", _is_saved, self._number))

    def wait(self) -> Digests:
        answers = self._lead.on_all_alike("end saving", _end_saving, self._number)
        return {name: digest for digests in answers for name, digest in digests.items()}


def _chosen(items: Sequence[Any], numbers: Sequence[int | None]) -> tuple[Any, ...]:
    return tuple(None if number is None else items[number] for number in numbers)


def _in_order(answers: Sequence[Sequence[Any]], dealt: Sequence[Sequence[int | None]]) -> list[Any]:
    """The ranks' results in the order of what was dealt."""
    numbers = [number for number in chain.from_iterable(dealt) if number is not None]
    found = dict(zip(numbers, chain.from_iterable(answers), strict=True))
    return [found[number] for number in sorted(found)]


def _build(here: Here, number: int, source: ModelSource, *settings: Any) -> None:
    if isinstance(here.ranks.config, DeepspeedConfig):
        from model.engine.deepspeed import DeepspeedEngine  # the library is optional

        here.held[number] = DeepspeedEngine(here.ranks, source, *settings)
    else:
        here.held[number] = FsdpEngine(here.ranks, source, *settings)


def _accumulate(here: Here, number: int, *arguments: Any) -> LossSums:
    return here.held[number].accumulate(*arguments)


def _expect(here: Here, number: int, inputs: Sequence[ModelInputs], how: OpenAhead) -> None:
    here.held[number].expect(inputs, how)


def _step(here: Here, number: int, rate_scale: float) -> StepResult:
    return here.held[number].step(rate_scale)


def _logprobs(here: Here, number: int, *arguments: Any) -> list[TokenScores]:
    return here.held[number].logprobs(*arguments)


def _embeddings(here: Here, number: int, inputs: ModelInputs) -> Tensor | None:
    found = here.held[number].embeddings(inputs)
    return found if here.ranks.rank == 0 else None


def _frozen(here: Here, number: int, new: int) -> None:
    here.held[new] = here.held[number].frozen()


def _adapters(here: Here, number: int, folder: str) -> None:
    here.held[number].export_adapters(Path(folder))


def _save(here: Here, number: int, folder: str) -> Digests:
    return here.held[number].save(Path(folder))


def _begin_saving(here: Here, number: int, new: int, folder: str) -> None:
    here.held[new] = here.held[number].save_in_background(Path(folder))


def _is_saved(here: Here, number: int) -> bool:
    return here.held[number].is_ready


def _end_saving(here: Here, number: int) -> Digests:
    return here.held.pop(number).wait()


def _check(here: Here, number: int, folder: str) -> None:
    here.held[number].check(Path(folder))


def _load(here: Here, number: int, folder: str) -> None:
    here.held[number].load(Path(folder))


def _draw(here: Here, number: int, dtype: torch.dtype | None) -> None:
    tensors = here.held[number].weights(dtype)
    if here.drawn is not None and dtype is None:
        here.drawn(tensors)
    deque(tensors, maxlen=0)  # to the end, and none of them is held
