"""Statistics of evaluations: pass@k, majority votes, and paired differences between two checkpoints."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
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


def paired_difference(
    first: Sequence[float], second: Sequence[float], units: Sequence[Hashable] | None = None, seed: int = 0
) -> Difference:
    """Compare scores of the same questions, in the same order. `ValueError` for nothing, or other lengths.

    `units`: for each question what belongs together, such as the questions about one image; units are resampled whole,
    because their questions are not independent. None: every question is one.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"expected scores of the same questions, found {len(first)} and {len(second)}")
    deltas = np.asarray(second, float) - np.asarray(first, float)
    _, places = np.unique([str(one) for one in units] if units else np.arange(len(deltas)), return_inverse=True)
    sums, counts = np.bincount(places, deltas), np.bincount(places)
    better, worse = int((deltas > 0).sum()), int((deltas < 0).sum())
    are_binary = set(first) | set(second) <= {0.0, 1.0} and len(sums) == len(deltas)
    return Difference(
        len(deltas),
        float(np.mean(first)),
        float(np.mean(second)),
        float(deltas.mean()),
        bootstrap_interval(sums, counts, seed),
        _mcnemar(better, worse) if are_binary else _sign_flips(sums, seed),
        "McNemar, exact" if are_binary else f"{NUM_RESAMPLES:,} sign flips",
        better,
        worse,
    )


def bootstrap_interval(
    sums: "Sequence[float] | np.ndarray", counts: "Sequence[int] | np.ndarray | None" = None, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a mean, by resampling units; `sums` and `counts` are those of the values of each unit.

    Percentiles are taken further out by what a percentile interval is too narrow with few units (Hesterberg 2015,
    arXiv 1411.5279, section 5.3). Where all units are equal, resampling shows no spread: then the interval reaches as
    far as a unit that differs by 1 could have been missed with a chance of 2.5 %.
    """
    totals = np.asarray(sums, float)
    sizes = np.ones(len(totals)) if counts is None else np.asarray(counts, float)
    count, means = len(totals), totals / sizes
    if (means == means[0]).all():
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / count)
        return float(max(-1.0, means[0] - unseen)), float(min(1.0, means[0] + unseen))
    quantile = stats.t.ppf((1 + LEVEL) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = float(stats.norm.cdf(-quantile))
    rng = np.random.default_rng(seed)
    portion = max(1, 4_000_000 // count)  # resamples at once, so that memory stays bounded
    found: list[np.ndarray] = []
    for start in range(0, NUM_RESAMPLES, portion):
        drawn = rng.integers(0, count, (min(portion, NUM_RESAMPLES - start), count))
        found.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def jackknife_interval(
    value: float, units: Sequence[Hashable], without: Callable[[Collection[int]], float | None], groups: int = 100
) -> tuple[float, float] | None:
    """The 95 % interval of a figure that is no mean, by leaving out one group of units after the other.

    `value`: the figure. `units`: for each row what belongs together. `without(rows)` is the figure without these rows,
    by number. None where a figure without a group has no value, or none differs.
    """
    _, places = np.unique([str(one) for one in units], return_inverse=True)
    count = min(groups, int(places.max()) + 1)
    group = np.random.default_rng(0).permutation(int(places.max()) + 1)[places] % count
    found = [without(set(np.flatnonzero(group == number).tolist())) for number in range(count)] if count > 1 else []
    values = [one for one in found if one is not None]
    if len(values) < max(2, count):
        return None
    error = math.sqrt((count - 1) * float(np.var(values)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return (value - half, value + half) if half else None


def _mcnemar(better: int, worse: int) -> float:
    """The chance of so uneven a split of the questions that differ, were both checkpoints equally good."""
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sign_flips(sums: np.ndarray, seed: int) -> float:
    """The share of random signs of the units' sums under which the total is at least as far from 0."""
    rng = np.random.default_rng([seed, 1])
    observed, count, extreme = abs(float(sums.sum())), len(sums), 0
    portion = max(1, 4_000_000 // count)
    for start in range(0, NUM_RESAMPLES, portion):
        signs = rng.choice((-1.0, 1.0), (min(portion, NUM_RESAMPLES - start), count))
        extreme += int((np.abs(signs @ sums) >= observed - 1e-9).sum())
    return (extreme + 1) / (NUM_RESAMPLES + 1)
