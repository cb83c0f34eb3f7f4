"""Settings of multimodal pre-training."""

from dataclasses import dataclass, field

from model.config import Flavour
from model.engine.config import SupervisedConfig
from model.run.config import RunConfig


@dataclass
class PretrainDataConfig:
    path: str = "data/digits/pretrain.jsonl"
    """JSONL rows: id, kind, images (paths beside the file), prefix (not trained), texts (each trained after it)"""
    mixture: dict[str, int] = field(default_factory=lambda: {"caption": 24, "worked": 24, "direct": 32})
    """rows per step of each kind"""

    def __post_init__(self) -> None:
        if not self.mixture or any(count < 0 for count in self.mixture.values()) or not any(self.mixture.values()):
            raise ValueError(f"data.mixture: expected rows per step of at least one kind, found {self.mixture}")


@dataclass
class PretrainConfig(SupervisedConfig):
    model: Flavour = Flavour.tiny
    """flavour to build from nothing"""
    max_steps: int = 400
    """optimizer updates"""
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/pretrain"))
