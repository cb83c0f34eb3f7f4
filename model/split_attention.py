"""Packed attention on CPU without padding or copies of a prefix: causal parts and prefix parts, merged by log-sum-exp.

Every root and every branch is one causal call of the CPU flash kernel on a slice of the packed tokens; the queries of
all branches of a root meet their shared prefix in one more call, without a mask. Two parts of one softmax are joined by
their log-sum-exp, and with the joint log-sum-exp the kernel's backward gives each part's share of the gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.attention import Run, cpu_flash

_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[Run]) -> Tensor:
    """q [T, H, K], k and v [T, Hkv, K] on CPU -> [T, H, K]; scale 1/sqrt(K). `runs` cover the T tokens."""
    return _SplitAttention.apply(q, k, v, runs)


class _SplitAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, runs: Sequence[Run]) -> Tensor:
        share = q.shape[1] // k.shape[1]
        all_k, all_v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        log_mass = q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))

        def causal(start: int, stop: int) -> None:
            part, mass = cpu_flash(
                _part(q, start, stop), _part(all_k, start, stop), _part(all_v, start, stop), 0.0, True
            )
            out[start:stop] = _packed(part)
            log_mass[:, start:stop] = mass[0]

        for run in runs:
            causal(run.start, run.stop)
            for start, stop in run.branches:
                causal(start, stop)
            if run.end > run.stop:
                prefix = slice(run.start, run.stop)
                keys = (_part(x, prefix.start, prefix.stop) for x in (all_k, all_v))
                part, mass = cpu_flash(_part(q, run.stop, run.end), *keys, 0.0, False)
                _merge(out[run.stop : run.end], log_mass[:, run.stop : run.end], _packed(part), mass[0])
        ctx.save_for_backward(q, k, v, out, log_mass)
        ctx.runs = runs
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        q, k, v, out, log_mass = ctx.saved_tensors
        share = q.shape[1] // k.shape[1]
        all_k, all_v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, all_k, all_v))

        def gradients(queries: tuple[int, int], keys: tuple[int, int], is_causal: bool) -> list[Tensor]:
            mass = log_mass[:, slice(*queries)].unsqueeze(0)
            by_query = (_part(grad, *queries), _part(q, *queries))
            by_key = (_part(all_k, *keys), _part(all_v, *keys))
            parts = _flash_backward(*by_query, *by_key, _part(out, *queries), mass, 0.0, is_causal)
            return [_packed(part) for part in parts]

        for run in ctx.runs:
            for start, stop in ((run.start, run.stop), *run.branches):
                of_q, of_k, of_v = gradients((start, stop), (start, stop), True)
                grad_q[start:stop], grad_k[start:stop], grad_v[start:stop] = of_q, of_k, of_v
            if run.end > run.stop:
                of_q, of_k, of_v = gradients((run.stop, run.end), (run.start, run.stop), False)
                grad_q[run.stop : run.end] += of_q
                grad_k[run.start : run.stop] += of_k
                grad_v[run.start : run.stop] += of_v
        if share > 1:
            grad_k, grad_v = (x.unflatten(1, (-1, share)).sum(2) for x in (grad_k, grad_v))
        return grad_q, grad_k, grad_v, None


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
