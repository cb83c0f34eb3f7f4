"""How the weights of one policy version come to a sampler: plain data that a process opens where it is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rollouts.weight_buffer import Place, WeightBuffer

Shapes = dict[str, tuple[int, ...]]


class Parcel(Protocol):
    """All tensors of a policy version."""

    @property
    def shapes(self) -> Shapes:
        """By released name."""
        ...

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        """The tensors, one after the other; each is whole when it is given, and may be gone with the next parcel.
        `rank` is the process's among those of one sampler, each of which opens the parcel once. `RuntimeError` where
        they did not come."""
        ...


@dataclass(frozen=True)
class MappedParcel:
    """In memory of a process of the same user and host, or in a file that every host sees; see `WeightBuffer`."""

    path: str
    places: Mapping[str, Place]
    size: int

    @classmethod
    def of(cls, buffer: WeightBuffer) -> "MappedParcel":
        return cls(buffer.path, buffer.places, buffer.size)

    @property
    def shapes(self) -> Shapes:
        return {name: place.shape for name, place in self.places.items()}

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        try:
            return WeightBuffer.open(self.path, self.places, self.size).items()
        except (OSError, ValueError) as error:
            raise RuntimeError(f"weights: {self.path} cannot be read in this process: {error}") from None


@dataclass(frozen=True)
class HandedParcel:
    """The trainer's own tensors, for a sampler in its process."""

    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> Shapes:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())


@dataclass(frozen=True)
class IpcParcel:
    """The trainer's own tensors in the memory of a GPU, for processes of the same host that see that GPU under the same
    number (CUDA IPC). Not verified: no GPU ran it yet."""

    handles: Mapping[str, tuple[Callable[..., Tensor], tuple[Any, ...]]]
    shapes: Shapes

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "IpcParcel":
        """The tensors must stay as they are until every process has opened the parcel. `ValueError` for one on CPU."""
        from torch.multiprocessing.reductions import reduce_tensor

        elsewhere = sorted(name for name, tensor in tensors.items() if not tensor.is_cuda)
        if elsewhere:
            raise ValueError(
                f"rollouts.pool.transfer=ipc: expected tensors on a GPU, found {elsewhere[0]} on "
                f"{tensors[elsewhere[0]].device}; use rollouts.pool.transfer=memory"
            )
        handles = {name: reduce_tensor(tensor.detach().contiguous()) for name, tensor in tensors.items()}
        return cls(handles, HandedParcel(tensors).shapes)

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        for name, (rebuild, arguments) in self.handles.items():
            yield name, rebuild(*arguments)
