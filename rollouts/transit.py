"""Small tensors on their way between the host and a GPU that keeps working meanwhile."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without waiting for the device. On CPU it is returned as it is."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


class HostCopies:
    """Copies tensors to the host while the device keeps working. Tensors on CPU are not copied."""

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
