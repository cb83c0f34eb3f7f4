"""Settings of the estimate: those of a run, and the machine."""

from dataclasses import dataclass, field

from model.config import Flavour
from model.engine.planning.machines import Gpu
from model.json_values import member
from rlhf.config import RlConfig


@dataclass
class EstimateConfig(RlConfig):
    """A run that is not started. `checkpoint` may name the model instead of `model`; `prompts` are not read."""

    prompts: str = "none"
    """not read"""
    model: Flavour = Flavour.sailvl2_2b
    """flavour to estimate, where there is no checkpoint"""
    gpu: Gpu = Gpu.h100_80
    """kind of every GPU, with its memory in GB; cpu: processes on this machine"""
    gpus: int = 8
    """GPUs of a node, or processes with gpu=cpu; engine=local uses one"""
    nodes: int = 1
    """nodes with so many GPUs each"""
    visual_share: float = 0.94
    """share of a prompt's tokens that are visual; 0: text alone"""
    table: bool = False
    """write the table of docs/clusters.md instead: 2B, 8B and A3B, full and with adapters, on 1, 8 and 16 GPUs"""
    output: str = field(default="")
    """-: print JSON instead of a table"""

    def __post_init__(self) -> None:
        self.model = member(Flavour, self.model, "model")
        self.gpu = member(Gpu, self.gpu, "gpu")
        is_named, self.checkpoint = bool(self.checkpoint), self.checkpoint or "none"
        super().__post_init__()
        self.checkpoint = self.checkpoint if is_named else ""
        for name in ("gpus", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.visual_share < 1:
            raise ValueError(f"visual_share: expected 0 to below 1, found {self.visual_share}")
        if self.output not in ("", "-"):
            raise ValueError(f"output: expected - for JSON, or nothing for a table, found {self.output!r}")
