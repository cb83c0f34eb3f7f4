"""Qwen3-MoE feed-forward: a softmax router in fp32, top-k experts per token, experts stacked in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import MoeLanguageConfig
from model.kernels.autograd import FunctionContext
from model.kernels.grouped_products import expert_products
from model.layers import silu_product

UNKNOWN = -1
"""Stands in place of the experts of a token whose routes were not recorded. The router chooses for it."""


class Routing(NamedTuple):
    """Where the routers sent T tokens, in L layers or in one (no L). E experts, k experts a token."""

    counts: Tensor  # [L, E] weighted (token, slot) pairs; no gradient
    probability_sums: Tensor  # [L, E] weighted router probabilities, with gradient
    replayed: Tensor | None = None  # [L] tokens whose experts were given; None where nothing was given
    agreed: Tensor | None = None  # [L] those of them for which the router would have chosen the same experts
    chosen: Tensor | None = None  # [T, L, k] expert ids, where they are kept

    @classmethod
    def of_layer(cls, probabilities: Tensor, chosen: Tensor, token_weights: Tensor | None) -> "Routing":
        """probabilities [T, E] fp32, chosen expert ids [T, k]; `token_weights` [T] is how much each token counts.

        Padding weighs 0, a prompt token as many as its live siblings; None: 1 each.
        """
        if token_weights is None:
            token_weights = probabilities.new_ones(probabilities.shape[0])
        token_weights = token_weights.to(probabilities)
        hits = torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)
        return cls(token_weights @ hits, token_weights @ probabilities, chosen=chosen)

    def compared(self, own: Tensor, routes: Tensor) -> "Routing":
        """Count the tokens whose given `routes` [T, k] are the experts `own` [T, k] that the router chose itself.

        The order of a token's experts does not matter. Tokens whose routes are unknown are not counted.
        """
        is_given = (routes != UNKNOWN).all(-1)
        is_same = (routes.sort(-1).values == own.sort(-1).values).all(-1)
        return self._replace(replayed=is_given.sum(), agreed=is_same.sum())

    @classmethod
    def of_layers(cls, layers: Sequence["Routing"]) -> "Routing":
        """Stack the layers. A field that the layers lack stays None."""
        return cls(
            counts=torch.stack([r.counts for r in layers]),
            probability_sums=torch.stack([r.probability_sums for r in layers]),
            replayed=_stacked([r.replayed for r in layers]),
            agreed=_stacked([r.agreed for r in layers]),
            chosen=_stacked([r.chosen for r in layers], dim=1),
        )


def _stacked(layers: Sequence[Tensor | None], dim: int = 0) -> Tensor | None:
    found = [one for one in layers if one is not None]
    return torch.stack(found, dim) if found else None


def balance_loss(routing: Routing, counts: Tensor) -> Tensor:
    """Auxiliary load-balancing term of one micro-batch: sum over its tokens of E * sum_e f_e P_e, mean over layers.

    `counts` [L, E] are the routed pairs of the *global* batch (all micro-batches and ranks), so that balance is asked
    of the batch and not of each part of it. Divide the sum over micro-batches by the global token weight: a perfectly
    balanced router then gives 1. (SAIL-VL2 report section 2.2; Switch Transformer form, f over (token, slot) pairs.)
    """
    shares = counts / counts.sum(-1, keepdim=True).clamp(min=1.0)
    return counts.shape[1] * (shares * routing.probability_sums).sum(-1).mean()


def activation_entropy(counts: Tensor) -> Tensor:
    """Expert-activation entropy in nats, [L], from routed pairs [L, E]; ln E when every expert is used alike."""
    shares = counts / counts.sum(-1, keepdim=True).clamp(min=1.0)
    return torch.special.entr(shares).sum(-1)


class Experts(nn.Module):
    """E gated MLPs in two stacked tensors; gate and up of an expert stand in one matrix."""

    def __init__(self, num_experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, inner))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [N, D] sorted by expert, `ends` [E] the row behind the last one of each expert -> [N, D]."""
        gated = silu_product(expert_products(x, self.gate_up_proj, ends))
        return expert_products(gated, self.down_proj, ends)


class MoeMLP(nn.Module):
    """Router `gate` and its `experts`; on disk `mlp.gate.weight`, `mlp.experts.{e}.{gate,up,down}_proj.weight`."""

    def __init__(self, config: MoeLanguageConfig) -> None:
        super().__init__()
        self.num_experts, self.top_k = config.num_experts, config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(
        self, x: Tensor, token_weights: Tensor | None = None, routes: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """[..., D] -> [..., D], and what the router did.

        `routes` [T, k] are the experts to take; a token with `UNKNOWN` there goes where the router says. The weights
        of the experts are the router's own either way, so it learns from replayed routes too.
        """
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.gate(tokens)
        probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        own = chosen
        if routes is not None:
            routes = routes.to(chosen.dtype)
            chosen = torch.where((routes == UNKNOWN).any(-1, keepdim=True), own, routes)
            weights = probabilities.gather(-1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        routing = Routing.of_layer(probabilities, chosen, token_weights)
        routing = routing if routes is None else routing.compared(own, routes)
        ordered, order = chosen.flatten().sort(stable=True)  # pairs sorted by expert
        ends = torch.searchsorted(ordered, torch.arange(self.num_experts, device=x.device), right=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        out = self.experts(_Dispatch.apply(tokens, order // self.top_k, place, self.top_k), ends)
        out = _Permute.apply(out, place, order).unflatten(0, (-1, self.top_k))
        return (out * weights.to(out.dtype).unsqueeze(-1)).sum(1).view_as(x), routing


class _Dispatch(torch.autograd.Function):
    """tokens[token_of_row]; the backward gathers each token's k rows and adds them, in a fixed order."""

    @staticmethod
    def forward(ctx: FunctionContext, tokens: Tensor, token_of_row: Tensor, place: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.top_k = top_k
        return tokens.index_select(0, token_of_row)

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        return grads[0].index_select(0, place).unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """rows[index] for a permutation, whose backward is the inverse gather."""

    @staticmethod
    def forward(ctx: FunctionContext, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None
