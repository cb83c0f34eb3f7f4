"""Where to compute, and in which type."""

import torch

from model.engine.config import ComputeDtype, Device


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
