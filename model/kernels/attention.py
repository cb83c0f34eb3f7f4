"""Attention over packed token rows whose completions share a prefix (`model.layout`): one dispatcher over the kernels.

| kernel | runs on |
|---|---|
| `sdpa` | every device; rows are padded |
| `split` | CPU; no padding, no copy of a prefix |
| `varlen` | NVIDIA GPUs from Ampere on, half precision |
| `flex` | NVIDIA GPUs from Ampere on; compiled |
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from model.config import AttentionKernel
from model.kernels.available import on_ampere
from model.kernels.sdpa_attention import SHORT, SdpaAttention
from model.kernels.split_attention import SplitAttention
from model.kernels.varlen_attention import VarlenAttention
from model.layout import Layout


class PackedAttention(Protocol):
    """One kernel, ready for the rows of one batch: what can be made once for all layers is made at construction."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, K], k and v [T, Hkv, K] -> [T, H, K]; scale 1/sqrt(K)."""
        ...


def packed_attention(wanted: AttentionKernel, layout: Layout, dtype: torch.dtype, head_dim: int) -> PackedAttention:
    """The wanted kernel for `layout`. `ValueError` where it does not run on the layout's device with these tensors.

    Rows of one length without branches need no kernel of their own: they take SDPA's causal one.
    """
    device = layout.slot_of_token.device
    kernel = fastest(device, dtype, head_dim, layout) if wanted is AttentionKernel.auto else wanted
    build = _KERNELS[kernel]()
    build.assert_supported(device, dtype, head_dim)
    return SdpaAttention(layout) if layout.is_plain else build(layout)


def fastest(device: torch.device, dtype: torch.dtype, head_dim: int, layout: Layout) -> AttentionKernel:
    """The fastest kernel that runs there (benchmarks/RESULTS.md)."""
    if device.type == "cpu":
        has_branches = any(span.branch_stops for span in layout.spans)
        return AttentionKernel.split if has_branches or layout.longest > SHORT else AttentionKernel.sdpa
    if VarlenAttention.is_supported(device, dtype, head_dim):
        return AttentionKernel.varlen
    has_flex = on_ampere(device) and head_dim >= 16 and not head_dim & (head_dim - 1)
    return AttentionKernel.flex if has_flex else AttentionKernel.sdpa


class _Build(Protocol):
    """A kernel's class."""

    def __call__(self, layout: Layout) -> PackedAttention: ...

    def assert_supported(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> None: ...


def _flex() -> _Build:
    # Imported here: it brings the compiler along, about a second of every process.
    from model.kernels.flex_attention import FlexAttention

    return FlexAttention


_KERNELS: dict[AttentionKernel, Callable[[], _Build]] = {
    AttentionKernel.sdpa: lambda: SdpaAttention,
    AttentionKernel.split: lambda: SplitAttention,
    AttentionKernel.varlen: lambda: VarlenAttention,
    AttentionKernel.flex: _flex,
}
