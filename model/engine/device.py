"""Where to compute, in which type, and how a CPU is prepared."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import torch

from model.engine.config import ComputeDtype, Device

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pick_device(wanted: Device) -> torch.device:
    """`auto`: the GPU if there is one. `ValueError` when a GPU is asked for and none is found."""
    if wanted is Device.cuda and not torch.cuda.is_available():
        raise ValueError("device: expected a CUDA device, found none; use device=auto or cpu")
    on_gpu = wanted is not Device.cpu and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def pick_dtype(wanted: ComputeDtype, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on a GPU, float32 on CPU."""
    if wanted is ComputeDtype.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if wanted is ComputeDtype.bfloat16 else torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in the main memory, where the system's file cache counts as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):  # Linux
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def prepare_cpu(num_threads: int, keeps_freed: bool = True) -> None:
    """Make CPU arithmetic repeatable for a given thread count.

    `keeps_freed` keeps memory that is freed for the next tensors; otherwise large tensors give it back at once.
    """
    torch.set_num_threads(num_threads)
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # for library users: holds where MKL was not used before
    # The public torch.use_deterministic_algorithms does this too, and imports the whole compiler: 1.1 s a process.
    torch._C._set_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Filling fresh memory guards against reading it uninitialised; our code is tested for that, and it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    _keep_freed_memory() if keeps_freed else _return_freed_memory()


def _return_freed_memory() -> None:
    """Tensors of a MiB or more get pages of their own. Gathered layers, which come and go all the time, otherwise leave
    holes between what stays, and a process ends up with the memory of the whole model."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None and "GLIBC_TUNABLES" not in os.environ and set_option(_M_MMAP_THRESHOLD, 2**20):
        set_option(_M_TRIM_THRESHOLD, 2**20)


def _keep_freed_memory() -> None:
    """Pages that go back to the system come back zeroed, which takes its part of every step (benchmarks/RESULTS.md)."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    # Where the first is refused, the second alone would have every large tensor mapped anew.
    if set_option is not None and "GLIBC_TUNABLES" not in os.environ and set_option(_M_MMAP_THRESHOLD, 2**25):
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)
