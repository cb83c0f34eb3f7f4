"""Which prompt is drawn next: keyed epochs, thinned by weights. All its state is one number and what prompts gave."""

from collections.abc import Sequence

import numpy as np

from model.data.order import KeyedOrder
from model.run.state import State
from rlhf.config import Curriculum, VarianceConfig
from rlhf.drawing.variance import VarianceWeights
from rollouts.randomness import sample_seed, uniforms

MIN_CURRICULUM_WEIGHT = 0.1
"""A prompt that always or never succeeds is still drawn at a tenth of the highest rate: policies change."""
MEMORY = 0.5
"""How much of a prompt's pass rate the next draw leaves standing."""


class DrawOrder:
    """Walks through epochs over all prompts and takes each with a probability in proportion to its weight.

    With equal weights every prompt is taken once per epoch. The choice is a function of the seed, of the position in
    the walk, and of the pass rates and diversities, so a checkpoint of these continues exactly.
    """

    def __init__(
        self,
        prompt_ids: Sequence[str],
        weights: Sequence[float],
        seed: int,
        curriculum: Curriculum = Curriculum.none,
        variance: VarianceConfig | None = None,
    ) -> None:
        """`weights` [prompts] are sampling weights of data sets; those of weight 0 are never drawn. `variance` says how
        `Curriculum.variance` scores prompts."""
        if not any(weight > 0 for weight in weights):
            raise ValueError("data.weights: expected a data set with a weight above 0, found none")
        self.cursor = 0
        self.pass_rates: dict[str, float] = {}
        self.diversities: dict[str, float] = {}  # kept where the curriculum asks for them
        self._ids, self._weights = list(prompt_ids), list(weights)
        self._largest = max(weights)
        self._seed, self._curriculum = seed, curriculum
        self._variance = variance or VarianceConfig()
        self._scored: VarianceWeights | None = None  # made when a prompt is drawn, of what was seen until then
        self._order = KeyedOrder(len(self._ids), seed, "prompts")

    @property
    def num_prompts(self) -> int:
        return len(self._ids)

    def next(self) -> int:
        """Index of the next prompt."""
        while True:
            index = self._order.rows(self.cursor, 1)[0]
            seeds = np.array([sample_seed(self._seed, self.cursor, -1)], np.uint64)
            self.cursor += 1
            share = self._weights[index] / self._largest * self._curriculum_weight(self._ids[index])
            if share >= 1.0 or uniforms(seeds, 0)[0] < share:
                return index

    @property
    def wants_diversity(self) -> bool:
        """Whether `record` is to be told the diversity of a draw's completions."""
        return self._curriculum is Curriculum.variance

    def record(self, prompt_id: str, num_right: float, num_scored: int, diversity: float | None = None) -> None:
        """Remember how often a draw of the prompt succeeded, and how much its completions differed (0 to 1).

        A completion may succeed in part. A draw of which nothing was scored says nothing.
        """
        if num_scored:
            _remember(self.pass_rates, prompt_id, num_right / num_scored)
            if diversity is not None:
                _remember(self.diversities, prompt_id, diversity)
            self._scored = None

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        seen = {"diversities": dict(self.diversities)} if self.wants_diversity else {}
        return {"cursor": self.cursor, "pass_rates": dict(self.pass_rates), **seen}

    def restore(self, state: State) -> None:
        self.cursor, self.pass_rates = state["cursor"], dict(state["pass_rates"])
        self.diversities, self._scored = dict(state.get("diversities", {})), None

    def _curriculum_weight(self, prompt_id: str) -> float:
        if self._curriculum is Curriculum.variance:
            if self._scored is None:
                self._scored = VarianceWeights(self._variance, self.pass_rates, self.diversities)
            return self._scored.share(prompt_id)
        if self._curriculum is Curriculum.none or prompt_id not in self.pass_rates:
            return 1.0
        rate = self.pass_rates[prompt_id]
        return max(MIN_CURRICULUM_WEIGHT, 4.0 * rate * (1.0 - rate))


def _remember(values: dict[str, float], prompt_id: str, latest: float) -> None:
    """Move the prompt's mean, in which the latest draw counts as much as all before it."""
    values[prompt_id] = MEMORY * values.get(prompt_id, latest) + (1 - MEMORY) * latest
