"""How the weights of one policy version come to a sampler: plain data that a process opens where it is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rollouts.weights.buffer import Place, WeightBuffer


class WeightsLost(RuntimeError):
    """Not all tensors came; the sampler is as it was, and can be sent them in another way."""


class TensorHandle(Protocol):
    """All tensors of a policy version."""

    @property
    def seconds(self) -> float:
        """That opening may take beyond its own work, because it waits for others."""
        ...

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        """The tensors, one after the other; they may change with the next handle. `rank` is the process's among those
        of one sampler, each of which opens the handle once. `RuntimeError` where they cannot be had."""
        ...


@dataclass(frozen=True)
class MappedHandle:
    """In memory of a process of the same user and host, or in a file that every host sees; see `WeightBuffer`."""

    path: str
    places: Mapping[str, Place]
    size: int
    seconds: float = 0.0

    @classmethod
    def of(cls, buffer: WeightBuffer) -> "MappedHandle":
        return cls(buffer.path, buffer.places, buffer.size)

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        try:
            return WeightBuffer.open(self.path, self.places, self.size).items()
        except (OSError, ValueError) as error:
            raise RuntimeError(f"weights: {self.path} cannot be read in this process: {error}") from None


@dataclass(frozen=True)
class DirectHandle:
    """The trainer's own tensors, for a sampler in its process."""

    tensors: Mapping[str, Tensor]
    seconds: float = 0.0

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())


_opened: tuple[tuple[Any, ...], Tensor] | None = None
"""Memory of a GPU that this process last opened, under its handle."""


@dataclass(frozen=True)
class IpcHandle:
    """In memory of a GPU, for processes of the same host that see that GPU under the same number (CUDA IPC)."""

    rebuild: Callable[..., Tensor]  # from
    arguments: tuple[Any, ...]  # [bytes] uint8
    places: Mapping[str, Place]
    seconds: float = 0.0

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        global _opened
        if _opened is None or _opened[0] != self.arguments:  # once: the sender counts openings
            _opened = self.arguments, self.rebuild(*self.arguments)
        for name, place in self.places.items():
            yield name, place.cut(_opened[1])
