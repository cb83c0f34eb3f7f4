"""Small tensors on their way between the host and a GPU that goes on working meanwhile."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Without waiting for what the device is at; on CPU as it is."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


class HostCopies:
    """Copies that are made while the device goes on; tensors on CPU are their own."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies, self._made = tensors, None
        if tensors[0].is_cuda:
            self._copies = tuple(torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors)
            for copy, x in zip(self._copies, tensors, strict=True):
                copy.copy_(x, non_blocking=True)
            self._made = torch.cuda.Event()
            self._made.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        if self._made is not None:
            self._made.synchronize()
        return self._copies
