"""Settings of multimodal pre-training."""

from dataclasses import dataclass, field

from model.config import Flavour
from model.data.config import StreamConfig, TableConfig
from model.engine.config import SupervisedConfig
from model.json_values import member
from model.run.config import OUTSIDE, RunConfig


@dataclass
class PretrainDataConfig(TableConfig, StreamConfig):
    path: str = field(default="", metadata=OUTSIDE)
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; columns: id, kind (else the file's name),
    images, prefix (not trained), texts, text or caption (each trained after it)"""
    mixture: dict[str, int] = field(default_factory=dict)
    """rows per step of each kind"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_stream(instead=("path",))
        if any(count < 0 for count in self.mixture.values()):
            raise ValueError(f"data.mixture: expected rows per step, 0 or more, found {self.mixture}")


@dataclass
class PretrainConfig(SupervisedConfig):
    model: Flavour | None = None
    """flavour to build from nothing"""
    checkpoint: str = field(default="", metadata=OUTSIDE)
    """folder of a model to go on from, instead of `model`: continued pre-training"""
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/pretrain"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model = None if self.model is None else member(Flavour, self.model, "model")
        if self.model is None and not self.checkpoint:
            choices = ", ".join(flavour.value for flavour in Flavour)
            raise ValueError(
                f"model: expected a flavour to build from nothing, one of {choices}, or checkpoint=DIR to go on from, "
                "found none"
            )
        if self.model is not None and self.checkpoint:
            raise ValueError(
                f"model, checkpoint: expected one of both, found {self.model.value} and {self.checkpoint}; to go on "
                "from the checkpoint set model=null"
            )
        self.data.held_out("", self.evaluation.source)
        if bool(self.data.path) == bool(self.data.sources):
            found = "both" if self.data.path else "neither"
            raise ValueError(
                "data.path, data.sources: expected a file of documents, or several sources of rows, found nothing"
                if found == "neither"
                else "data.path, data.sources: expected one of both, found both; leave one out"
            )
