"""The verbs of a training engine, over whole lists of micro-batches; each is tested against `model.engine.local`.

One process leads: it alone runs the loop and calls these verbs. An engine over several processes deals the lists out
behind them, so its callers know no ranks. Nobody outside holds the model itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from model.batch import Batch, ModelInputs
from model.config import SailVL2Config, StoredDtype
from model.logprobs import TokenScores
from model.processing.opener import OpenAhead
from model.processing.processor import Processor
from model.run.manifest import Digests
from model.run.saving import Writing

AnyBatch = TypeVar("AnyBatch", bound=Batch)

LossFn = Callable[[TokenScores, AnyBatch], tuple[Tensor, dict[str, float]]]
"""(scores of the batch's N tokens, the batch) -> (SUM of the loss, figures for the log, which `LossSums` merges)."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient was not finite several steps in a row."""

    exit_code = 4


@dataclass(frozen=True)
class LossSums:
    """The figures of a loss, one set for each micro-batch of one or more `accumulate` calls, in their order.

    Example: two micro-batches that hold 3 and 5 trained tokens give `total()["tokens"] == 8.0`.
    """

    parts: tuple[Mapping[str, float], ...] = ()  # one a micro-batch; "loss" is its share of the update's loss

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(self.parts + other.parts)

    def total(self) -> dict[str, float]:
        """Every figure over all micro-batches: the sum; the extreme where its name ends in `_max` or `_min`.

        NaN stays NaN, whichever comes first.
        """
        totals: dict[str, float] = {}
        for part in self.parts:
            for name, value in part.items():
                totals[name] = _merged(name, totals[name], value) if name in totals else value
        return totals

    @property
    def not_finite(self) -> list[int]:
        """Numbers of the micro-batches whose loss is NaN or infinite."""
        return [i for i, part in enumerate(self.parts) if not -float("inf") < part["loss"] < float("inf")]


def _merged(name: str, one: float, other: float) -> float:
    if name.endswith("_max"):
        return one if one > other or one != one else other
    if name.endswith("_min"):
        return one if one < other or one != one else other
    return one + other


@dataclass(frozen=True)
class StepResult:
    """One optimizer update. `applied` is False when a non-finite loss or gradient was kept from the weights."""

    learning_rate: float  # the scheduled one times the scale that was asked for
    grad_norm: float  # before it was scaled down
    applied: bool
    tower_norms: dict[str, float] = field(default_factory=dict)  # norm of each tower's own gradient


@dataclass(frozen=True)
class ModelShape:
    """All that a sampler is built from: the model without its weights."""

    config: SailVL2Config
    dtype: torch.dtype  # dtype of the weights that `TrainEngine.weights` gives
    device: torch.device  # the trainer computes there


class Scorer(Protocol):
    """Scores tokens with weights that somebody else may or may not train. A frozen reference is one."""

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        """Scores of each batch's N tokens, without gradient, by exactly the arithmetic of training."""
        ...


class TrainEngine(Scorer, Protocol):
    """Owns the trained weights and the optimizer."""

    @property
    def step_count(self) -> int:
        """Optimizer updates so far, skipped ones included; the policy version."""
        ...

    @property
    def shape(self) -> ModelShape:
        """The model that computes, without its weights."""
        ...

    @property
    def num_parts(self) -> int:
        """A multiple of this many micro-batches of like cost keeps all processes of the engine busy."""
        ...

    def expect(self, batches: Sequence[Batch], how: OpenAhead) -> None:
        """Begin to open the images of micro-batches that `accumulate` will get, where that is done ahead."""
        ...

    def accumulate(self, batches: Sequence[AnyBatch], loss: LossFn[AnyBatch], denominator: float) -> LossSums:
        """Add the gradient of the loss's sum over all batches / `denominator`, which is that of the whole update."""
        ...

    def step(self, rate_scale: float = 1.0) -> StepResult:
        """Clip, check, update at `rate_scale` times the scheduled learning rate, and clear the gradient.

        `NonFiniteError` after too many skipped updates in a row.
        """
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(released name, whole tensor) sorted by name, in the dtype that computes.

        A tensor may be gone, or another's memory, when the next one is drawn. With sampling ahead they are drawn in the
        samplers' thread, while the thread that asked waits.
        """
        ...

    def embeddings(self, inputs: ModelInputs) -> Tensor:
        """The input of the decoder [T, D], visual tokens included; without gradient."""
        ...

    def frozen(self) -> Scorer:
        """A scorer with a copy of the present weights and no optimizer, for reference log-probabilities.

        Of a model with adapters it copies these alone, and computes by the same weights.
        """
        ...

    def save(self, folder: Path) -> Digests:
        """Write what `load` needs, tensor by tensor; returns the digests of the files written."""
        ...

    def save_in_background(self, folder: Path) -> Writing:
        """`save` of a copy of the present state, while the engine goes on. One at a time."""
        ...

    def load(self, folder: Path) -> None:
        """Restore weights, optimizer and schedule. `ValueError` for another setting that changes last bits."""
        ...

    def export(self, folder: Path, processor: Processor, dtype: StoredDtype | str = StoredDtype.keep) -> None:
        """Write a checkpoint folder in the released format, whole or not at all.

        Adapters are added to its weights, and stand alone in PEFT's format in `FOLDER_adapter`.
        """
        ...
