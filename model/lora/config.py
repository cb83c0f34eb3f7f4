"""Settings of low-rank adapters, the choices of `adapter=NAME`."""

from dataclasses import dataclass, field
from pathlib import Path

from model.run.config import OUTSIDE

DEFAULT_TARGETS = ("language_model", "mlp1")


@dataclass
class AdapterConfig:
    """Train the weights themselves."""

    name: str = "none"
    """none trains the weights, lora trains adapters beside them, as `adapter=NAME` chose it; not a key to set"""

    def learning_rate(self, full: float) -> float:
        """The peak learning rate, where `full` is the one for the weights themselves."""
        return full

    def described(self, full: float) -> list[str]:
        """Say what the adapters are, and which learning rate they get where `full` is the one of the config."""
        return []


@dataclass
class LoraConfig(AdapterConfig):
    """Train low-rank adapters and leave the weights as they are. docs/lora.md names the sources of the defaults."""

    name: str = "lora"
    rank: int = 16
    """rank of every adapter"""
    alpha: int = 32
    """an adapter's output is multiplied by alpha / rank"""
    targets: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """parts of the dotted names of the linear layers that get adapters, such as q_proj, mlp1, vision_model or
    layers.0.mlp; `experts` names the stacks of an MoE decoder, which no other name includes"""
    learning_rate_factor: float = 10.0
    """adapters train with so many times optimizer.learning_rate, which is that of full training"""
    path: str = field(default="", metadata=OUTSIDE)
    """folder of adapters in PEFT's format to start from; empty: fresh ones, which change nothing at first"""

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"adapter.{name}: expected at least 1, found {getattr(self, name)}")
        if not self.targets or not all(self.targets):
            raise ValueError(
                f"adapter.targets: expected names of layers, such as [{', '.join(DEFAULT_TARGETS)}], found "
                f"{self.targets}"
            )
        if head := [target for target in self.targets if "lm_head" in target.split(".")]:
            raise ValueError(
                f"adapter.targets: expected layers that are called, found {head[0]}; log-probabilities read the "
                "head's weight, so an adapter on it would do nothing: leave lm_head out"
            )
        if not 0 < self.learning_rate_factor < float("inf"):
            raise ValueError(
                f"adapter.learning_rate_factor: expected a positive number, found {self.learning_rate_factor}"
            )
        if self.path and not Path(self.path).is_dir():
            raise ValueError(f"adapter.path: expected a folder of adapters, found none at {self.path}")

    def learning_rate(self, full: float) -> float:
        return full * self.learning_rate_factor

    def described(self, full: float) -> list[str]:
        start = f"from {self.path}" if self.path else "fresh"
        return [
            f"adapters: rank {self.rank}, alpha {self.alpha}, {start}, on {', '.join(self.targets)}",
            f"learning rate: {self.learning_rate(full):g} = adapter.learning_rate_factor {self.learning_rate_factor:g} "
            f"x optimizer.learning_rate {full:g}; the recommended factor is 10, for a rate that suits full training "
            "(docs/lora.md)",
        ]


ADAPTER_CONFIGS: dict[str, type[AdapterConfig]] = {"none": AdapterConfig, "lora": LoraConfig}
"""The choices of `adapter=NAME`."""
