"""Counts optimizer updates, those that were skipped too, and keeps the schedule: the same for every engine."""

import sys

import torch

from model.engine.base import NonFiniteError
from model.engine.config import EngineConfig, OptimizerConfig, Schedule
from model.engine.schedule import learning_rate_at
from model.run.state import State


class UpdateCount:
    """`step_count` updates of `total_steps` are done; the latest `skipped_in_a_row` of them changed no weight."""

    def __init__(
        self, config: EngineConfig, optimizer: OptimizerConfig, total_steps: int, dtype: torch.dtype, **model: object
    ) -> None:
        """`dtype` computes; `model` is what else a checkpoint must have been made with."""
        self.step_count = 0
        self._skipped_in_a_row = 0
        self._optimizer, self._total_steps = optimizer, total_steps
        self._max_skipped = config.max_skipped_updates
        # A continued run must share these with its checkpoint, because they change last bits.
        self._identity = {
            "num_threads": config.num_threads,
            "compute_dtype": str(dtype).removeprefix("torch."),
            **model,
        }

    def learning_rate(self, scale: float = 1.0) -> float:
        """That of the next update: `scale` times the scheduled one."""
        return scale * learning_rate_at(self.step_count, self._total_steps, self._optimizer)

    def add(self, applied: bool, norm: float) -> None:
        """Count an update with this gradient norm. `NonFiniteError` after too many in a row that were not applied."""
        self.step_count += 1
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= self._max_skipped:
            raise NonFiniteError(
                f"loss or gradient was not finite in {self._skipped_in_a_row} updates in a row (latest gradient norm "
                f"{norm}); the weights are those before them: lower optimizer.learning_rate or look at the data of "
                "these steps"
            )

    def state(self) -> State:
        counts = {"step_count": self.step_count, "skipped_in_a_row": self._skipped_in_a_row}
        return {**counts, "total_steps": self._total_steps, **self._identity}

    def check(self, state: State, where: str) -> None:
        """`ValueError` for a state that cannot be gone on from; `where` begins its message."""
        for name, ours in self._identity.items():
            if state.get(name) != ours:
                raise ValueError(
                    f"resume: {name}: the checkpoint was made with {state.get(name)}, this run has {ours}; "
                    f"use {state.get(name)} again, or start anew with run.start=fresh"
                )
        counts = [state.get("step_count"), state.get("skipped_in_a_row")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"{where}: expected step_count and skipped_in_a_row, 0 or more, found {counts}")

    def restore(self, state: State, says: bool = True) -> None:
        """Go on from a state that was checked; `says` warns where the learning rates are laid out for another end."""
        planned = state.get("total_steps")
        if says and planned != self._total_steps and self._optimizer.schedule is not Schedule.constant:
            print(
                f"resume: the learning rates are those of {self._total_steps} updates from here on; the checkpoint was "
                f"made in a run of {planned}",
                file=sys.stderr,
            )
        self.step_count, self._skipped_in_a_row = state["step_count"], state["skipped_in_a_row"]


def say_other_ranks(state: State, num_ranks: int) -> None:
    """Say once that the last bits may differ, where a checkpoint was made by another number of processes."""
    made_with = state.get("num_ranks", num_ranks)
    if made_with != num_ranks:
        print(
            f"resume: the checkpoint was made by {made_with} processes, this run has {num_ranks}: weights and moments "
            "are the same, and sums in another order change later results in their last digits",
            file=sys.stderr,
        )
