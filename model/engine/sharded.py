"""The common part of engines over several processes: the loop over micro-batches, scoring, and checkpoints by rows.

Every process makes the same calls at the same time, with micro-batches of its own; `model.engine.lead` sees to that.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.batch import Batch, ModelInputs
from model.config import AttentionKernel
from model.engine.base import LossFn, LossSums, ModelShape
from model.engine.parts import Fillers
from model.engine.ranks import Ranks
from model.engine.shards import MOMENTS, STATE, WEIGHTS, Shard, StoredShards, write_shards
from model.engine.updates import UpdateCount, say_other_ranks
from model.engine.watch import RankFailure, out_of_memory
from model.json_values import read_json_object
from model.logprobs import TokenScores
from model.processing.opener import ImageOpener, OpenAhead
from model.run.durable import write_stream
from model.run.failpoints import reach
from model.run.manifest import Digests
from model.run.saving import Writing
from model.run.state import State
from model.sail_vl2 import SailVL2

Part = tuple[Batch | None, ...]
"""The micro-batches of one rank; None where it has one fewer than others."""


class ShardedScorer:
    """Log-probabilities by a model that several processes hold together, on all of them at once."""

    def __init__(
        self,
        model: SailVL2,
        ranks: Ranks,
        dtype: torch.dtype,
        temperature: float,
        barred_ids: Sequence[int] | None,
        attention: AttentionKernel,
        forward: Callable[..., TokenScores] | None = None,
    ) -> None:
        """`dtype` is the number type that computes; `temperature` and `barred_ids` are the sampler's.

        `forward` is called in place of the model where a library wraps it.
        """
        self.model, self._ranks, self._dtype = model, ranks, dtype
        self.settings = temperature, barred_ids, attention
        self._temperature, self._attention = temperature, attention
        self._barred_ids = torch.tensor(barred_ids, device=ranks.device) if barred_ids else None
        self._forward = model if forward is None else forward
        self.fillers = Fillers(model.config)

    def scores(self, inputs: ModelInputs) -> TokenScores:
        """Scores of inputs on the model's device, with gradient where that is enabled."""
        return self._forward(inputs, self._temperature, self._barred_ids, self._attention)

    @torch.no_grad()
    def logprobs(self, inputs: Sequence[ModelInputs | None], with_tiles: bool) -> list[TokenScores]:
        """Scores of this rank's inputs; `with_tiles` says that some rank has images."""
        found = []
        for number, one in enumerate(inputs):
            self._ranks.watch.marks.at(f"micro-batch {number + 1} of {len(inputs)}")
            whole = self.fillers.inputs(with_tiles) if one is None else one
            whole = self.fillers.with_tile(whole) if with_tiles else whole
            with naming_memory(number, len(inputs), whole):
                scores = self.scores(whole.to(self._ranks.device))
            if one is not None:
                found.append(scores)
        return found


