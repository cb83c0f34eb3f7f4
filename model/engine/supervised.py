"""The supervised loop that pre-training and SFT share: next rows, weighted cross-entropy, one update per step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import Row, TrainBatch, pack_rows, split_by_tokens
from model.config import MoeLanguageConfig
from model.engine.base import TrainEngine
from model.engine.config import Normalisation
from model.engine.progress import StageProgress
from model.engine.run import Run
from model.logprobs import TokenScores
from model.moe import activation_entropy, balance_loss
from model.processor import Processor


def train_supervised(
    engine: TrainEngine,
    rows_of_step: Callable[[int], Sequence[Row]],
    processor: Processor,
    run: Run,
    max_steps: int,
    micro_batch_tokens: int,
    normalisation: Normalisation,
    balance_coefficient: float,
    progress: StageProgress,
) -> None:
    """Train to `max_steps`, resuming from the run's newest checkpoint. Every completion token has weight 1.

    `balance_coefficient` weighs the load-balancing term of an MoE decoder; others have none.
    """
    if not isinstance(processor.config.language, MoeLanguageConfig):
        balance_coefficient = 0.0
    run.restore(engine)
    while engine.step_count < max_steps:
        with run.timed("data"):
            rows = rows_of_step(engine.step_count)
            num_samples = sum(len(row.completions) for row in rows)
            num_tokens = sum(len(completion) for row in rows for completion in row.completions)
            denominator = num_tokens if normalisation is Normalisation.tokens else num_samples
        with run.timed("update"):
            totals: dict[str, float] = {}
            batches = [make_train_batch(rows[part], processor) for part in split_by_tokens(rows, micro_batch_tokens)]
            loss = cross_entropy
            if balance_coefficient:
                loss = BalancedCrossEntropy.over(engine, batches, balance_coefficient, denominator)
            for batch in batches:
                for name, value in engine.forward_backward(batch, loss, denominator).items():
                    totals[name] = totals.get(name, 0.0) + value
            result = engine.step()
        step = engine.step_count
        run.log(
            step,
            {
                "loss": totals["loss"],
                "nll_per_token": totals["nll"] / num_tokens,
                "tokens_above_half": totals["sure"] / num_tokens,
                "tokens": float(sum(row.num_tokens for row in rows)),
                "learning_rate": result.learning_rate,
                "grad_norm": result.grad_norm,
                "skipped": float(not result.applied),
                **{name: totals[name] for name in ("balance", "expert_entropy") if name in totals},
            },
        )
        progress.advance(step, f"loss {totals['nll'] / num_tokens:.3f}")
        if run.is_due(step, max_steps):
            run.save(engine, {"step": step})


def make_train_batch(rows: Sequence[Row], processor: Processor) -> TrainBatch:
    """Pack rows; all completion tokens train."""
    inputs = pack_rows(rows, processor.placeholder_id, processor.config.pixels_per_token)
    return TrainBatch(inputs, torch.ones(inputs.target_ids.shape[0]))


def cross_entropy(scores: TokenScores, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
    """Sum of weighted negative log-likelihoods in nats; also how many tokens had probability above one half."""
    loss_sum = -(scores.logprobs * batch.loss_weights).sum()
    sure = (scores.logprobs.detach() > -0.6931471805599453).sum()
    return loss_sum, {"nll": loss_sum.item(), "sure": float(sure)}


@dataclass(frozen=True)
class BalancedCrossEntropy:
    """Cross-entropy plus the load-balancing term of the routers over all tokens of one update.

    The term has its own denominator: the loss grows by coefficient x (1 when balanced), however rows are packed.
    """

    coefficient: float
    counts: Tensor | None  # [L, E] routed pairs of the whole update; None: the one batch is the update
    num_tokens: int
    denominator: float  # what the engine divides the loss by

    @classmethod
    def over(
        cls, engine: TrainEngine, batches: Sequence[TrainBatch], coefficient: float, denominator: float
    ) -> "BalancedCrossEntropy":
        """Several micro-batches need a pass without gradient first: balance is asked of all of them together."""
        counts = None
        if len(batches) > 1:
            routings = [engine.logprobs(batch.inputs).routing for batch in batches]
            counts = torch.stack([routing.counts for routing in routings if routing is not None]).sum(0)
        return cls(coefficient, counts, sum(batch.inputs.num_tokens for batch in batches), denominator)

    def __call__(self, scores: TokenScores, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        loss_sum, metrics = cross_entropy(scores, batch)
        assert scores.routing is not None
        counts = scores.routing.counts if self.counts is None else self.counts
        balance = balance_loss(scores.routing, counts) / self.num_tokens
        share = batch.inputs.num_tokens / self.num_tokens  # the log adds micro-batches up
        metrics["balance"] = balance.item()
        metrics["expert_entropy"] = activation_entropy(counts).mean().item() * share
        return loss_sum + self.coefficient * self.denominator * balance, metrics
