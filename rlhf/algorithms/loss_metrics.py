"""The figures of a micro-batch's loss: sums over trained tokens, and extremes."""

import torch
from torch import Tensor

from model.json_values import JsonObject
from model.logprobs import TokenScores
from rlhf.algorithms.config import AlgorithmConfig, KlEstimator
from rlhf.algorithms.losses import MAX_LOG_RATIO, kl_estimate
from rlhf.trajectory import PolicyBatch

GAP_POSITIONS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384)
"""First completion positions of the ranges over which the gap between sampler and trainer is reported."""


@torch.no_grad()
def loss_metrics(
    config: AlgorithmConfig,
    scores: TokenScores,
    batch: PolicyBatch,
    old: Tensor,
    log_ratio: Tensor,
    weights: Tensor,
    clips_any_sign: bool,
) -> dict[str, float]:
    """`log_ratio` [N] at the algorithm's level, `weights` [N] of the sampler correction.

    A token counts as clipped where the bound decides what it gives: above for positive advantages, below for negative
    ones, or with `clips_any_sign` for all.
    """
    mask, policy = batch.loss_mask, scores.logprobs
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low = (ratio < 1.0 - config.clip_low) & ((batch.advantages < 0) | clips_any_sign) & mask
    high = (ratio > 1.0 + config.clip_high) & ((batch.advantages > 0) | clips_any_sign) & mask
    metrics = {
        "tokens": float(mask.sum()),
        "clipped_low": float(low.sum()),
        "clipped_high": float(high.sum()),
        "ratio_max": float(ratio[mask].max()) if mask.any() else 1.0,
        "ratio_min": float(ratio[mask].min()) if mask.any() else 1.0,
        "old_kl": float(kl_estimate(old, policy, mask, KlEstimator.k3).sum()),
        "sampler_kl": float(kl_estimate(batch.rollout_logprobs, policy, mask, KlEstimator.k3).sum()),
        "entropy": float(scores.entropy[mask].sum()),
        "correction": float(weights[mask].sum()),
        **_sampler_gap(old, batch),
    }
    if batch.ref_logprobs is not None:
        metrics["ref_kl"] = float(kl_estimate(policy, batch.ref_logprobs, mask, KlEstimator.k3).sum())
    if scores.routing is not None and scores.routing.replayed is not None and scores.routing.agreed is not None:
        metrics["routes_replayed"] = float(scores.routing.replayed.sum())
        metrics["routes_agreed"] = float(scores.routing.agreed.sum())
    if config.dual_clip:
        metrics["dual_clipped"] = float(((ratio > config.dual_clip) & (batch.advantages < 0) & mask).sum())
    return metrics


def _sampler_gap(old: Tensor, batch: PolicyBatch) -> dict[str, float]:
    """|old - rollout| per token: sum, largest, and by position in the completion. For fresh groups old is the policy
    that the sampler had, so the gap is what the two computed differently."""
    mask = batch.loss_mask
    gap = (old - batch.rollout_logprobs).abs()[mask]
    starts = torch.ones_like(batch.sequence, dtype=torch.bool)
    starts[1:] = batch.sequence[1:] != batch.sequence[:-1]
    index = torch.arange(len(starts), device=starts.device)
    position = (index - torch.where(starts, index, 0).cummax(0).values)[mask] if len(starts) else index
    metrics: JsonObject = {
        "sampler_gap": float(gap.sum()),
        "sampler_gap_max": float(gap.max()) if len(gap) else 0.0,
    }
    for first, end in zip(GAP_POSITIONS, (*GAP_POSITIONS[1:], 2**62), strict=True):
        inside = (position >= first) & (position < end)
        if inside.any():
            metrics[f"sampler_gap_from_{first}"] = float(gap[inside].sum())
            metrics[f"tokens_from_{first}"] = float(inside.sum())
    return metrics
