"""Packed attention as one flex_attention kernel: no padding, no copy of a prefix for each of its branches.

The kernel is compiled on CUDA and skips every 128 x 128 block of the [T, T] plane in which nobody sees anybody. On CPU
it runs uncompiled and forward only, which is what tests compare with SDPA there.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.layout import Layout


class FlexAttention:
    """`PackedAttention` by torch's flex_attention."""

    def __init__(self, layout: Layout) -> None:
        self._mask = visibility(layout)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_packed(q, k, v, self._mask)

    @staticmethod
    def assert_supported(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
        """torch itself names what it cannot take; on CPU there is no backward pass."""


def visibility(layout: Layout) -> BlockMask:
    """Who sees whom among T packed tokens: earlier tokens of the own root, and of the own branch. [T, T] booleans
    exist for a moment (1 GiB at 32,768 tokens); made once a batch, for all layers."""
    root, branch = _owners(layout)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_branch = (branch[key] < 0) | (branch[key] == branch[query])
        return (root[query] == root[key]) & (key <= query) & same_branch

    length = root.shape[0]
    return create_block_mask(visible, None, None, length, length, device=root.device)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """q [T, H, K], k and v [T, Hkv, K] -> [T, H, K]; scale 1/sqrt(K)."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    kernel = _compiled() if q.is_cuda else flex_attention
    out = kernel(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.squeeze(0).transpose(0, 1)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _owners(layout: Layout) -> tuple[Tensor, Tensor]:
    """Root [T] and branch [T] (-1: none) of each packed token. A root's tokens stand before those of its branches."""
    num_roots, prefix = layout.root_tokens.shape
    first_branch_slot = num_roots * prefix
    slot = layout.slot_of_token
    if not layout.branch_root.numel():
        return slot // prefix, torch.full_like(slot, -1)
    branch = (slot - first_branch_slot).div(layout.branch_tokens.shape[1], rounding_mode="floor")
    root = torch.where(branch < 0, slot // prefix, layout.branch_root[branch.clamp(min=0)])
    return root, branch.clamp(min=-1)
