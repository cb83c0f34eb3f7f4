"""What a training engine does; every engine is tested against `model.engine.local`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from model.batch import ModelInputs
from model.logprobs import TokenScores

LossFn = Callable[[TokenScores, Any], tuple[Tensor, dict[str, float]]]
"""(scores of the batch's N tokens, the batch) -> (SUM of the loss, sums for the log)."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient was not finite several steps in a row."""

    exit_code = 4


@dataclass(frozen=True)
class StepResult:
    """One optimizer update. `applied` is False when a non-finite loss or gradient was kept from the weights."""

    learning_rate: float
    grad_norm: float  # before it was scaled down
    applied: bool
    tower_norms: dict[str, float] = field(default_factory=dict)  # of each tower's own gradient


class TrainEngine(Protocol):
    """Owns the trained weights and the optimizer."""

    @property
    def step_count(self) -> int:
        """Optimizer updates so far, skipped ones included; the policy version."""
        ...

    def forward_backward(self, batch: Any, loss_fn: LossFn, denominator: float) -> dict[str, float]:
        """Add the gradient of loss_fn's sum / denominator; returns its sums for the log."""
        ...

    def logprobs(self, inputs: ModelInputs) -> TokenScores:
        """Scores without gradient, by exactly the arithmetic of `forward_backward`."""
        ...

    def step(self) -> StepResult:
        """Clip, check, update, and clear the gradient."""
        ...

    def save(self) -> dict[str, bytes]:
        """Files that restore weights, optimizer and schedule."""
        ...

    def load(self, files: dict[str, bytes]) -> None: ...

    def publish_weights(self) -> tuple[int, dict[str, Tensor]]:
        """(policy version, tensors under released names) for a sampler."""
        ...
