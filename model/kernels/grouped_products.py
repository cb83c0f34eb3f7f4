"""The matrix product of every expert with its own rows, in one call on a GPU or in a loop over experts."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNMENT = 16
"""Bytes by which the rows of both operands must be aligned: the kernel loads whole blocks of memory."""


def expert_products(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """x [N, D] sorted by expert, weights [E, F, D], `ends` [E] the row behind the last one of each expert -> [N, F]."""
    return grouped_products(x, weights, ends) if fits_grouped(x, weights) else looped_products(x, weights, ends)


def fits_grouped(x: Tensor, weights: Tensor) -> bool:
    """Whether one call serves all experts: in bfloat16 on an NVIDIA GPU of compute capability 9 or newer, for widths
    that are multiples of 8."""
    return (
        x.is_cuda
        and hasattr(F, "grouped_mm")
        and bool(torch.version.cuda)
        and x.dtype == weights.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
        and x.shape[0] > 0
        and all(width * x.element_size() % _ALIGNMENT == 0 for width in weights.shape[1:])
    )


def grouped_products(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Return the products by PyTorch's grouped kernel, which has a backward pass and never asks the host for counts."""
    return F.grouped_mm(x.contiguous(), weights.transpose(-2, -1), offs=ends.to(torch.int32))


def looped_products(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Return the products one expert after the other. This is the reference, and runs anywhere."""
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    pairs = zip(x.split(counts), weights.unbind(0), strict=True)
    products = [F.linear(rows, weight) for rows, weight in pairs if rows.shape[0]]
    return torch.cat(products) if products else x.new_zeros(0, weights.shape[1])
