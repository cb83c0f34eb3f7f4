"""Settings of a run's folder, shared by every training entry point."""

import importlib.util
from dataclasses import dataclass, field
from enum import Enum

from model.json_values import member
from model.run.interrupt import STOP_SECONDS

OUTSIDE = {"outside": True}
"""Field metadata of a setting that is no part of what a run is: a path, or what changes no number."""


class StartMode(Enum):
    """`resume` continues from the newest checkpoint that verifies; `fresh` deletes the run's files first."""

    resume = "resume"
    fresh = "fresh"


class TrackerName(Enum):
    """Where figures and some completions are shown while a run goes on; docs/report.md."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


@dataclass
class ReportConfig:
    """The report of a run: RUN/report.html, which docs/report.md shows."""

    enabled: bool = True
    """write RUN/report.html when the run or the pipeline ends; a stage of a pipeline is in the pipeline's report"""
    every: int = 0
    """steps after which it is written anew while the run goes on, in a process of its own; 0: only at the end"""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"report.every: expected 0 or more, found {self.every}")


@dataclass
class RunConfig:
    dir: str = field(default="", metadata=OUTSIDE)
    """folder of this run; holds the config, metrics, events, checkpoints and the final model"""
    seed: int = 0
    """seed of everything random; draws are keyed by it, not streamed"""
    start: StartMode = field(default=StartMode.resume, metadata=OUTSIDE)
    """resume: continue where the run stopped; fresh: start anew and delete what is there"""
    save_every: int = 20
    """steps between checkpoints"""
    keep_checkpoints: int = field(default=2, metadata=OUTSIDE)
    """newest checkpoints that stay"""
    save_in_background: bool = field(default=False, metadata=OUTSIDE)
    """copy the state to the host's memory and write it while training goes on; it counts once all of it is written"""
    export_checkpoints: bool = field(default=False, metadata=OUTSIDE)
    """beside every kept checkpoint write a model folder, exports/step_N, that transformers and vLLM load"""
    accept_changes: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """inputs (prompts, checkpoint, code ...) whose content may differ from what the run began with"""
    extend: bool = field(default=False, metadata=OUTSIDE)
    """let max_steps grow although the learning-rate schedule was laid out for fewer steps"""
    stop_seconds: float = field(default=STOP_SECONDS, metadata=OUTSIDE)
    """seconds after SIGTERM in which the step may be ended and saved; then it is given up"""

    trackers: list[TrackerName] = field(default_factory=lambda: [TrackerName.tensorboard], metadata=OUTSIDE)
    """where figures and some completions are shown: tensorboard (RUN/events), wandb, trackio; none with []"""

    def __post_init__(self) -> None:
        self.trackers = [member(TrackerName, name, "run.trackers") for name in self.trackers]
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"run.trackers: expected each once, found {', '.join(one.value for one in self.trackers)}")
        for tracker in self.trackers:
            if tracker is not TrackerName.tensorboard and not _is_installed(tracker.value):
                raise ValueError(
                    f"run.trackers: {tracker.value}: expected the package {tracker.value}, found none; "
                    f"pip install 'sailvl2-rl[{tracker.value}]'"
                )
        self.start = member(StartMode, self.start, "run.start")
        if self.seed < 0:
            raise ValueError(f"run.seed: expected 0 or more, found {self.seed}")
        if not self.dir:
            raise ValueError("run.dir: expected a folder for the run, found nothing; set run.dir=runs/NAME")
        if not 0 < self.stop_seconds < float("inf"):
            raise ValueError(f"run.stop_seconds: expected above 0, found {self.stop_seconds}")
        for name in ("save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name}: expected at least 1, found {getattr(self, name)}")


def _is_installed(package: str) -> bool:
    """Whether a package can be imported. A folder of its name without modules, as trackers leave one, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
