"""The trainer's side of weight transfer: what turns an update's tensors into handles for the samplers of a pool."""

import secrets
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rollouts.weights.buffer import WeightBuffer, lay_out, place_of
from rollouts.weights.handles import DirectHandle, IpcHandle, MappedHandle, TensorHandle


class WeightSender(Protocol):
    """Holds the present weights, for samplers that come later too."""

    def put(self, name: str, tensor: Tensor) -> None:
        """Take a tensor of the next update. It must not change before `settle`. `ValueError` for one that the samplers
        have no place for."""
        ...

    def publish(self, samplers: Sequence[Hashable]) -> None:
        """All tensors of an update were put; these samplers are told of it next, at about the same time."""
        ...

    def tensor_handle(self, sampler: Hashable) -> TensorHandle:
        """What brings this sampler the weights that were published last."""
        ...

    def settle(self) -> None:
        """The update that was published last is over, well or not."""
        ...

    def close(self) -> None: ...


class MemorySender:
    """Shared memory, for processes of one host: the next update is written over the one before."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._buffer = WeightBuffer.create(tensors)

    def put(self, name: str, tensor: Tensor) -> None:
        self._buffer.put(name, tensor)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        pass  # the memory is shared

    def tensor_handle(self, sampler: Hashable) -> MappedHandle:
        return MappedHandle.of(self._buffer)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._buffer.close()


class FileSender:
    """A file for each version, in a folder that every host sees; the one before is deleted, and the last on closing. A
    run that is killed leaves them."""

    def __init__(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """`ValueError` if nothing can be written there."""
        self._folder, self._run, self._number = folder, secrets.token_hex(4), 0
        self._next: WeightBuffer | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._present = WeightBuffer.create(tensors, self._file())
        except OSError as error:
            raise ValueError(
                f"rollouts.pool.transfer_folder: expected a folder with room for the weights, found {folder}: {error}"
            ) from None
        self._present.flush()

    def put(self, name: str, tensor: Tensor) -> None:
        if self._next is None:
            self._number += 1
            self._next = WeightBuffer.with_room(self._present.places, self._present.size, self._file())
        self._next.put(name, tensor)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        assert self._next is not None
        self._next.flush()
        _delete(self._present)
        self._present, self._next = self._next, None

    def tensor_handle(self, sampler: Hashable) -> MappedHandle:
        return MappedHandle.of(self._present)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        for buffer in (self._present, self._next):
            if buffer is not None:
                _delete(buffer)

    def _file(self) -> Path:
        return self._folder / f"weights-{self._run}-{self._number}"


class DirectSender:
    """The trainer's own tensors, for a sampler in its process."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._places, _ = lay_out(tensors)
        self._tensors = dict(tensors)

    def put(self, name: str, tensor: Tensor) -> None:
        place_of(name, tensor, self._places)
        self._tensors[name] = tensor

    def publish(self, samplers: Sequence[Hashable]) -> None:
        pass

    def tensor_handle(self, sampler: Hashable) -> DirectHandle:
        return DirectHandle({name: tensor.detach() for name, tensor in self._tensors.items()})

    def settle(self) -> None:
        self._tensors = {}

    def close(self) -> None:
        self._tensors = {}


class IpcSender:
    """A copy of the weights in the trainer's GPU, which the processes of a sampler on the same host open once. Tested
    between two processes on a GPU (`tests/gpu/test_ipc.py`), not with vLLM's."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        self._places, size = lay_out(tensors)
        device = next(iter(tensors.values())).device
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        rebuild, arguments = reduce_tensor(self._memory)
        self._tensor_handle = IpcHandle(rebuild, arguments, self._places)
        for name, tensor in tensors.items():
            self.put(name, tensor)
        self.publish([])

    def put(self, name: str, tensor: Tensor) -> None:
        place_of(name, tensor, self._places).cut(self._memory).copy_(tensor)

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
