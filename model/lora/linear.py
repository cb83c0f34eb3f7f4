"""A linear layer with a low-rank adapter, and the product that it shares with layers on the same input."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.autograd import FunctionContext


class LowRank(NamedTuple):
    """scale * b @ a, which is added to `rows` of a weight."""

    rows: slice
    a: Tensor  # [rank, in]
    b: Tensor  # [rows, rank]
    scale: float


class LoraLinear(nn.Linear):
    """A linear layer whose weight stays as it is, plus `scale * lora_b @ lora_a`, which trains.

    The adapter may be stored in a wider type than the weight; it computes in the type of the input.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, device: torch.device | None = None) -> None:
        """Shares the weight and the bias of `base`. The adapter is empty memory in the weight's type.

        `device`: where the adapter is, if not where the weight is.
        """
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight = base.weight
        self.bias = base.bias
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(base.weight.new_empty(base.out_features, rank, device=device))
        self.scale = scale
        self.is_on = True

    def forward(self, input: Tensor) -> Tensor:
        return adapted_product(input, self.weight, self.bias, low_ranks([self], input.dtype))


def low_ranks(layers: Sequence[nn.Linear], dtype: torch.dtype) -> list[LowRank]:
    """The adapters that are on, with their rows in the weights of all layers one behind the other."""
    found, start = [], 0
    for layer in layers:
        end = start + layer.out_features
        if isinstance(layer, LoraLinear) and layer.is_on:
            found.append(LowRank(slice(start, end), layer.lora_a.to(dtype), layer.lora_b.to(dtype), layer.scale))
        start = end
    return found


def adapted_product(x: Tensor, weight: Tensor, bias: Tensor | None, adapters: Sequence[LowRank]) -> Tensor:
    """x [..., in] times the transpose of the weight [rows, in] plus its adapters: [..., rows]."""
    if not adapters:
        return F.linear(x, weight, bias)
    rows, matrices = [one.rows for one in adapters], [matrix for one in adapters for matrix in (one.a, one.b)]
    scales = [one.scale for one in adapters]
    if torch.is_grad_enabled():
        return _AdaptedProduct.apply(x, weight, bias, rows, scales, *matrices)
    return _product(x, weight, bias, rows, scales, matrices)[0]


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Sequence[slice],
    scales: Sequence[float],
    matrices: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """(the output, the input through all `a` [N, ranks of all], all `a` one behind the other [ranks of all, in])."""
    joint_a = matrices[0] if len(rows) == 1 else torch.cat(list(matrices[::2]))
    flat = x.reshape(-1, x.shape[-1])
    out = F.linear(flat, weight, bias)
    narrow = F.linear(flat, joint_a)
    for own, part, b, scale in zip(rows, _split(narrow, matrices), matrices[1::2], scales, strict=True):
        out[:, own].addmm_(part, b.t(), alpha=scale)
    return out.view(*x.shape[:-1], -1), narrow, joint_a


def _split(narrow: Tensor, matrices: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return narrow.split([a.shape[0] for a in matrices[::2]], dim=-1)


class _AdaptedProduct(torch.autograd.Function):
    """Its backward joins the narrow products of all adapters: autograd would add up one wide tensor for each."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Sequence[slice],
        scales: Sequence[float],
        *matrices: Tensor,
    ) -> Tensor:
        out, narrow, joint_a = _product(x, weight, bias, rows, scales, matrices)
        ctx.save_for_backward(x, weight, narrow, joint_a, *matrices)
        ctx.rows, ctx.scales = rows, scales
        return out

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, narrow, joint_a, *matrices = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad, flat = (one.reshape(-1, one.shape[-1]) for one in (grads[0], x))
        parts = list(zip(ctx.rows, _split(narrow, matrices), matrices[1::2], ctx.scales, strict=True))
        narrow_grads = [torch.mm(grad[:, own], b).mul_(scale) for own, _, b, scale in parts]
        narrow_grad = narrow_grads[0] if len(parts) == 1 else torch.cat(narrow_grads, dim=-1)
        of_a = narrow_grad.t().mm(flat).split([len(a) for a in matrices[::2]])
        of_b = [grad[:, own].t().mm(part).mul_(scale) for own, part, _, scale in parts]
        of_matrices = [one for a, b in zip(of_a, of_b, strict=True) for one in (a, b)]
        of_x = torch.addmm(grad @ weight, narrow_grad, joint_a).view_as(x) if for_x else None
        of_weight = grad.t().mm(flat) if for_weight else None
        return of_x, of_weight, grad.sum(0) if for_bias else None, None, None, *of_matrices
