"""Packed attention on CPU without padding or copies of a prefix: causal parts and prefix parts, merged by log-sum-exp.

Every root and every branch is one causal call of the CPU flash kernel on a slice of the packed tokens; the queries of
all branches of a root meet their shared prefix in one more call, without a mask. Two parts of one softmax are joined by
their log-sum-exp, and with the joint log-sum-exp the kernel's backward gives each part's share of the gradient. Short
rows are masked products instead (`model.dense_attention`). Rows are worked on side by side, one CPU thread each: the
kernel itself gains little from more threads on calls as small as these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model import dense_attention
from model.attention import Layout, Run, cpu_flash
from model.layers import WIDE
from model.threads import each_on_one_thread

_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """q [T, H, K], k and v [T, Hkv, K] on CPU -> [T, H, K]; scale 1/sqrt(K)."""
    can_be_dense = q.dtype in WIDE  # others need sums in more bits than they have
    biases = layout.short_biases(dense_attention.LONGEST if can_be_dense else 0)
    return _SplitAttention.apply(q, k, v, layout.runs, biases)


class _SplitAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, runs: Sequence[Run], biases: Mapping[int, Tensor]) -> Tensor:
        share = q.shape[1] // k.shape[1]
        all_k, all_v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        weights = dict.fromkeys(biases, out)  # of short rows
        log_mass = q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))

        def causal(start: int, stop: int) -> None:
            part, mass = cpu_flash(
                _part(q, start, stop), _part(all_k, start, stop), _part(all_v, start, stop), 0.0, True
            )
            out[start:stop] = _packed(part)
            log_mass[:, start:stop] = mass[0]

        def attend(run: Run) -> None:
            if run.start in biases:
                row = slice(run.start, run.end)
                out[row], weights[run.start] = dense_attention.attend(q[row], k[row], v[row], biases[run.start])
                return
            causal(run.start, run.stop)
            for start, stop in run.branches:
                causal(start, stop)
            if run.end > run.stop:
                prefix = slice(run.start, run.stop)
                keys = (_part(x, prefix.start, prefix.stop) for x in (all_k, all_v))
                part, mass = cpu_flash(_part(q, run.stop, run.end), *keys, 0.0, False)
                _merge(out[run.stop : run.end], log_mass[:, run.stop : run.end], _packed(part), mass[0])

        each_on_one_thread(attend, runs)
        ctx.save_for_backward(q, k, v, out, log_mass, *weights.values())
        ctx.runs, ctx.short = runs, list(weights)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad,) = grads
        q, k, v, out, log_mass, *kept = ctx.saved_tensors
        weights = dict(zip(ctx.short, kept, strict=True))
        share = q.shape[1] // k.shape[1]
        all_k, all_v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))

        def gradients(queries: tuple[int, int], keys: tuple[int, int], is_causal: bool) -> list[Tensor]:
            mass = log_mass[:, slice(*queries)].unsqueeze(0)
            by_query = (_part(grad, *queries), _part(q, *queries))
            by_key = (_part(all_k, *keys), _part(all_v, *keys))
            parts = _flash_backward(*by_query, *by_key, _part(out, *queries), mass, 0.0, is_causal)
            return [_packed(part) for part in parts]

        def write(tokens: slice, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> None:
            grad_q[tokens], grad_k[tokens], grad_v[tokens] = of_q, _of_kv_heads(of_k, share), _of_kv_heads(of_v, share)

        def attend(run: Run) -> None:
            row = slice(run.start, run.end)
            if run.start in weights:
                found = dense_attention.gradients(grad[row], q[row], k[row], v[row], weights[run.start])
                grad_q[row], grad_k[row], grad_v[row] = found
                return
            for start, stop in ((run.start, run.stop), *run.branches):
                write(slice(start, stop), *gradients((start, stop), (start, stop), True))
            if run.end > run.stop:
                of_q, of_k, of_v = gradients((run.stop, run.end), (run.start, run.stop), False)
                grad_q[run.stop : run.end] += of_q
                grad_k[run.start : run.stop] += _of_kv_heads(of_k, share)
                grad_v[run.start : run.stop] += _of_kv_heads(of_v, share)

        each_on_one_thread(attend, ctx.runs)
        return grad_q, grad_k, grad_v, None, None


def _of_kv_heads(grad: Tensor, share: int) -> Tensor:
    """[L, H, K] of repeated heads -> [L, Hkv, K]."""
    return grad if share == 1 else grad.unflatten(1, (-1, share)).sum(2)


def _part(x: Tensor, start: int, stop: int) -> Tensor:
    """Packed [T, H, K] -> [1, H, stop - start, K], a view."""
    return x[start:stop].transpose(0, 1).unsqueeze(0)


def _packed(part: Tensor) -> Tensor:
    """[1, H, L, K] -> [L, H, K], a view."""
    return part.squeeze(0).transpose(0, 1)


def _merge(out: Tensor, log_mass: Tensor, other: Tensor, other_log_mass: Tensor) -> None:
    """Join, in place, a softmax over some keys with one over others: [L, H, K], ln of the unnormalised mass [H, L]."""
    total = torch.logaddexp(log_mass, other_log_mass)
    out.mul_((log_mass - total).exp().t().unsqueeze(-1))
    out.addcmul_(other, (other_log_mass - total).exp().t().unsqueeze(-1).to(out.dtype))
    log_mass.copy_(total)
