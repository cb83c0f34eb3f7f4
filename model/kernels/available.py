"""Which kernels run on which device."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch

WIDE = (torch.float32, torch.float64)  # dtypes that sums may be made in
_SAMPLING = ContextVar("sampling", default=False)


@cache
def on_ampere(device: torch.device) -> bool:
    """Whether it is an NVIDIA GPU, Ampere or newer."""
    is_nvidia = device.type == "cuda" and bool(torch.version.cuda)
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def fits_decode_kernels(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `model.kernels.decode_kernels` takes them: heads of 16, 32 .. 256 numbers."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16) and head_dim in (16, 32, 64, 128, 256)


@contextmanager
def sampling() -> Iterator[None]:
    """Compute as a sampler: without anything for a backward pass, and with kernels of our own that have none."""
    token = _SAMPLING.set(True)
    try:
        with torch.inference_mode():
            yield
    finally:
        _SAMPLING.reset(token)


def for_sampling(device: torch.device) -> bool:
    """Whether kernels of our own that have no backward pass are meant: inside `sampling`.

    The trainer's log-probs have one arithmetic with and without gradient, and so do other users of the layers.
    """
    return _SAMPLING.get() and has_triton(device)


@cache
def has_triton(device: torch.device) -> bool:
    """Whether our kernels in Triton run there."""
    return on_ampere(device) and find_spec("triton") is not None
