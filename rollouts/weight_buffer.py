"""Weights in memory that the processes of one host share: written by the trainer, read by its samplers."""

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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


class WeightBuffer:
    """Named tensors in anonymous shared memory, which is gone when the last process that holds it is."""

    def __init__(self, descriptor: int, places: Mapping[str, Place], size: int) -> None:
        """Attach to memory that `create` made."""
        self.descriptor, self.places, self.size = descriptor, dict(places), size
        self._memory = memory = mmap.mmap(descriptor, size)
        self._tensors: dict[str, Tensor] = {}
        for name, place in self.places.items():
            count = torch.Size(place.shape).numel()
            flat = torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset)
            self._tensors[name] = flat.view(place.shape)

    @classmethod
    def open(cls, path: str, places: Mapping[str, Place], size: int) -> "WeightBuffer":
        """Attach to another process's memory, under the `path` that it gave."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            return cls(descriptor, places, size)
        finally:
            os.close(descriptor)  # what is mapped stays

    @property
    def path(self) -> str:
        """Where other processes of this user on this host find the memory, while this process holds it."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @classmethod
    def create(cls, tensors: Mapping[str, Tensor]) -> "WeightBuffer":
        """Room for these tensors, and their values."""
        places, size = {}, 0
        for name, tensor in tensors.items():
            places[name] = Place(size, tuple(tensor.shape), tensor.dtype)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        descriptor = os.memfd_create("weights")
        os.truncate(descriptor, size)
        buffer = cls(descriptor, places, size)
        for name, tensor in tensors.items():
            buffer.put(name, tensor)
        return buffer

    def close(self) -> None:
        """No other process can attach from here on; those that have keep the memory."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def put(self, name: str, tensor: Tensor) -> None:
        """`ValueError` for a tensor that the buffer was not made for."""
        place = self.places.get(name)
        if place is None or (place.shape, place.dtype) != (tuple(tensor.shape), tensor.dtype):
            expected = "no tensor of this name" if place is None else f"{list(place.shape)} {place.dtype}"
            raise ValueError(
                f"weights: {name}: expected {expected}, found {list(tensor.shape)} {tensor.dtype}; a sampler keeps the "
                "architecture and the dtype that it was started with"
            )
        if self._tensors[name].data_ptr() != tensor.data_ptr():
            self._tensors[name].copy_(tensor)

    def copy_bytes(self) -> np.ndarray:
        """[size] uint8: what the memory holds now, each tensor at its place."""
        return np.frombuffer(self._memory, np.uint8).copy()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Views of the memory: they change when it is written."""
        return iter(self._tensors.items())

    def get(self, name: str) -> Tensor:
        return self._tensors[name]
