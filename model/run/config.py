"""Settings of a run's folder, shared by every training entry point."""

from dataclasses import dataclass
from enum import Enum


class StartMode(Enum):
    """`resume` continues from the newest checkpoint that verifies; `fresh` deletes the run's files first."""

    resume = "resume"
    fresh = "fresh"


@dataclass
class RunConfig:
    dir: str = ""
    """folder of this run; holds the config, metrics, events, checkpoints and the final model"""
    seed: int = 0
    """seed of everything random; draws are keyed by it, not streamed"""
    start: StartMode = StartMode.resume
    """resume: continue where the run stopped; fresh: start anew and delete what is there"""
    save_every: int = 20
    """steps between checkpoints"""
    keep_checkpoints: int = 2
    """newest checkpoints that stay"""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"run.seed: expected 0 or more, found {self.seed}")
        if not self.dir:
            raise ValueError("run.dir: expected a folder for the run, found nothing; set run.dir=runs/NAME")
        for name in ("save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name}: expected at least 1, found {getattr(self, name)}")
