"""Statistics of evaluations: pass@k, majority votes, and paired differences between two checkpoints."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NUM_RESAMPLES = 10_000
LEVEL = 0.95


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate without bias the chance that one of `k` samples is right, from `num_samples` of which `num_right` are.

    1 - C(n - c, k) / C(n, k), Chen et al. 2021 (arXiv 2107.03374), equation 1. `ValueError` for k above n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"expected 1 <= k <= {num_samples} samples, found k = {k} and {num_right} right ones")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority_at_k(answers: Sequence[tuple[str | None, bool]]) -> float:
    """Return 1 where the most frequent answer is right, and the right share of those that are equally frequent.

    `answers`: (answer, whether it is right) of each sample; samples without an answer vote for nothing. An answer is
    right if one of its samples is: the same text may be cut off in another.
    """
    votes = Counter(answer for answer, _ in answers if answer is not None)
    if not votes:
        return 0.0
    right = {answer for answer, is_right in answers if is_right}
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in winners) / len(winners)


@dataclass(frozen=True)
class Difference:
    """How much better the second of two checkpoints does on the same questions."""

    num_questions: int
    first: float  # mean of the first
    second: float
    difference: float  # second - first
    interval: tuple[float, float]  # 95 %, by resampling questions
    p_value: float
    test: str  # how the p-value was found
    num_better: int  # questions at which the second does better
    num_worse: int


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Compare scores of the same questions, in the same order. `ValueError` for nothing, or other lengths."""
    if len(first) != len(second) or not first:
        raise ValueError(f"expected scores of the same questions, found {len(first)} and {len(second)}")
    deltas = np.asarray(second, float) - np.asarray(first, float)
    better, worse = int((deltas > 0).sum()), int((deltas < 0).sum())
    are_binary = set(first) | set(second) <= {0.0, 1.0}
    p_value = _mcnemar(better, worse) if are_binary else _sign_flips(deltas, seed)
    return Difference(
        len(deltas),
        float(np.mean(first)),
        float(np.mean(second)),
        float(deltas.mean()),
        bootstrap_interval(deltas, seed),
        p_value,
        "McNemar, exact" if are_binary else f"{NUM_RESAMPLES:,} sign flips",
        better,
        worse,
    )


def bootstrap_interval(values: "Sequence[float] | np.ndarray", seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean, by resampling the values.

    Percentiles are taken further out by what a percentile interval is too narrow with few values (Hesterberg 2015,
    arXiv 1411.5279, section 5.3). Where all values are equal, resampling shows no spread: then the interval reaches as
    far as one value of a whole unit in either direction could have been missed with a chance of 2.5 %.
    """
    found = np.asarray(values, float)
    count = len(found)
    if (found == found[0]).all():
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / count)
        return float(max(-1.0, found[0] - unseen)), float(min(1.0, found[0] + unseen))
    quantile = stats.t.ppf((1 + LEVEL) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = float(stats.norm.cdf(-quantile))
    rng = np.random.default_rng(seed)
    portion = max(1, 10_000_000 // count)  # resamples at once, so that memory stays bounded
    means = [
        found[rng.integers(0, count, (min(portion, NUM_RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, NUM_RESAMPLES, portion)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _mcnemar(better: int, worse: int) -> float:
    """The chance of so uneven a split of the questions that differ, were both checkpoints equally good."""
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sign_flips(deltas: np.ndarray, seed: int) -> float:
    """The share of random signs under which the mean is at least as far from 0."""
    rng = np.random.default_rng([seed, 1])
    observed, count, extreme = abs(float(deltas.mean())), len(deltas), 0
    portion = max(1, 10_000_000 // count)
    for start in range(0, NUM_RESAMPLES, portion):
        signs = rng.choice((-1.0, 1.0), (min(portion, NUM_RESAMPLES - start), count))
        extreme += int((np.abs((signs * deltas).mean(axis=1)) >= observed - 1e-12).sum())
    return (extreme + 1) / (NUM_RESAMPLES + 1)
