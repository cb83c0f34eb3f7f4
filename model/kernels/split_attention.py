"""Packed attention on CPU without padding or copies of a prefix: causal parts and prefix parts, merged by log-sum-exp.

Every root and every branch is one causal call of the CPU flash kernel on a slice of the packed tokens; the queries of
all branches of a root meet their shared prefix in one more call, without a mask. Two parts of one softmax are joined by
their log-sum-exp, and with the joint log-sum-exp the kernel's backward gives each part's share of the gradient. These
rows are worked on side by side, one CPU thread each: the kernel gains little from more threads on calls as small.

Short rows are masked products instead (`model.kernels.dense_attention`), one after the other with all threads: such
products do gain, and Python threads that issue many of them wait for each other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.kernels import dense_attention
from model.kernels.autograd import FunctionContext
from model.kernels.available import WIDE
from model.kernels.threads import each_on_one_thread
from model.layout import Layout, Piece, Span

# `scaled_dot_product_attention` calls this kernel on CPU. Called by its own name it also returns the log-sum-exp
# [B, H, L].
cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """q [T, H, K], k and v [T, Hkv, K] on CPU -> [T, H, K]; scale 1/sqrt(K)."""
    can_be_dense = q.dtype in WIDE  # others need sums in more bits than they have
    longest = dense_attention.LONGEST if can_be_dense else 0
    long_spans = [span for span in layout.spans if span.longest > longest]
    pieces = layout.short_pieces(longest, dense_attention.PIECE)
    return _SplitAttention.apply(q, k, v, long_spans, pieces, torch.is_grad_enabled())


class SplitAttention:
    """`PackedAttention` on CPU."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return split_attention(q, k, v, self._layout)

    @staticmethod
    def assert_supported(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
        """`ValueError` unless the tensors are on a CPU."""
        if device.type != "cpu":
            raise ValueError(f"attention_kernel: split is a CPU kernel, found the device {device}; use auto")


class _SplitAttention(torch.autograd.Function):
    """Works on [H, T, K]: a span of tokens is then a view that matrix products take as it is."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        long_spans: Sequence[Span],
        pieces: Sequence[Piece],
        is_trained: bool,
    ) -> Tensor:
        given, share = (q, k, v), q.shape[1] // k.shape[1]
        q, k, v = _by_head(q), _by_head(k, share), _by_head(v, share)
        out = torch.empty_like(q)
        weights: list[Tensor] = []  # attention weights, one tensor a piece
        log_mass = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))

        def causal(start: int, stop: int) -> None:
            own = (x[None, :, start:stop] for x in (q, k, v))
            part, mass = cpu_flash(*own, 0.0, True)
            out[:, start:stop], log_mass[:, start:stop] = part[0], mass[0]

        def attend(span: Span) -> None:
            causal(span.start, span.stop)
            for start, stop in span.branches:
                causal(start, stop)
            if span.end > span.stop:
                keys = (x[None, :, span.start : span.stop] for x in (k, v))
                part, mass = cpu_flash(q[None, :, span.stop : span.end], *keys, 0.0, False)
                _merge(out[:, span.stop : span.end], log_mass[:, span.stop : span.end], part[0], mass[0])

        for piece in pieces:
            own, keys = slice(piece.start, piece.stop), (piece.keys(k), piece.keys(v))
            out[:, own], kept = dense_attention.attend(q[:, own], *keys, piece.bias)
            if is_trained:
                weights.append(kept)
        each_on_one_thread(attend, long_spans)
        ctx.save_for_backward(*given, out, log_mass, *weights)
        ctx.long_spans, ctx.pieces, ctx.share = long_spans, pieces, share
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, out, log_mass, *weights = ctx.saved_tensors
        q, k, v, grad = _by_head(q), _by_head(k, ctx.share), _by_head(v, ctx.share), _by_head(grads[0])
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))

        def gradients(queries: slice, keys: slice, is_causal: bool) -> list[Tensor]:
            by_query = (grad[None, :, queries], q[None, :, queries])
            by_key = (k[None, :, keys], v[None, :, keys])
            mass = log_mass[None, :, queries]
            parts = _flash_backward(*by_query, *by_key, out[None, :, queries], mass, 0.0, is_causal)
            return [part[0] for part in parts]

        def attend(span: Span) -> None:
            for own in (slice(start, stop) for start, stop in ((span.start, span.stop), *span.branches)):
                grad_q[:, own], grad_k[:, own], grad_v[:, own] = gradients(own, own, True)
            if span.end > span.stop:
                prefix, branches = slice(span.start, span.stop), slice(span.stop, span.end)
                of_q, of_k, of_v = gradients(branches, prefix, False)
                grad_q[:, branches] += of_q
                grad_k[:, prefix] += of_k
                grad_v[:, prefix] += of_v

        for piece, kept in zip(ctx.pieces, weights, strict=True):
            own, keys = slice(piece.start, piece.stop), (piece.keys(k), piece.keys(v))
            of_q, of_k, of_v = dense_attention.gradients(grad[:, own], q[:, own], *keys, kept)
            length = piece.stop - piece.start
            grad_q[:, own], grad_k[:, own], grad_v[:, own] = of_q, of_k[:, -length:], of_v[:, -length:]
            if piece.prefix is not None:
                prefix = slice(*piece.prefix)
                grad_k[:, prefix] += of_k[:, :-length]
                grad_v[:, prefix] += of_v[:, :-length]
        each_on_one_thread(attend, ctx.long_spans)
        return _by_token(grad_q), _by_token(grad_k, ctx.share), _by_token(grad_v, ctx.share), None, None, None


def _by_head(x: Tensor, share: int = 1) -> Tensor:
    """Packed [T, H, K] -> [H * share, T, K], heads repeated `share` times."""
    return x.transpose(0, 1).unsqueeze(1).expand(-1, share, -1, -1).flatten(0, 1).contiguous()


def _by_token(grad: Tensor, share: int = 1) -> Tensor:
    """[H * share, T, K] -> [T, H, K], summed over repeated heads."""
    return (grad if share == 1 else grad.unflatten(0, (-1, share)).sum(1)).transpose(0, 1)


def _merge(out: Tensor, log_mass: Tensor, other: Tensor, other_log_mass: Tensor) -> None:
    """Join, in place, a softmax over some keys with one over others: [H, L, K], ln of the unnormalised mass [H, L]."""
    total = torch.logaddexp(log_mass, other_log_mass)
    out.mul_((log_mass - total).exp().unsqueeze(-1))
    out.addcmul_(other, (other_log_mass - total).exp().unsqueeze(-1).to(out.dtype))
    log_mass.copy_(total)
