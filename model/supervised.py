"""The supervised loop that pre-training and SFT share: next rows, weighted cross-entropy, one update per step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.batch import Row, TrainBatch, pack_rows, split_by_tokens
from model.config import MoeLanguageConfig
from model.engine.balance import BalancedLoss
from model.engine.base import TrainEngine
from model.engine.config import Normalisation
from model.logprobs import TokenScores
from model.processing.processor import Processor
from model.run.folder import RunFolder
from model.run.progress import StageProgress


def train_supervised(
    engine: TrainEngine,
    rows_of_step: Callable[[int], Sequence[Row]],
    processor: Processor,
    run: RunFolder,
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
    with run.saved_on_stop(engine, lambda: {"step": engine.step_count}) as stop:
        while engine.step_count < max_steps:
            stop.check()
            with run.timed("data"):
                rows = rows_of_step(engine.step_count)
                num_samples = sum(len(row.completions) for row in rows)
                num_tokens = sum(len(completion) for row in rows for completion in row.completions)
                denominator = num_tokens if normalisation is Normalisation.tokens else num_samples
            with run.timed("update"):
                totals: dict[str, float] = {}
                batches = [
                    make_train_batch(rows[part], processor) for part in split_by_tokens(rows, micro_batch_tokens)
                ]
                loss = cross_entropy
                if balance_coefficient:
                    inputs = [batch.inputs for batch in batches]
                    loss = BalancedLoss.over(loss, engine, inputs, balance_coefficient, denominator)
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
