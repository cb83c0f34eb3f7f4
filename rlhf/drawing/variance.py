"""Scores of prompts by how much their rewards and completions vary: MMR1's variance promotion (arXiv 2509.21268)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from rlhf.config import VarianceConfig

RUN_LENGTH = 3
"""Tokens of a run, where a group's diversity is the share of different runs: distinct-3."""


def distinct_share(completions: Iterable[Sequence[int]]) -> float:
    """Different runs of three tokens / all of them, over the completions of a group; from 0 to 1.

    Completions that are too short to have one add nothing; it is 0 where none has.
    """
    runs = [zip(*(ids[start:] for start in range(RUN_LENGTH)), strict=False) for ids in completions]
    found = list(chain.from_iterable(runs))
    return len(set(found)) / len(found) if found else 0.0


class VarianceWeights:
    """How often each prompt is drawn, relative to the others, from the scores of those that were seen.

    A share of the draws is uniform; the others are in proportion to the scores. A prompt that was never seen counts as
    the mean of those that were.
    """

    def __init__(
        self, config: VarianceConfig, pass_rates: Mapping[str, float], diversities: Mapping[str, float]
    ) -> None:
        self._config = config
        self._scores = {name: self._score(rate, diversities.get(name, 0.0)) for name, rate in pass_rates.items()}
        # The exact sum does not depend on the order, so that a run that goes on has the same to the last bit.
        self._mean = math.fsum(self._scores.values()) / len(self._scores) if self._scores else 0.0
        self._largest = max(1.0, self._relative(max(self._scores.values(), default=0.0)))

    def share(self, prompt_id: str) -> float:
        """The prompt's weight / the largest weight: 0 to 1."""
        score = self._scores.get(prompt_id)
        return (1.0 if score is None else self._relative(score)) / self._largest

    def _score(self, pass_rate: float, diversity: float) -> float:
        return self._config.outcome * pass_rate * (1.0 - pass_rate) + self._config.diversity * diversity

    def _relative(self, score: float) -> float:
        """The weight of a prompt with this score, where the mean weight is 1."""
        share = self._config.share
        return 1.0 - share + share * score / self._mean if self._mean > 0 else 1.0
