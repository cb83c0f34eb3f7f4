"""Policy losses: pure functions, tensors in, SUM and sums for the log out."""

import torch
from torch import Tensor


def clipped_surrogate(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    token_weights: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, float]]:
    """All [N]. Sum over trained tokens of -weight * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    PPO's clipped objective with DAPO's separate bounds (arXiv 2503.14476, equation 8).
    """
    log_ratio = torch.where(loss_mask, policy_logprobs - old_logprobs, 0.0)
    ratio = log_ratio.clamp(-20.0, 20.0).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    loss_sum = -(objective * token_weights * loss_mask).sum()
    with torch.no_grad():
        low = (ratio < 1.0 - clip_low) & (advantages < 0) & loss_mask
        high = (ratio > 1.0 + clip_high) & (advantages > 0) & loss_mask
        metrics = {
            "clipped_low": float(low.sum()),
            "clipped_high": float(high.sum()),
            "old_kl": float((ratio - 1.0 - log_ratio).sum()),
            "ratio_max": float(ratio.max()) if ratio.numel() else 1.0,
            "ratio_min": float(ratio.min()) if ratio.numel() else 1.0,
        }
    return loss_sum, metrics


def k3_kl(policy_logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor, token_weights: Tensor) -> Tensor:
    """Weighted sum over trained tokens of exp(d) - d - 1 with d = ref - policy: an unbiased, positive estimate of
    KL(policy, reference) (Schulman's k3; GRPO, arXiv 2402.03300, equation 4).
    """
    difference = torch.where(loss_mask, ref_logprobs - policy_logprobs, 0.0).clamp(-20.0, 20.0)
    return ((difference.exp() - difference - 1.0) * token_weights * loss_mask).sum()
