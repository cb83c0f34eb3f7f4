"""Objects between the processes of one engine: rank 0 leads and sends, the others answer.

Tensors travel beside the pickled object, so that they are not copied into it. Every process of an engine runs the
same code for the same user, so unpickling is no more trust than running the command.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

dist: Any = torch.distributed  # which functions it has depends on how torch was built
_SMALL_BYTES = 1 << 20
"""Tensors up to this size travel together in one message."""


class Link:
    """Sends and receives over a group of processes whose messages are tensors in host memory."""

    def __init__(self, rank: int, num_ranks: int, group: object) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._group = group

    def send(self, messages: Sequence[object]) -> None:
        """Send the other ranks a message each, those of ranks 1, 2 and so on. Equal objects are packed once."""
        packed: dict[int, list[Tensor]] = {}
        waiting = []
        for rank, message in enumerate(messages, 1):
            if id(message) not in packed:
                packed[id(message)] = _pack(message)
            waiting += [dist.isend(tensor, rank, self._group) for tensor in packed[id(message)]]
        for work in waiting:
            work.wait()

    def receive(self) -> Any:
        """Wait for what rank 0 sends."""
        return self._receive_from(0)

    def reply(self, message: object) -> None:
        """Send rank 0 a message."""
        for tensor in _pack(message):
            dist.send(tensor, 0, self._group)

    def replies(self) -> list[Any]:
        """Wait for the replies of ranks 1, 2 and so on."""
        return [self._receive_from(rank) for rank in range(1, self.num_ranks)]

    def _receive_from(self, rank: int) -> Any:
        sizes = torch.empty(2, dtype=torch.int64)
        dist.recv(sizes, rank, self._group)
        length, joined = sizes.tolist()
        content = torch.empty(length + joined, dtype=torch.uint8)
        dist.recv(content, rank, self._group)
        return _Unpickler(content, length, lambda tensor: dist.recv(tensor, rank, self._group)).load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and notes their types and shapes in their places."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, Tensor):
            return None
        plain = obj.detach().to("cpu").reshape(-1)
        if plain.stride(0) != 1:  # that of one number, or of none, may be anything
            plain = torch.empty_like(plain, memory_format=torch.contiguous_format).copy_(plain)
        self.tensors.append(plain.view(torch.uint8))
        return plain.dtype, tuple(obj.shape), self.tensors[-1].numel()


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: Tensor, length: int, receive: Any) -> None:
        super().__init__(io.BytesIO(content[:length].numpy().data))
        self._small, self._receive = content[length:], receive
        self._used = 0

    def persistent_load(self, pid: Any) -> Tensor:
        """Take the next tensor; they come in the order in which they were pickled."""
        dtype, shape, size = pid
        if size <= _SMALL_BYTES:
            tensor = self._small[self._used : self._used + size].clone()  # aligned, and free of the message
            self._used += size
        else:
            self._receive(tensor := torch.empty(size, dtype=torch.uint8))
        return tensor.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def _pack(message: object) -> list[Tensor]:
    """The tensors of a message: its sizes, the pickled object with all small tensors behind it, each large tensor."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(message)
    body = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
    small = [tensor for tensor in pickler.tensors if tensor.numel() <= _SMALL_BYTES]
    large = [tensor for tensor in pickler.tensors if tensor.numel() > _SMALL_BYTES]
    content = torch.cat([body, *small]) if small else body
    sizes = torch.tensor([body.numel(), content.numel() - body.numel()])
    return [sizes, content, *large]
