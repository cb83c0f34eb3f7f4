"""The entropy bonus: its settings, and a coefficient that follows the entropy of the policy."""

import math
from dataclasses import dataclass

from model.run.state import State


@dataclass
class EntropyConfig:
    coefficient: float = 0.0
    """weight of the entropy bonus, per token as the loss weighs tokens; with a target the weight of the first step"""
    target: float = 0.0
    """entropy of a token, in nats, below which the coefficient grows by `step` after each step, and above which it
    shrinks and the bonus is off (after Skywork-OR1, arXiv 2505.22312); 0 keeps the coefficient as it is"""
    step: float = 0.005
    """change of the coefficient after a step of the trainer; docs/algorithms.md says where the 0.005 comes from"""
    most: float | None = None
    """largest coefficient; null: none"""

    def __post_init__(self) -> None:
        if not abs(self.coefficient) < float("inf"):
            raise ValueError(f"algorithm.entropy.coefficient: expected a number, found {self.coefficient}")
        if not 0 <= self.target < float("inf"):
            raise ValueError(f"algorithm.entropy.target: expected 0 (off) or more, found {self.target}")
        if not 0 < self.step < float("inf"):
            raise ValueError(f"algorithm.entropy.step: expected a number above 0, found {self.step}")
        if not self.target:
            return
        if self.coefficient < 0:
            raise ValueError(
                f"algorithm.entropy.coefficient: expected 0 or more with algorithm.entropy.target={self.target}, which "
                f"only raises an entropy, found {self.coefficient}"
            )
        if self.most is not None and not max(self.coefficient, self.step) <= self.most < float("inf"):
            raise ValueError(
                "algorithm.entropy.most: expected null, or at least algorithm.entropy.coefficient and "
                f"algorithm.entropy.step = {max(self.coefficient, self.step)}, found {self.most}"
            )


class EntropyControl:
    """The coefficient of the entropy bonus in the present step.

    Without a target it is always the configured one. With a target it is moved after each step by that step's entropy,
    which is measured while the step trains and so acts in the next one.
    """

    def __init__(self, config: EntropyConfig) -> None:
        self._config = config
        self._value = config.coefficient
        self._is_below = True  # whether the entropy of the last step is at most the target

    @property
    def is_adaptive(self) -> bool:
        return self._config.target > 0

    @property
    def may_act(self) -> bool:
        """Whether the loss has or may get an entropy bonus."""
        return self.is_adaptive or self._config.coefficient != 0

    @property
    def coefficient(self) -> float:
        """Weight of the bonus now; 0 while the entropy is above the target."""
        return self._value if self._is_below else 0.0

    def look(self, entropy: float) -> dict[str, float]:
        """Move the coefficient after a step whose mean entropy over trained tokens [nats] is `entropy`.

        NaN, as of a step without an update, moves nothing. Returns the step's own coefficient as a figure of its
        metrics; nothing without a target.
        """
        if not self.is_adaptive:
            return {}
        used, config = self.coefficient, self._config
        if math.isfinite(entropy):
            self._is_below = entropy <= config.target
            change = config.step if entropy < config.target else -config.step
            most = math.inf if config.most is None else config.most
            self._value = min(most, max(0.0, self._value + change))
        return {"entropy_coefficient": used}

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        return {"value": self._value, "is_below": self._is_below}

    def restore(self, state: State) -> None:
        self._value, self._is_below = state["value"], state["is_below"]
