"""Weights in shared memory or in a mapped file. The trainer writes them and its samplers read them."""

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Says where a tensor stands in a block of memory."""

    offset: int  # bytes from the start of the memory
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, memory: mmap.mmap | np.ndarray) -> Tensor:
        """Return the tensor in `memory`, a buffer of bytes, without a copy."""
        count = torch.Size(self.shape).numel()
        return torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset).view(self.shape)

    def cut(self, memory: Tensor) -> Tensor:
        """Return the tensor in `memory` [bytes] uint8, without a copy."""
        num_bytes = torch.Size(self.shape).numel() * self.dtype.itemsize
        return memory[self.offset : self.offset + num_bytes].view(self.dtype).view(self.shape)


def lay_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Place], int]:
    """Return a place for each tensor, and the bytes that all of them need. Only shapes and dtypes are looked at."""
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = Place(size, tuple(tensor.shape), tensor.dtype)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, size


def place_of(name: str, tensor: Tensor, places: Mapping[str, Place]) -> Place:
    """Return the place of a tensor. `ValueError` if there is none, or one of another shape or dtype."""
    place = places.get(name)
    if place is not None and (place.shape, place.dtype) == (tuple(tensor.shape), tensor.dtype):
        return place
    expected = "no tensor of this name" if place is None else f"{list(place.shape)} {place.dtype}"
    raise ValueError(
        f"weights: {name}: expected {expected}, found {list(tensor.shape)} {tensor.dtype}; a sampler keeps the "
        "architecture and the dtype that it was started with"
    )


class WeightBuffer:
    """Holds named tensors in a file or in anonymous shared memory, which ends with the last process that holds it."""

    def __init__(
        self, descriptor: int, places: Mapping[str, Place], size: int, path: str = "", access: int = mmap.ACCESS_WRITE
    ) -> None:
        """Attach to memory that `create` made. `path` is given if it is a file."""
        self.descriptor, self.places, self.size = descriptor, dict(places), size
        self._path = path
        self._memory = memory = mmap.mmap(descriptor, size, access=access)
        self._tensors = {name: place.view(memory) for name, place in self.places.items()}

    @classmethod
    def open(cls, path: str, places: Mapping[str, Place], size: int) -> "WeightBuffer":
        """Attach to another process's memory to read it, under the `path` that the process gave.

        `OSError` or `ValueError` if the memory is not there or is smaller.
        """
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return cls(descriptor, places, size, path, mmap.ACCESS_COPY)  # torch asks for writable memory
        finally:
            os.close(descriptor)  # the mapping itself stays open

    @property
    def path(self) -> str:
        """The path under which other processes of this user and host find the memory while this process holds it."""
        return self._path or f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @classmethod
    def create(cls, places: Mapping[str, Place], size: int, file: Path | None = None) -> "WeightBuffer":
        """Make room for tensors at these places. `OSError` if a new `file` cannot be made or has no room."""
        if file is None:
            descriptor = os.memfd_create("weights")
            os.truncate(descriptor, size)
            return cls(descriptor, places, size)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # otherwise a full disk ends the process at the first write
            return cls(descriptor, places, size, str(file))
        except OSError as error:
            os.close(descriptor)
            file.unlink()
            raise OSError(error.errno, error.strerror, str(file)) from None

    def close(self) -> None:
        """Let no other process attach from here on. Processes that are attached keep the memory."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def put(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor to its place. `ValueError` for a tensor that the buffer was not made for."""
        place_of(name, tensor, self.places)
        if self._tensors[name].data_ptr() != tensor.data_ptr():
            self._tensors[name].copy_(tensor)

    def flush(self) -> None:
        """Write everything that was put to the file."""
        self._memory.flush()

    def copy_bytes(self) -> np.ndarray:
        """Copy the whole memory, with each tensor at its place. [size] uint8"""
        return np.frombuffer(self._memory, np.uint8).copy()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over views of the memory, which change when it is written."""
        return iter(self._tensors.items())

    def get(self, name: str) -> Tensor:
        return self._tensors[name]
