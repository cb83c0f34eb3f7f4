"""Weights in memory that processes share, or in a file that they map: written by the trainer, read by its samplers."""

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Where a tensor stands."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, memory: Any) -> Tensor:
        """The tensor in `memory`, a buffer of bytes."""
        count = torch.Size(self.shape).numel()
        return torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset).view(self.shape)

    def cut(self, memory: Tensor) -> Tensor:
        """The tensor in `memory` [bytes] uint8."""
        num_bytes = torch.Size(self.shape).numel() * self.dtype.itemsize
        return memory[self.offset : self.offset + num_bytes].view(self.dtype).view(self.shape)


def lay_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Place], int]:
    """A place for each, and the bytes that all of them need."""
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = Place(size, tuple(tensor.shape), tensor.dtype)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, size


def place_of(name: str, tensor: Tensor, places: Mapping[str, Place]) -> Place:
    """`ValueError` if there is none that fits."""
    place = places.get(name)
    if place is not None and (place.shape, place.dtype) == (tuple(tensor.shape), tensor.dtype):
        return place
    expected = "no tensor of this name" if place is None else f"{list(place.shape)} {place.dtype}"
    raise ValueError(
        f"weights: {name}: expected {expected}, found {list(tensor.shape)} {tensor.dtype}; a sampler keeps the "
        "architecture and the dtype that it was started with"
    )


class WeightBuffer:
    """Named tensors in anonymous shared memory, which is gone when the last process that holds it is, or in a file."""

    def __init__(
        self, descriptor: int, places: Mapping[str, Place], size: int, path: str = "", access: int = mmap.ACCESS_WRITE
    ) -> None:
        """Attach to memory that `create` made; `path` if it is a file."""
        self.descriptor, self.places, self.size = descriptor, dict(places), size
        self._path = path
        self._memory = memory = mmap.mmap(descriptor, size, access=access)
        self._tensors = {name: place.view(memory) for name, place in self.places.items()}

    @classmethod
    def open(cls, path: str, places: Mapping[str, Place], size: int) -> "WeightBuffer":
        """Attach to another process's memory, under the `path` that it gave, to read it. `OSError` or `ValueError` if
        it is not there, or smaller."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return cls(descriptor, places, size, path, mmap.ACCESS_COPY)  # torch wants to be able to write
        finally:
            os.close(descriptor)  # what is mapped stays

    @property
    def path(self) -> str:
        """Where other processes of this user on this host find the memory, while this process holds it."""
        return self._path or f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @classmethod
    def create(cls, tensors: Mapping[str, Tensor], file: Path | None = None) -> "WeightBuffer":
        """Room for these tensors, and their values. `OSError` if a new `file` cannot be made or has no room."""
        places, size = lay_out(tensors)
        buffer = cls.with_room(places, size, file)
        for name, tensor in tensors.items():
            buffer.put(name, tensor)
        return buffer

    @classmethod
    def with_room(cls, places: Mapping[str, Place], size: int, file: Path | None = None) -> "WeightBuffer":
        """As `create`, without values."""
        if file is None:
            descriptor = os.memfd_create("weights")
            os.truncate(descriptor, size)
            return cls(descriptor, places, size)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a full disk would end the process when it is written to
            return cls(descriptor, places, size, str(file))
        except OSError as error:
            os.close(descriptor)
            file.unlink()
            raise OSError(error.errno, error.strerror, str(file)) from None

    def close(self) -> None:
        """No other process can attach from here on; those that have keep the memory."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def put(self, name: str, tensor: Tensor) -> None:
        """`ValueError` for a tensor that the buffer was not made for."""
        place_of(name, tensor, self.places)
        if self._tensors[name].data_ptr() != tensor.data_ptr():
            self._tensors[name].copy_(tensor)

    def flush(self) -> None:
        """Bring what was put to the file."""
        self._memory.flush()

    def copy_bytes(self) -> np.ndarray:
        """[size] uint8: what the memory holds now, each tensor at its place."""
        return np.frombuffer(self._memory, np.uint8).copy()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Views of the memory: they change when it is written."""
        return iter(self._tensors.items())

    def get(self, name: str) -> Tensor:
        return self._tensors[name]
