"""Which prompt is drawn next: keyed epochs, thinned by weights. All its state is one number and the pass rates."""

from collections.abc import Sequence

import numpy as np

from model.data.order import KeyedOrder
from model.run.state import State
from rlhf.config import Curriculum
from rollouts.randomness import sample_seed, uniforms

MIN_CURRICULUM_WEIGHT = 0.1
"""A prompt that always or never succeeds is still drawn at a tenth of the highest rate: policies change."""
MEMORY = 0.5
"""How much of a prompt's pass rate the next draw leaves standing."""


class DrawOrder:
    """Walks through epochs over all prompts and takes each with a probability in proportion to its weight.

    With equal weights every prompt is taken once per epoch. The choice is a function of the seed, of the position in
    the walk and of the pass rates, so a checkpoint of those two continues exactly.
    """

    def __init__(
        self, prompt_ids: Sequence[str], weights: Sequence[float], seed: int, curriculum: Curriculum = Curriculum.none
    ) -> None:
        """`weights` [prompts] are sampling weights of data sets; those of weight 0 are never drawn."""
        if not any(weight > 0 for weight in weights):
            raise ValueError("data.weights: expected a data set with a weight above 0, found none")
        self.cursor = 0
        self.pass_rates: dict[str, float] = {}
        self._ids, self._weights = list(prompt_ids), list(weights)
        self._largest = max(weights)
        self._seed, self._curriculum = seed, curriculum
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

    def record(self, prompt_id: str, num_right: float, num_scored: int) -> None:
        """Remember how often a draw of the prompt succeeded; a completion may succeed in part."""
        if num_scored:
            latest = num_right / num_scored
            earlier = self.pass_rates.get(prompt_id, latest)
            self.pass_rates[prompt_id] = MEMORY * earlier + (1 - MEMORY) * latest

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        return {"cursor": self.cursor, "pass_rates": dict(self.pass_rates)}

    def restore(self, state: State) -> None:
        self.cursor, self.pass_rates = state["cursor"], dict(state["pass_rates"])

    def _curriculum_weight(self, prompt_id: str) -> float:
        if self._curriculum is Curriculum.none or prompt_id not in self.pass_rates:
            return 1.0
        rate = self.pass_rates[prompt_id]
        return max(MIN_CURRICULUM_WEIGHT, 4.0 * rate * (1.0 - rate))
