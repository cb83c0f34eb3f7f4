"""The trainer's side of weight transfer: senders turn an update's tensors into handles for samplers."""

import secrets
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rollouts.weights.buffer import Place, WeightBuffer, lay_out
from rollouts.weights.handles import DirectHandle, IpcHandle, MappedHandle, TensorHandle


class WeightSender(Protocol):
    """Holds the present weights, also for samplers that are started later.

    A sender is made from a template whose tensors have a name, a shape and a dtype but no values.
    `rollouts.weights.sync.send` puts the tensors of an update.
    """

    @property
    def places(self) -> Mapping[str, Place]:
        """Every tensor of an update, under its released name."""
        ...

    def put(self, name: str, tensor: Tensor) -> None:
        """Take a tensor of the next update. It may change as soon as this returns, except with `DirectSender`."""
        ...

    def publish(self, samplers: Sequence[Hashable]) -> None:
        """Finish an update after its last tensor. These samplers are told of it next, at about the same time."""
        ...

    def tensor_handle(self, sampler: Hashable) -> TensorHandle:
        """Return what brings this sampler the weights that were published last."""
        ...

    def settle(self) -> None:
        """End the update that was published last, whether it went well or not."""
        ...

    def close(self) -> None: ...


class HostSender(WeightSender, Protocol):
    """A sender that holds the present weights in host memory."""

    def get(self, name: str) -> Tensor:
        """Return a view of what was put last under this name."""
        ...


class MemorySender:
    """Brings weights by shared memory to processes of one host. Each update is written over the one before."""

    def __init__(self, template: Mapping[str, Tensor]) -> None:
        self._buffer = WeightBuffer.create(*lay_out(template))
        self.places: Mapping[str, Place] = self._buffer.places

    def put(self, name: str, tensor: Tensor) -> None:
        self._buffer.put(name, tensor)

    def get(self, name: str) -> Tensor:
        """Return a view of what was put last under this name."""
        return self._buffer.get(name)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        pass  # the memory is shared

    def tensor_handle(self, sampler: Hashable) -> MappedHandle:
        return MappedHandle.of(self._buffer)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._buffer.close()


class FileSender:
    """Writes a file for each version into a folder that every host sees.

    The file of the version before is deleted, and the last one on closing. A run that is killed leaves its files.
    """

    def __init__(self, template: Mapping[str, Tensor], folder: Path) -> None:
        """Make room for the first version. `ValueError` if the folder cannot be written or has no room."""
        self._folder, self._run, self._number = folder, secrets.token_hex(4), 0
        self.places, self._size = lay_out(template)
        self._present: WeightBuffer | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._next: WeightBuffer | None = self._new_file()
        except OSError as error:
            raise ValueError(
                f"rollouts.pool.transfer_folder: expected a folder with room for the weights, found {folder}: {error}"
            ) from None

    def put(self, name: str, tensor: Tensor) -> None:
        if self._next is None:
            self._number += 1
            self._next = self._new_file()
        self._next.put(name, tensor)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        assert self._next is not None
        self._next.flush()
        if self._present is not None:
            _delete(self._present)
        self._present, self._next = self._next, None

    def tensor_handle(self, sampler: Hashable) -> MappedHandle:
        assert self._present is not None, "no weights were published yet"
        return MappedHandle.of(self._present)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        for buffer in (self._present, self._next):
            if buffer is not None:
                _delete(buffer)

    def _new_file(self) -> WeightBuffer:
        return WeightBuffer.create(self.places, self._size, self._folder / f"weights-{self._run}-{self._number}")


class DirectSender:
    """Lends the trainer's own tensors to a sampler in its process, without a copy.

    They must not change before `settle`; the sampler's proof names a tensor that did.
    """

    def __init__(self, template: Mapping[str, Tensor]) -> None:
        self.places, _ = lay_out(template)
        self._tensors: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor.detach()

    def publish(self, samplers: Sequence[Hashable]) -> None:
        pass

    def tensor_handle(self, sampler: Hashable) -> DirectHandle:
        return DirectHandle(dict(self._tensors))

    def settle(self) -> None:
        self._tensors = {}

    def close(self) -> None:
        self._tensors = {}


class IpcSender:
    """Keeps a copy of the weights in the trainer's GPU, which the processes of a sampler on the same host open once.

    It is tested between two processes on a GPU (`tests/gpu/test_ipc.py`), but not with vLLM's processes.
    """

    def __init__(self, template: Mapping[str, Tensor], device: torch.device) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        self.places, size = lay_out(template)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        rebuild, arguments = reduce_tensor(self._memory)
        self._tensor_handle = IpcHandle(rebuild, arguments, self.places)

    def put(self, name: str, tensor: Tensor) -> None:
        self.places[name].cut(self._memory).copy_(tensor)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        if self._memory.is_cuda:
            torch.cuda.synchronize(self._memory.device)

    def tensor_handle(self, sampler: Hashable) -> IpcHandle:
        return self._tensor_handle

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


def _delete(buffer: WeightBuffer) -> None:
    with suppress(FileNotFoundError):
        Path(buffer.path).unlink()
    buffer.close()
