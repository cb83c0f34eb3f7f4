"""A parcel that only some of a sampler's processes get."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rollouts.parcels import Parcel, ParcelLost


@dataclass(frozen=True)
class HalfLost:
    whole: Parcel
    lost_by: int  # rank
    seconds: float = 0.0

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        if rank == self.lost_by:
            raise ParcelLost("weights: lost on the way")
        return self.whole.open(rank)
