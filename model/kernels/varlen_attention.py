"""Packed attention on a GPU by the flash kernel for sequences of any length: no padding, no compiler, no mask.

Every root and every branch is a sequence of one causal call; the branches of a root are one sequence of a second call,
whose keys are the root's. Two parts of one softmax are joined by their log-sum-exp, and with the joint log-sum-exp the
kernel's backward gives each part's share of the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from model.kernels.autograd import FunctionContext
from model.kernels.available import on_ampere
from model.layout import Layout


@dataclass(frozen=True)
class Sequences:
    """Sequences that lie one behind the other."""

    bounds: Tensor  # [N + 1] int32, where each starts and the last one ends
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Sequences":
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(bounds, max(lengths, default=0))


class VarlenPlan:
    """The facts about a layout that the two calls need; made once a batch, for all layers."""

    def __init__(self, layout: Layout) -> None:
        device = layout.slot_of_token.device
        spans = [span for span in layout.spans if span.end > span.stop]
        pieces = [piece for span in layout.spans for piece in ((span.start, span.stop), *span.branches)]
        self.own = Sequences.of([stop - start for start, stop in pieces], device)
        self.roots = [slice(span.start, span.stop) for span in spans]
        self.branches = [slice(span.stop, span.end) for span in spans]
        self.prefixes = Sequences.of([span.stop - span.start for span in spans], device)
        self.continuations = Sequences.of([span.end - span.stop for span in spans], device)

    def continued(self, x: Tensor) -> Tensor:
        """[T, ...] -> the rows of roots that have branches."""
        return _gather(x, self.roots)

    def continuing(self, x: Tensor) -> Tensor:
        """[T, ...] -> the rows of branches."""
        return _gather(x, self.branches)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan) -> Tensor:
    """q [T, H, K], k and v [T, Hkv, K] on a GPU, float16 or bfloat16 -> [T, H, K]; scale 1/sqrt(K)."""
    return _VarlenAttention.apply(q, k, v, plan)


class VarlenAttention:
    """`PackedAttention` on NVIDIA GPUs from Ampere on."""

    def __init__(self, layout: Layout) -> None:
        self._plan = VarlenPlan(layout)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, self._plan)

    @staticmethod
    def is_supported(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """Half precision, and heads whose width is a multiple of 8 up to 192."""
        takes = dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 192
        return takes and on_ampere(device) and torch.backends.cuda.is_flash_attention_available()

    @classmethod
    def assert_supported(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
        """`ValueError` that says what is needed."""
        if not cls.is_supported(device, dtype, head_dim):
            raise ValueError(
                "attention_kernel: varlen needs a torch with flash attention, an NVIDIA GPU from Ampere on, float16 or "
                "bfloat16, and heads of a multiple of 8, at most 192, numbers; found "
                f"{device}, {str(dtype).removeprefix('torch.')}, {head_dim}; use auto"
            )


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionContext, q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan) -> Tensor:
        out, log_mass = flash_forward(q, k, v, plan.own, plan.own, True)
        if plan.branches:
            queries, keys, values = plan.continuing(q), plan.continued(k), plan.continued(v)
            part, mass = flash_forward(queries, keys, values, plan.continuations, plan.prefixes, False)
            for own, theirs in zip(plan.branches, _places(plan.branches), strict=True):
                _merge(out[own], log_mass[:, own], part[theirs], mass[:, theirs])
        ctx.save_for_backward(q, k, v, out, log_mass)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        plan, (q, k, v, out, log_mass), (grad,) = ctx.plan, ctx.saved_tensors, grads
        grad_q, grad_k, grad_v = flash_backward(grad, q, k, v, out, log_mass, plan.own, plan.own, True)
        if plan.branches:
            of_out, queries, merged = (plan.continuing(x) for x in (grad, q, out))
            keys, values = plan.continued(k), plan.continued(v)
            mass = torch.cat([log_mass[:, own] for own in plan.branches], dim=1)
            parts = flash_backward(
                of_out, queries, keys, values, merged, mass, plan.continuations, plan.prefixes, False
            )  # fmt: skip
            for whole, part, places in zip(
                (grad_q, grad_k, grad_v), parts, (plan.branches, plan.roots, plan.roots), strict=True
            ):
                for own, theirs in zip(places, _places(places), strict=True):
                    whole[own] += part[theirs]
        return grad_q, grad_k, grad_v, None


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, queries: Sequences, keys: Sequences, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """q [Tq, H, K], k and v [Tk, Hkv, K] -> [Tq, H, K] and the logarithm of its unnormalised mass [H, Tq]."""
    bounds, longest = (queries.bounds, keys.bounds), (queries.longest, keys.longest)
    out, log_mass, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *bounds, *longest, 0.0, is_causal, False)
    return out, log_mass


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_mass: Tensor, queries: Sequences, keys: Sequences,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v; `out` and `log_mass` may be of a softmax over more keys than these."""
    bounds, longest = (queries.bounds, keys.bounds), (queries.longest, keys.longest)
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, log_mass, *bounds, *longest, 0.0, is_causal, *no_dropout
    )


def _gather(x: Tensor, places: Sequence[slice]) -> Tensor:
    """[T, ...] -> its rows at these places."""
    return x[places[0]] if len(places) == 1 else torch.cat([x[place] for place in places])


def _places(places: Sequence[slice]) -> list[slice]:
    """Where `_gather` puts them."""
    ends = list(accumulate(place.stop - place.start for place in places))
    return [slice(end - (place.stop - place.start), end) for place, end in zip(places, ends, strict=True)]


def _merge(out: Tensor, log_mass: Tensor, other: Tensor, other_log_mass: Tensor) -> None:
    """Join, in place, a softmax over some keys with one over others: [L, H, K], ln of the unnormalised mass [H, L].

    In one pass and without fp32 copies; rounding the share costs as much as rounding the result.
    """
    share = (other_log_mass - log_mass).sigmoid().t().unsqueeze(-1)
    out.lerp_(other, share.to(out.dtype))
    log_mass.copy_(torch.logaddexp(log_mass, other_log_mass))
