"""Attention of one new token of every completion over prefixes that are stored once per prompt."""

import torch
from torch import Tensor

from model.kernels.available import WIDE
from model.kernels.split_attention import cpu_flash


def decode_over_prefix(
    q: Tensor,
    prefix: tuple[Tensor, Tensor, Tensor | None],
    own: tuple[Tensor, Tensor, Tensor | None],
    cells: Tensor,
    group_size: int,
) -> Tensor:
    """One new token of R completions of N prompts, over prefixes that are stored once per prompt.

    q [R, H, K]; prefix: keys and values [N, Hkv, P, K] and a bias [N, 1, 1, P] of 0 or -inf; own: keys and values
    [R, Hkv, C, K] and on a GPU a bias [C]; cells [R]: prompt number * group_size + sibling number. Returns [R, H, K].

    Siblings meet their prefix in one product, in G places whether taken or not: so its arithmetic does not depend on
    which of them are still there.
    """
    keys, values, bias = prefix
    num_prompts, num_kv_heads, _, width = keys.shape
    share = q.shape[1] // num_kv_heads
    q = q.unflatten(1, (num_kv_heads, share))  # [R, Hkv, S, K]
    full = len(cells) == num_prompts * group_size
    grid = q if full else q.new_zeros(num_prompts * group_size, *q.shape[1:]).index_copy_(0, cells, q)
    by_prompt = grid.unflatten(0, (num_prompts, group_size)).transpose(1, 2).flatten(2, 3)  # [N, Hkv, G S, K]
    parts = _with_log_mass(by_prompt, keys, values, bias)
    shared, shared_mass = (part.unflatten(2, (group_size, share)).transpose(1, 2).flatten(0, 1) for part in parts)
    if not full:
        shared, shared_mass = shared.index_select(0, cells), shared_mass.index_select(0, cells)
    # The prefix enters the softmax over own tokens as one more key, whose score is its log mass. Softmax works row by
    # row: exp and sigmoid of a whole tensor round by where in it a number stands.
    own_keys, own_values = own[0].flatten(0, 1), own[1].flatten(0, 1)  # [R Hkv, C, K]
    scores = torch.baddbmm(q.new_zeros(()), q.flatten(0, 1), own_keys.mT, beta=0, alpha=width**-0.5)
    scores = scores.to(shared_mass.dtype)
    if own[2] is not None:
        scores = scores + own[2]
    weights = torch.cat((scores, shared_mass.flatten(0, 1)), dim=-1).softmax(-1).to(q.dtype)
    alone = torch.bmm(weights[..., :-1], own_values)
    return torch.addcmul(alone, weights[..., -1:], shared.flatten(0, 1)).view(len(q), -1, width)


def _with_log_mass(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of q [N, H, L, K] over k, v [N, H, P, K], and the logarithm of its unnormalised mass [N, H, L, 1]."""
    if q.device.type == "cpu" and q.dtype in WIDE:
        out, mass = cpu_flash(q, k, v, 0.0, False, attn_mask=bias)
        return out, mass.unsqueeze(-1)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    mass = scores.logsumexp(-1, keepdim=True)
    return (scores - mass).exp_().to(q.dtype) @ v, mass
