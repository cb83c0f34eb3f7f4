"""Settings of the reward: which parts, which weights, which limits."""

import math
from dataclasses import dataclass, field


@dataclass
class RewardConfig:
    answer_weight: float = 0.9
    """weight of the answer part: 1 when the boxed answer equals the reference, else 0 (the report states no weights)"""
    format_weight: float = 0.1
    """weight of the format part (1 for exactly one think block followed by one boxed answer, else 0)"""
    functions: list[str] = field(default_factory=list)
    """own reward functions, each FILE.py:NAME, called once per completion with a rewards.rubric.RewardInput"""
    function_weights: list[float] = field(default_factory=list)
    """one weight per function; empty means 0.1 each"""
    timeout_seconds: float = 5.0
    """deadline of one verifier or function call in its worker process; a call past it is unscorable"""
    num_workers: int = 1
    """worker processes for symbolic answers and own functions; started when first needed"""
    max_unscorable_share: float = 0.02
    """the run stops when more than this share of the last 1,000 completions (at least 200 seen) is unscorable"""

    def __post_init__(self) -> None:
        if self.function_weights and len(self.function_weights) != len(self.functions):
            raise ValueError(
                f"reward.function_weights: expected {len(self.functions)} weights (one per function) or none, "
                f"found {len(self.function_weights)}"
            )
        for function in self.functions:
            path, colon, name = function.rpartition(":")
            if not colon or not path or not name.isidentifier():
                raise ValueError(f"reward.functions: expected FILE.py:NAME, found {function!r}")
        weights = {"answer_weight": self.answer_weight, "format_weight": self.format_weight}
        for name, value in {**weights, "function_weights": sum(self.function_weights)}.items():
            if not math.isfinite(value):
                raise ValueError(f"reward.{name}: expected a finite number, found {value}")
        if not 0.0 <= self.max_unscorable_share <= 1.0:
            raise ValueError(
                f"reward.max_unscorable_share: expected a share between 0 and 1, found {self.max_unscorable_share}"
            )
        if self.timeout_seconds <= 0 or self.num_workers < 1:
            raise ValueError("reward.timeout_seconds, reward.num_workers: expected positive values")

    @property
    def weights(self) -> list[float]:
        return self.function_weights or [0.1] * len(self.functions)
