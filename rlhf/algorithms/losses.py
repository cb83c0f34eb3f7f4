"""Policy losses: pure functions of per-token tensors [N], `sequence` [N] being each token's trajectory number 0 .. S-1.

Nothing here sums over tokens but within a trajectory: the algorithm weighs, masks and adds up.
"""

import torch
from torch import Tensor

from rlhf.algorithms.config import Correction, KlEstimator, RatioLevel

MAX_LOG_RATIO = 20.0
"""exp(20) is 5e8: beyond, ratios are held to stay finite."""


def sequence_sums(values: Tensor, sequence: Tensor) -> Tensor:
    """values [N] added up within each trajectory, given back to each of its tokens [N]."""
    num_sequences = int(sequence.max()) + 1 if sequence.numel() else 0
    return values.new_zeros(num_sequences).index_add(0, sequence, values)[sequence]


def log_ratio(policy: Tensor, old: Tensor, loss_mask: Tensor, sequence: Tensor, level: RatioLevel) -> Tensor:
    """ln of the ratio of policy and old policy at each token [N]; 0 where `loss_mask` is False.

    token: ln p / p_old. sequence: its mean over the trajectory's trained tokens (GSPO, arXiv 2507.18071, equation 7).
    whole_sequence: its sum (RLOO, arXiv 2402.14740).
    """
    difference = torch.where(loss_mask, policy - old, 0.0)
    if level is RatioLevel.token:
        return difference
    total = sequence_sums(difference, sequence)
    if level is RatioLevel.sequence:
        total = total / sequence_sums(loss_mask.to(total.dtype), sequence).clamp(min=1.0)
    return torch.where(loss_mask, total, 0.0)


def clipped_objective(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float = 0.0
) -> Tensor:
    """min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), to be maximised.

    PPO's objective with DAPO's separate bounds (arXiv 2503.14476, equation 8). With `dual_clip` c > 0 it is at least
    c * A where A < 0 (arXiv 1912.09729, equation 5).
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    if dual_clip:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return objective


def detached_clip_objective(
    log_ratio: Tensor, policy: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """clip(ratio) * A * ln p with the ratio detached (CISPO, MiniMax-M1, arXiv 2506.13585, equation 4)."""
    ratio = log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages * policy


def gated_objective(log_ratio: Tensor, advantages: Tensor, positive: float, negative: float) -> Tensor:
    """A * 4 / t * sigmoid(t * (ratio - 1)), t = `positive` where A > 0, else `negative` (SAPO, arXiv 2511.20347).

    At ratio 1 its gradient is that of ratio * A; away from 1 it fades.
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    steepness = torch.where(advantages > 0, positive, negative)
    return advantages * 4.0 / steepness * torch.sigmoid(steepness * (ratio - 1.0))


def geometric_objective(
    log_ratio: Tensor, advantages: Tensor, loss_mask: Tensor, sequence: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """A * exp(mean of the clipped log ratios of the sequence), at each of its tokens (GMPO, arXiv 2507.20673).

    A log ratio is clipped at `clip_high` where A > 0 and at -`clip_low` where A < 0, so that clipping never makes the
    objective larger.
    """
    bounded = torch.where(advantages > 0, log_ratio.clamp(max=clip_high), log_ratio.clamp(min=-clip_low))
    lengths = sequence_sums(loss_mask.to(log_ratio.dtype), sequence).clamp(min=1.0)
    mean = sequence_sums(torch.where(loss_mask, bounded, 0.0), sequence) / lengths
    return mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * advantages


@torch.no_grad()
def token_covariances(policy: Tensor, advantages: Tensor, loss_mask: Tensor) -> Tensor:
    """(ln p - mean) * (A - mean) at trained tokens [N], the means over them; minus infinity at others.

    What a token adds to the covariance that drives the entropy down (arXiv 2505.22617, equation 8).
    """
    found = torch.full_like(policy, -torch.inf)
    if loss_mask.any():
        logprobs, values = policy[loss_mask], advantages[loss_mask]
        found[loss_mask] = (logprobs - logprobs.mean()) * (values - values.mean())
    return found


def kl_estimate(policy: Tensor, other: Tensor, loss_mask: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate of KL(policy, other) at tokens that the policy drew; 0 where `loss_mask` is False.

    With d = ln p - ln q: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman 2020; k3 is GRPO's, arXiv 2402.03300,
    equation 4).
    """
    difference = torch.where(loss_mask, policy - other, 0.0)
    match estimator:
        case KlEstimator.k1:
            return difference
        case KlEstimator.k2:
            return difference.square() / 2.0
        case KlEstimator.k3:
            difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            return torch.expm1(-difference) + difference


def correction_weights(
    old: Tensor, rollout: Tensor, loss_mask: Tensor, sequence: Tensor, rule: Correction, cap: float
) -> Tensor:
    """Importance weight of each token for having been drawn by the sampler instead of the old policy, no gradient.

    exp(old - rollout) of the token or, for sequence rules, of the trajectory; truncated at `cap`, or 0 above it.
    """
    if rule is Correction.none:
        return torch.ones_like(old)
    level = RatioLevel.token if rule.value.startswith("token") else RatioLevel.whole_sequence
    logs = log_ratio(old.detach(), rollout, loss_mask, sequence, level)
    weights = logs.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if rule in (Correction.token_truncate, Correction.sequence_truncate):
        return weights.clamp(max=cap)
    return torch.where(weights > cap, 0.0, weights)
