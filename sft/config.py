"""Settings of supervised fine-tuning: LongCoT SFT and think-fusion SFT."""

from dataclasses import dataclass, field

from model.engine.config import SupervisedConfig
from model.run.config import RunConfig


@dataclass
class SftDataConfig:
    demonstrations: str = ""
    """JSONL rows: id, mode (think | direct), messages, completions; images lie beside the file"""
    rollouts: str = ""
    """folder of rollouts that an RL run stored; correct and well-formed ones become thinking samples"""
    last_rollout_steps: int = 20
    """how many of the RL run's last steps to take rollouts from"""
    prompts: str = ""
    """JSONL prompts with references: direct samples, and the images of the rollouts"""
    direct_share: float = 0.0
    """share of direct samples in every step"""

    def __post_init__(self) -> None:
        if not 0.0 <= self.direct_share <= 1.0:
            raise ValueError(f"data.direct_share: expected a share between 0 and 1, found {self.direct_share}")


@dataclass
class SftConfig(SupervisedConfig):
    checkpoint: str = ""
    """folder of the model to start from"""
    max_steps: int = 100
    """optimizer updates"""
    batch_size: int = 32
    """completions per update, at most"""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/sft"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint: expected the folder of a model to start from, found nothing")
        data = self.data
        if bool(data.demonstrations) == bool(data.rollouts):
            found = "both" if data.rollouts else "neither"
            raise ValueError(f"data: expected exactly one of data.demonstrations and data.rollouts, found {found}")
        if (data.rollouts or data.direct_share) and not data.prompts:
            raise ValueError("data.prompts: expected the JSONL of prompts that rollouts and direct samples need")
        for name in ("max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
