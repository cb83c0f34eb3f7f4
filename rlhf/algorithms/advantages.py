"""Advantages and penalties: pure functions of rewards."""

from collections.abc import Sequence

from rlhf.algorithms.config import AdvantageScale, Baseline

EPSILON = 1e-6


def centred_rewards(
    groups: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], baseline: Baseline
) -> list[list[float]]:
    """Rewards of each group minus their baseline; the mean of the step weighs each trajectory by `weights`.

    `leave_one_out` takes the mean of the siblings alone (RLOO, arXiv 2402.14740, equation 9). Equal rewards give
    exactly 0, although their mean may differ from them in the last bit.
    """
    match baseline:
        case Baseline.none:
            return [list(group) for group in groups]
        case Baseline.batch_mean:
            flat = iter(_minus_mean(_flat(groups), _flat(weights)))
            return [[next(flat) for _ in group] for group in groups]
        case Baseline.group_mean:
            return [_minus_mean(group, [1.0] * len(group)) for group in groups]
        case Baseline.leave_one_out:
            # r - mean of the others = (r - mean of all) * G / (G - 1)
            centred = [_minus_mean(group, [1.0] * len(group)) for group in groups]
            return [[c * len(group) / max(1, len(group) - 1) for c in group] for group in centred]


def deviations(
    groups: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], scale: AdvantageScale
) -> list[float]:
    """The divisor of each group's centred rewards: population standard deviation + 1e-6, or 1.

    The step's deviation weighs each trajectory by `weights`.
    """
    match scale:
        case AdvantageScale.none:
            return [1.0] * len(groups)
        case AdvantageScale.group_std:
            return [deviation(group, [1.0] * len(group)) + EPSILON for group in groups]
        case AdvantageScale.batch_std:
            return [deviation(_flat(groups), _flat(weights)) + EPSILON] * len(groups)


def deviation(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted population standard deviation."""
    return _mean([c * c for c in _minus_mean(values, weights)], weights) ** 0.5


def overlong_penalty(length: int, limit: int, buffer: int, penalty: float) -> float:
    """Reward taken from a completion of `length` tokens: 0 up to limit - buffer, then linear to `penalty` at limit.

    Soft overlong punishment of DAPO (arXiv 2503.14476, equation 13). A buffer of 0 punishes only at the limit.
    """
    start = limit - buffer
    if length >= limit:
        return penalty
    return penalty * max(0, length - start) / buffer if buffer else 0.0


def _minus_mean(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    if all(value == values[0] for value in values):  # not so with a NaN among them, which must not become 0
        return [0.0] * len(values)
    mean = _mean(values, weights)
    return [value - mean for value in values]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights) if values else 0.0


def _flat(groups: Sequence[Sequence[float]]) -> list[float]:
    return [value for group in groups for value in group]
