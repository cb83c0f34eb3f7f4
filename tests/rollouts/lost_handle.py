"""A handle that only some of a sampler's processes get."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rollouts.weights.handles import TensorHandle, WeightsLost


@dataclass(frozen=True)
class HalfLost:
    whole: TensorHandle
    lost_by: int  # rank
    seconds: float = 0.0

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        if rank == self.lost_by:
            raise WeightsLost("weights: lost on the way")
        return self.whole.open(rank)
