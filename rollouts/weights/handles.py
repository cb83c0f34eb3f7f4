"""Handles that bring the weights of one policy version to a sampler: plain data that a process opens where it is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rollouts.weights.buffer import Place, WeightBuffer


class WeightsLost(RuntimeError):
    """Not all tensors came. The sampler is as it was, and can be sent them in another way."""


class TensorHandle(Protocol):
    """Stands for all tensors of a policy version."""

    @property
    def seconds(self) -> float:
        """Seconds that opening may take beyond its own work, because it waits for other samplers."""
        ...

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors one after the other. They may change once the next update begins.

        Each process of a sampler opens the handle once; `rank` is its number among them. `RuntimeError` if the
        tensors cannot be had, `WeightsLost` if another way may still bring them.
        """
        ...


@dataclass(frozen=True)
class MappedHandle:
    """Weights in memory of a process of the same user and host, or in a file that every host sees."""

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


_opened: tuple[tuple[object, ...], Tensor] | None = None
"""The memory of a GPU that this process opened last, and the arguments that it was opened with."""


@dataclass(frozen=True)
class IpcHandle:
    """Weights in memory of a GPU, for processes of the same host that see it under the same number (CUDA IPC)."""

    rebuild: Callable[..., Tensor]  # makes a tensor of the memory from `arguments`
    arguments: tuple[object, ...]  # the handle of a uint8 tensor of all bytes
    places: Mapping[str, Place]
    seconds: float = 0.0

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        global _opened
        if _opened is None or _opened[0] != self.arguments:  # once per memory, because the sender counts openings
            _opened = self.arguments, self.rebuild(*self.arguments)
        for name, place in self.places.items():
            yield name, place.cut(_opened[1])
