"""Settings of multimodal pre-training."""

from dataclasses import dataclass, field

from model.config import Flavour
from model.data.config import TableConfig
from model.engine.config import SupervisedConfig
from model.run.config import OUTSIDE, RunConfig


@dataclass
class PretrainDataConfig(TableConfig):
    path: str = field(default="", metadata=OUTSIDE)
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; columns: id, kind, images, prefix (not
    trained), texts (each trained after it)"""
    mixture: dict[str, int] = field(default_factory=dict)
    """rows per step of each kind"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(count < 0 for count in self.mixture.values()):
            raise ValueError(f"data.mixture: expected rows per step, 0 or more, found {self.mixture}")


@dataclass
class PretrainConfig(SupervisedConfig):
    model: Flavour | None = None
    """flavour to build from nothing"""
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/pretrain"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            choices = ", ".join(flavour.value for flavour in Flavour)
            raise ValueError(f"model: expected a flavour to build from nothing, one of {choices}, found none")
        if not self.data.path:
            raise ValueError("data.path: expected a file of documents, found nothing")
