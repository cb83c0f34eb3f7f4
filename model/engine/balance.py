"""The load-balancing term of MoE routers as an addition to any loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from model.batch import ModelInputs
from model.engine.base import AnyBatch, LossFn, Scorer
from model.logprobs import TokenScores
from model.moe import activation_entropy, balance_loss


@dataclass(frozen=True)
class BalancedLoss(Generic[AnyBatch]):
    """`loss` plus the load-balancing term of the routers over all tokens of one update.

    The term has its own denominator: the loss grows by coefficient x (1 when balanced), however rows are packed.
    """

    loss: LossFn[AnyBatch]
    coefficient: float
    counts: Tensor | None  # [L, E] how many token-expert pairs the update routed; None if the one batch is the update
    num_tokens: float  # tokens of the update, weighed as routing weighs them
    denominator: float  # the engine divides the loss by this

    @classmethod
    def over(
        cls,
        loss: LossFn[AnyBatch],
        engine: Scorer,
        inputs: Sequence[ModelInputs],
        coefficient: float,
        denominator: float,
        counts: Tensor | None = None,
    ) -> "BalancedLoss[AnyBatch]":
        """Over the micro-batches `inputs` of one update. Without `counts`, several of them need a pass without
        gradient first: balance is asked of all of them together."""
        if counts is None and len(inputs) > 1:
            counts = routed_counts(engine.logprobs(inputs))
        return cls(loss, coefficient, counts, sum(map(routing_total, inputs)), denominator)

    def __call__(self, scores: TokenScores, batch: AnyBatch) -> tuple[Tensor, dict[str, float]]:
        loss_sum, metrics = self.loss(scores, batch)
        assert scores.routing is not None
        own = scores.routing.counts
        counts = own if self.counts is None else self.counts.to(own.device)
        balance = balance_loss(scores.routing, counts) / self.num_tokens
        share = routing_total(batch.inputs) / self.num_tokens  # the log adds micro-batches up
        metrics["balance"] = balance.item()
        metrics["expert_entropy"] = activation_entropy(counts).mean().item() * share
        return loss_sum + self.coefficient * self.denominator * balance, metrics


def routed_counts(scores: Sequence[TokenScores]) -> Tensor:
    """[L, E] routed pairs of several micro-batches."""
    routings = [one.routing for one in scores]
    return torch.stack([routing.counts for routing in routings if routing is not None]).sum(0)


def routing_total(inputs: ModelInputs) -> float:
    """How many tokens the inputs count as in load balancing."""
    return float(inputs.num_tokens if inputs.routing_weights is None else inputs.routing_weights.sum())
