"""Settings of supervised fine-tuning: LongCoT SFT and think-fusion SFT."""

from dataclasses import dataclass, field

from model.data.config import ChatTableConfig, StreamConfig
from model.engine.config import OptimizerConfig, Schedule, SupervisedConfig
from model.run.config import OUTSIDE, RunConfig


@dataclass
class SftDataConfig(ChatTableConfig, StreamConfig):
    demonstrations: str = field(default="", metadata=OUTSIDE)
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; docs/sft.md lists the shapes of rows"""
    rollouts: str = field(default="", metadata=OUTSIDE)
    """folder of rollouts that an RL run stored; correct and well-formed ones become thinking samples"""
    last_rollout_steps: int = 20
    """how many of the RL run's last steps to take rollouts from"""
    prompts: str = field(default="", metadata=OUTSIDE)
    """prompts with references, in the same formats: direct samples, and the images of the rollouts"""
    direct_share: float = 0.0
    """share of direct samples in every step"""
    completion_column: str = ""
    """one text, a list, or messages; empty: completions or completion, else what docs/sft.md says"""
    thinking_column: str = ""
    """the thought before an answer; empty: thinking, reasoning, reasoning_content, cot or rationale"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_stream()
        if not 0.0 <= self.direct_share <= 1.0:
            raise ValueError(f"data.direct_share: expected a share between 0 and 1, found {self.direct_share}")


def _report_optimizer() -> OptimizerConfig:
    """SAIL-VL2 report, table 4: both SFT stages of the Thinking pipeline."""
    return OptimizerConfig(learning_rate=1e-6, schedule=Schedule.cosine)


@dataclass
class SftConfig(SupervisedConfig):
    """Defaults are the report's (table 4): AdamW at 1e-6 with cosine decay, batches of 1,024, one epoch."""

    checkpoint: str = field(default="", metadata=OUTSIDE)
    """folder of the model to start from"""
    batch_size: int = 1024
    """completions per update, at most"""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    optimizer: OptimizerConfig = field(default_factory=_report_optimizer)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/sft"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint: expected the folder of a model to start from, found nothing")
        data = self.data
        given = [key for key in ("demonstrations", "rollouts", "sources") if getattr(data, key)]
        if len(given) != 1:
            raise ValueError(
                "data: expected exactly one of data.demonstrations, data.rollouts and data.sources, found "
                f"{('neither', '', 'both', 'all')[len(given)]}"
            )
        if (data.rollouts or data.direct_share) and not data.prompts:
            raise ValueError("data.prompts: expected the prompts that rollouts and direct samples need, found nothing")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}")
