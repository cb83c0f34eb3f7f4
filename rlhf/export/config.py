"""The settings of `python -m rlhf.export`."""

from dataclasses import dataclass, field

from model.config import Device, StoredDtype
from model.json_values import member


@dataclass
class ExportRunConfig:
    run: str = ""
    """folder of a finished pipeline, of a finished run, or of a model"""
    out: str = ""
    """folder to write"""
    dtype: StoredDtype = StoredDtype.keep
    """number type of the weights that are written; keep: that of the model"""
    temperature: float = 0.0
    """temperature by default of programs that read generation_config.json; 0: the most likely token each time"""
    top_p: float = 1.0
    """nucleus of these programs at a temperature above 0"""
    evaluations: list[str] = field(default_factory=list)
    """results of rlhf.evaluate whose figures the card shows, besides those that the pipeline or the run holds"""
    check: bool = True
    """compare greedy answers of the written folder, in transformers and in vLLM where they are installed, with ours"""
    check_tokens: int = 64
    """tokens of an answer that are compared"""
    device: Device = Device.auto
    """where the answers are computed, in float32"""
    num_threads: int = 2
    """CPU threads inside an operation"""

    def __post_init__(self) -> None:
        self.dtype = member(StoredDtype, self.dtype, "dtype")
        self.device = member(Device, self.device, "device")
        for name, what in (("run", "the folder of a pipeline, a run or a model"), ("out", "a new folder")):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected {what}, found nothing")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number from 0 on, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number above 0 and at most 1, found {self.top_p}")
        if self.top_p < 1 and not self.temperature:
            raise ValueError(
                f"top_p: {self.top_p} changes nothing at temperature=0, where no token is drawn; set a temperature too"
            )
        for name in ("check_tokens", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
