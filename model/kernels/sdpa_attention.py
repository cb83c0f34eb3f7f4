"""Attention by torch's `scaled_dot_product_attention`: of padded batches, and the portable way for packed rows.

Packed rows are padded here and unpadded again; exact for values and gradients on every device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.autograd import FunctionContext
from model.kernels.available import WIDE
from model.layout import Layout

SHORT = 80  # keys; up to here plain products beat the CPU flash kernel


class SdpaAttention:
    """`PackedAttention` on every device."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_padded(q, k, v, self._layout)

    @staticmethod
    def assert_supported(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
        """Every device, dtype and width is."""


def attend_padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """q [T, H, K], k and v [T, Hkv, K] -> [T, H, K]; scale 1/sqrt(K)."""
    if layout.is_plain:
        q, k, v = (x.unflatten(0, layout.root_tokens.shape).transpose(1, 2) for x in (q, k, v))
        return sdpa(q, k, v, None, is_causal=True).transpose(1, 2).flatten(0, 1)
    num_heads, num_kv_heads = q.shape[1], k.shape[1]
    slots = _Regroup.apply(
        torch.cat((q, k, v), dim=1),
        torch.cat((layout.root_tokens.flatten(), layout.branch_tokens.flatten())),
        layout.slot_of_token,
    )
    num_roots, prefix = layout.root_tokens.shape
    num_branches, length = layout.branch_tokens.shape
    split = (num_heads, num_kv_heads, num_kv_heads)
    root_slots = slots[: num_roots * prefix].unflatten(0, (num_roots, prefix)).transpose(1, 2)
    root_q, root_k, root_v = root_slots.split(split, dim=1)
    out = [sdpa(root_q, root_k, root_v, None, is_causal=True)]
    if num_branches:
        own_slots = slots[num_roots * prefix :].unflatten(0, (num_branches, length)).transpose(1, 2)
        own_q, own_k, own_v = own_slots.split(split, dim=1)
        branch_k = torch.cat((root_k.index_select(0, layout.branch_root), own_k), dim=2)
        branch_v = torch.cat((root_v.index_select(0, layout.branch_root), own_v), dim=2)
        out.append(sdpa(own_q, branch_k, branch_v, layout.branch_mask, is_causal=False))
    flat = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in out])
    return _Regroup.apply(flat, layout.slot_of_token, layout.token_of_slot)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """q [B, H, L, K], k and v [B, Hkv, S, K], mask True where allowed -> [B, H, L, K]; scale 1/sqrt(K).

    On CPU the flash kernel takes twice the time of plain products on short sequences (benchmarks/RESULTS.md).
    """
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    if q.device.type != "cpu" or k.shape[2] > SHORT or q.dtype not in WIDE:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


class _Regroup(torch.autograd.Function):
    """rows[index] whose backward is a gather too (every row is read by at most one real slot).

    A plain `rows[index]` accumulates gradients in an order that two CPU threads do not repeat.
    """

    @staticmethod
    def forward(ctx: FunctionContext, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        (grad,) = grads
        # One zero row stands behind the real ones: padding slots point at it.
        padded = torch.cat((grad, grad.new_zeros(1, *grad.shape[1:])))
        return padded.index_select(0, inverse), None, None
