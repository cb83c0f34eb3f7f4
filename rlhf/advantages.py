"""Group-relative advantages: pure functions of rewards."""

from collections.abc import Sequence

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], divide_by_std: bool) -> list[float]:
    """(reward - group mean), divided by (group standard deviation + 1e-6) if asked.

    Population standard deviation over the given rewards; equal rewards give exactly 0 (GRPO, arXiv 2402.03300, 4.1.2).
    """
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    if not divide_by_std:
        return centred
    std = (sum(c * c for c in centred) / len(centred)) ** 0.5
    return [c / (std + EPSILON) for c in centred]


def overlong_penalty(length: int, limit: int, buffer: int, penalty: float) -> float:
    """Reward taken from a completion of `length` tokens: 0 up to limit - buffer, then linear to `penalty` at limit.

    Soft overlong punishment of DAPO (arXiv 2503.14476, equation 13). A buffer of 0 punishes only at the limit.
    """
    start = limit - buffer
    if length >= limit:
        return penalty
    return penalty * max(0, length - start) / buffer if buffer else 0.0