class ShardedEngine(ABC):
    """The part of one process in `TrainEngine`'s verbs. `Lead` and `follow` call it on all of them alike.

    A library of sharded training gives it the model, the backward pass, the update, and the rows of this process.
    """

    model: SailVL2
    ranks: Ranks
    _dtype: torch.dtype
    _scorer: ShardedScorer
    _updates: UpdateCount
    _loss_is_finite: bool
    _opener: ImageOpener | None = None

    @property
    def step_count(self) -> int:
        return self._updates.step_count

    @property
    def shape(self) -> ModelShape:
        return ModelShape(self.model.config, self._dtype, self.ranks.device)

    def expect(self, inputs: Sequence[ModelInputs], how: OpenAhead) -> None:
        """Begin to open the images of micro-batches of this rank, which `accumulate` will get in this order."""
        self._opener = self._opener or ImageOpener()
        self._opener.begin(inputs, how)

    def close(self) -> None:
        """End the processes that open images."""
        if self._opener:
            self._opener.close()

    def accumulate(self, part: Part, with_tiles: bool, loss: LossFn, denominator: float) -> LossSums:
        """Add the gradient of this rank's micro-batches. `with_tiles` says that some rank has images."""
        figures = []
        for number, batch in enumerate(opened_ahead(part, self._opener)):
            self.ranks.watch.marks.at(f"micro-batch {number + 1} of {len(part)}")
            self._before_micro_batch(number + 1 == len(part), with_tiles)
            inputs = self._scorer.fillers.inputs(with_tiles) if batch is None else batch.inputs
            with naming_memory(number, len(part), inputs):
                figure = self._accumulate(batch, inputs, with_tiles, loss, denominator)
            figures += [] if figure is None else [figure]
            reach("accumulate")
        if self._opener and figures:
            figures[0] = {**figures[0], **self._opener.take_figures()}
        return LossSums(tuple(figures))

    def logprobs(self, inputs: Sequence[ModelInputs | None], with_tiles: bool) -> list[TokenScores]:
        return self._scorer.logprobs(inputs, with_tiles)

    def save(self, folder: Path) -> Digests:
        """Write this rank's shards; rank 0 also what the engine is at."""
        if not folder.is_dir():
            raise ValueError(
                f"run.dir: expected a folder that all ranks see, found no {folder} on rank {self.ranks.rank}"
            )
        written = self._write(folder) if self.ranks.writes else {}
        return {**written, **self._write_state(folder, self._state())}

    def save_in_background(self, folder: Path) -> Writing:
        raise ValueError(
            "run.save_in_background: expected false with engine=deepspeed, whose processes gather what they save, "
            "found true; use engine=fsdp for it"
        )

    def check(self, folder: Path) -> None:
        """`ValueError` for a saved state that does not fit; nothing is changed."""
        self._updates.check(read_json_object(folder / STATE), str(folder / STATE))
        StoredShards(folder, WEIGHTS).check(self._weight_shards())
        StoredShards(folder, MOMENTS).check(self._moment_shards())

    def load(self, folder: Path) -> None:
        """Go on from a saved state that was checked."""
        state = read_json_object(folder / STATE)
        if self._opener:
            self._opener.forget()
        self._fill(folder)
        self._updates.restore(state, says=self.ranks.rank == 0)
        if self.ranks.rank == 0:
            say_other_ranks(state, self.ranks.num_ranks)

    def _accumulate(
        self, batch: Batch | None, inputs: ModelInputs, with_tiles: bool, loss: LossFn, denominator: float
    ) -> dict[str, float] | None:
        device, marks = self.ranks.device, self.ranks.watch.marks
        inputs = self._scorer.fillers.with_tile(inputs) if with_tiles else inputs
        scores = self._scorer.scores(inputs.to(device))
        if batch is None:
            self._backward(scores.logprobs.sum())  # sums no token, so all gradients are 0
            return None
        marks.one()
        loss_sum, figures = loss(scores, batch.to(device))
        marks.one()
        self._loss_is_finite &= bool(torch.isfinite(loss_sum))
        # The libraries divide gradients by the number of ranks.
        self._backward(loss_sum * (self.ranks.num_ranks / denominator))
        return {**figures, "loss": loss_sum.item() / denominator}

    @abstractmethod
    def _before_micro_batch(self, is_last: bool, with_tiles: bool) -> None:
        """Prepare the library for a micro-batch, which may be the last one of this call."""
        ...

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    @abstractmethod
    def _weight_shards(self) -> Mapping[str, Shard]:
        """Return the rows of the weights that this process holds, or wants to read."""
        ...

    @abstractmethod
    def _moment_shards(self) -> Mapping[str, Shard]:
        """Return the rows of the moments that this process holds, or wants to read."""
        ...

    def _write(self, folder: Path) -> Digests:
        """Write this rank's rows of weights and moments."""
        part = self.ranks.shard, self.ranks.num_shards
        return {
            **write_shards(folder, WEIGHTS, self._weight_shards(), *part),
            **write_shards(folder, MOMENTS, self._moment_shards(), *part),
        }

    def _fill(self, folder: Path) -> None:
        """Copy the stored rows into weights and moments."""
        StoredShards(folder, WEIGHTS).fill(self._weight_shards())
        StoredShards(folder, MOMENTS).fill(self._moment_shards())

    def _state(self) -> State:
        return {**self._updates.state(), "num_ranks": self.ranks.num_ranks}

    def _write_state(self, folder: Path, state: State) -> Digests:
        """Rank 0 writes what the engine is at."""
        if self.ranks.rank:
            return {}
        return {STATE: write_stream(folder / STATE, [json.dumps(state).encode()])}

    def _mark_layers(self) -> None:
        """Count layers as progress, which tells a rank that is stuck from those that wait for it."""
        marks = self.ranks.watch.marks

        def mark(layer: nn.Module, inputs: object, output: object) -> None:
            marks.one()
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda gradient: marks.one())

        for layer in layers_of(self.model):
            layer.register_forward_hook(mark)


def opened_ahead(part: Part, opener: ImageOpener | None) -> Iterator[Batch | None]:
    """The micro-batches with their images open; those of the next one are opened while one is worked on.

    `opener` has those whose images it began to open before.
    """
    host = torch.device("cpu")

    def opened(batch: Batch) -> Batch:
        if opener is None:
            return batch.to(host)
        inputs = opener.opened(batch.inputs)
        return replace(batch, inputs=inputs).to(host)  # pyright: ignore[reportArgumentType]  (a dataclass)

    with ThreadPoolExecutor(1, "images") as thread:
        waiting = thread.submit(opened, part[0]) if part and part[0] is not None else None
        for following in (*part[1:], None):
            with nullcontext() if opener is None else opener.waiting():
                ready = None if waiting is None else waiting.result()
            waiting = None if following is None else thread.submit(opened, following)
            yield ready


class naming_memory:
    """Names the micro-batch in which memory ran out."""

    def __init__(self, number: int, count: int, inputs: ModelInputs) -> None:
        self._text = (
            f"out of memory in micro-batch {number + 1} of {count}, of {inputs.num_tokens} tokens and "
            f"{inputs.num_tiles} image tiles; lower engine.micro_batch_tokens, set engine.gradient_checkpointing=true, "
            "or use more processes"
        )

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and out_of_memory(error):
            raise RankFailure(self._text) from error


def layers_of(model: SailVL2) -> list[nn.Module]:
    """The blocks whose weights are gathered one after the other."""
    return [*model.vision_model.trunk.blocks, *model.language_model.model.layers]
