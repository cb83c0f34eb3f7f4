"""Attention over packed token rows whose completions share a prefix.

`Layout` says where the T packed tokens sit: *roots* are causal sequences of their own; *branches* continue a root and
see it and themselves only. A group of RL is one root (the prompt) with G branches; an ordinary sequence is a root
without branches. Portable reference: SDPA on padded batches, exact for values and gradients.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import AttentionKernel
from model.layers import has_triton, on_ampere

SHORT = 80  # keys; up to here plain products beat the CPU flash kernel
# What `scaled_dot_product_attention` calls on CPU; under its own name it returns the log-sum-exp [B, H, L] too.
cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Run:
    """Packed tokens start..stop of a root; its branches stand behind it, without gaps."""

    start: int
    stop: int
    branch_stops: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Behind the last branch."""
        return self.branch_stops[-1] if self.branch_stops else self.stop

    @property
    def branches(self) -> list[tuple[int, int]]:
        """(start, stop) of each."""
        return list(pairwise((self.stop, *self.branch_stops)))

    @property
    def longest(self) -> int:
        """Most keys that a token of it sees."""
        return self.stop - self.start + max((stop - start for start, stop in self.branches), default=0)

    def pieces(self, longest: int) -> list["Piece"]:
        """The root with its first branches, then further branches: pieces of `longest` tokens, or of one root or branch
        that is longer; the root of the first does not count."""
        cuts, start = [], self.stop
        for begin, end in self.branches:
            if end - start > longest and begin > self.stop:
                cuts.append(begin)
                start = begin
        found = []
        for start, stop in pairwise((self.start, *cuts, self.end)):
            places = torch.arange(start, stop)
            branch = torch.bucketize(places, torch.tensor((self.stop, *self.branch_stops)), right=True)
            sees = (places <= places[:, None]) & ((branch == 0) | (branch == branch[:, None]))
            prefix = None if start == self.start else (self.start, self.stop)
            if prefix is not None:
                sees = torch.cat((sees.new_ones(len(places), self.stop - self.start), sees), dim=1)
            found.append(Piece(start, stop, prefix, torch.zeros(sees.shape).masked_fill_(~sees, float("-inf"))))
        return found


@dataclass(frozen=True)
class Piece:
    """Packed tokens start..stop, of a root and branches or of branches alone, and all that they see."""

    start: int
    stop: int
    prefix: tuple[int, int] | None  # (start, stop) of the root, where it is not in the piece
    bias: Tensor  # [tokens, prefix + tokens] 0 where a token (row) sees another one (column), else -inf

    def keys(self, x: Tensor) -> Tensor:
        """x [H, T, K] -> what the piece sees of it [H, prefix + tokens, K]."""
        own = x[:, self.start : self.stop]
        return own if self.prefix is None else torch.cat((x[:, slice(*self.prefix)], own), dim=1)


@dataclass(frozen=True)
class Layout:
    """Slots of T packed tokens in padded roots [R, P] and padded branches [B, C]."""

    root_tokens: Tensor  # [R, P] token in each slot, 0 in padding
    branch_tokens: Tensor  # [B, C] token in each slot, 0 in padding; B may be 0
    branch_root: Tensor  # [B] the root each branch continues
    slot_of_token: Tensor  # [T] position in (roots flattened, then branches flattened)
    token_of_slot: Tensor  # [R*P + B*C] token of each slot, T (one past the end) in padding
    is_plain: bool  # roots of one length and no branches: tokens are slots, nothing need be moved
    runs: tuple[Run, ...]  # the same roots and branches as runs of packed tokens
    _pieces: dict[tuple[int, int], list[Piece]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def longest(self) -> int:
        """Most keys that a token sees."""
        return max((run.longest for run in self.runs), default=0)

    def short_pieces(self, longest: int, longest_piece: int) -> list[Piece]:
        """`Run.pieces` of every run whose tokens see at most `longest`; made once for all layers."""
        key = longest, longest_piece
        if key not in self._pieces:
            short = [run for run in self.runs if run.longest <= longest]
            self._pieces[key] = [piece for run in short for piece in run.pieces(longest_piece)]
        return self._pieces[key]

    @cached_property
    def branch_mask(self) -> Tensor:
        """[B, 1, C, P + C] True where a branch slot may attend; made when a kernel asks for it, once for all layers."""
        device, (_, prefix), (_, length) = self.branch_root.device, self.root_tokens.shape, self.branch_tokens.shape
        lengths = torch.tensor([run.stop - run.start for run in self.runs], device=device)[self.branch_root]
        to_prefix = (torch.arange(prefix, device=device) < lengths[:, None])[:, None].expand(-1, length, -1)
        to_own = torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(len(lengths), -1, -1)
        return torch.cat((to_prefix, to_own), dim=2).unsqueeze(1)


def pick_kernel(
    wanted: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int, layout: Layout
) -> AttentionKernel:
    """The kernel for packed rows: as wanted, or the fastest of the device.

    varlen takes half precision and head widths that are multiples of 8 up to 192; flex takes widths of 16, 32, 64 ...;
    on CPU split wins but for short sequences without branches.
    """
    takes = dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 192
    has_varlen = takes and on_ampere(device) and torch.backends.cuda.is_flash_attention_available()
    if wanted is AttentionKernel.split and device.type != "cpu":
        raise ValueError(f"attention_kernel: split is a CPU kernel, found the device {device}; use auto")
    if wanted is AttentionKernel.varlen and not has_varlen:
        raise ValueError(
            "attention_kernel: varlen needs a torch with flash attention, an NVIDIA GPU from Ampere on, float16 or "
            "bfloat16, and heads of a multiple of 8, at most 192, numbers; found "
            f"{device}, {str(dtype).removeprefix('torch.')}, {head_dim}; use auto"
        )
    if wanted is not AttentionKernel.auto:
        return wanted
    if device.type == "cpu":
        has_branches = any(run.branch_stops for run in layout.runs)
        return AttentionKernel.split if has_branches or layout.longest > SHORT else AttentionKernel.sdpa
    if has_varlen:
        return AttentionKernel.varlen
    has_flex = on_ampere(device) and head_dim >= 16 and not head_dim & (head_dim - 1)
    return AttentionKernel.flex if has_flex else AttentionKernel.sdpa


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
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


def has_decode_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `model.decode_kernels` runs there: heads of 16, 32 .. 256 numbers where there is Triton."""
    fits = dtype in (torch.float32, torch.float16, torch.bfloat16) and head_dim in (16, 32, 64, 128, 256)
    return fits and has_triton(device)


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
    if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64):
        out, mass = cpu_flash(q, k, v, 0.0, False, attn_mask=bias)
        return out, mass.unsqueeze(-1)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    mass = scores.logsumexp(-1, keepdim=True)
    return (scores - mass).exp_().to(q.dtype) @ v, mass


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """q [B, H, L, K], k and v [B, Hkv, S, K], mask True where allowed -> [B, H, L, K]; scale 1/sqrt(K).

    On CPU the flash kernel takes twice the time of plain products on short sequences (benchmarks/RESULTS.md).
    """
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    if q.device.type != "cpu" or k.shape[2] > SHORT or q.dtype not in (torch.float32, torch.float64):
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
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.num_out = index.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        (grad,) = grads
        # One zero row stands behind the real ones: padding slots point at it.
        padded = torch.cat((grad, grad.new_zeros(1, *grad.shape[1:])))
        return padded.index_select(0, inverse), None, None
