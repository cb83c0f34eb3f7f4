"""Settings of supervised fine-tuning: LongCoT SFT and think-fusion SFT."""

from dataclasses import dataclass, field
from enum import Enum

from model.data.config import ChatTableConfig, StreamConfig
from model.engine.config import OptimizerConfig, Schedule, SupervisedConfig
from model.json_values import member
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
        self.check_stream(instead=("demonstrations", "rollouts"))
        if not 0.0 <= self.direct_share <= 1.0:
            raise ValueError(f"data.direct_share: expected a share between 0 and 1, found {self.direct_share}")


def _report_optimizer() -> OptimizerConfig:
    """SAIL-VL2 report, table 4: both SFT stages of the Thinking pipeline."""
    return OptimizerConfig(learning_rate=1e-6, schedule=Schedule.cosine)


@dataclass
class SftTrainerConfig:
    """The loop that trains an SFT stage: our own."""

    name: str = field(default="sailvl2", metadata=OUTSIDE)
    """the loop that trains, as `trainer=NAME` chose it: sailvl2, or TRL's SFTTrainer with trl; not a key to set"""


@dataclass
class TrlSftTrainerConfig(SftTrainerConfig):
    """The same stage through TRL's `SFTTrainer`, as a baseline: docs/trl.md says what is off and what is not equal."""

    name: str = "trl"
    """the loop that trains, as `trainer=NAME` chose it: sailvl2, or TRL's SFTTrainer with trl; not a key to set"""


SFT_TRAINER_CONFIGS: dict[str, type[SftTrainerConfig]] = {"sailvl2": SftTrainerConfig, "trl": TrlSftTrainerConfig}
"""The choices of `trainer=NAME`."""


@dataclass
class SftConfig(SupervisedConfig):
    """Defaults are the report's (table 4): AdamW at 1e-6 with cosine decay, batches of 1,024, one epoch."""

    checkpoint: str = field(default="", metadata=OUTSIDE)
    """folder of the model to start from"""
    batch_size: int = 1024
    """completions per update, at most; with data.sources the size of an update is data.micro_batches_per_step"""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    trainer: SftTrainerConfig = field(default_factory=SftTrainerConfig)
    optimizer: OptimizerConfig = field(default_factory=_report_optimizer)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/sft"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("checkpoint: expected the folder of a model to start from, found nothing")
        data = self.data
        data.held_out("", self.evaluation.source)
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


class SoupMethod(Enum):
    """How checkpoints become one: their mean, a mean with `weights`, or the best of them with every further one that
    improves the score (greedy)."""

    uniform = "uniform"
    weighted = "weighted"
    greedy = "greedy"


@dataclass
class SoupConfig:
    """Model soup: one checkpoint whose weights are means of others' (SAIL-VL2 report, section 4.2.1); docs/soup.md."""

    checkpoints: list[str] = field(default_factory=list)
    """folders of models that were trained from the same start"""
    out: str = ""
    """folder to write"""
    method: SoupMethod = SoupMethod.uniform
    """uniform, weighted, or greedy, which needs `evaluate`"""
    weights: list[float] = field(default_factory=list)
    """one share for each checkpoint, for weighted; they are divided by their sum"""
    evaluate: str = ""
    """command that scores a folder, with {checkpoint} in its place; the last line that it prints is the score"""
    score: str = ""
    """key of the score where that line is a JSON object, with dots between levels; empty: the line is a number"""
    lower_is_better: bool = False
    """whether a lower score is a better one, as a loss is"""
    keep_worse: bool = False
    """write the merged model even if it scores worse than the best checkpoint"""

    def __post_init__(self) -> None:
        self.method = member(SoupMethod, self.method, "method")
        if len(self.checkpoints) < 2 or not all(self.checkpoints):
            raise ValueError(f"checkpoints: expected at least 2 folders of models, found {self.checkpoints}")
        if not self.out:
            raise ValueError("out: expected a folder to write, found nothing")
        self._check_weights()
        if self.method is SoupMethod.greedy and not self.evaluate:
            raise ValueError(
                "evaluate: expected a command for method=greedy, which goes by scores, found nothing; give, for "
                'example, evaluate="python -m rlhf.evaluate checkpoint={checkpoint} prompts=FILE output=-" '
                "score=modes.think.accuracy"
            )
        if self.evaluate and "{checkpoint}" not in self.evaluate:
            raise ValueError(
                f"evaluate: expected {{checkpoint}} where the folder's name belongs, found {self.evaluate!r:.200}"
            )

    def _check_weights(self) -> None:
        is_weighted = self.method is SoupMethod.weighted
        if is_weighted != bool(self.weights):
            expected = "one for each checkpoint" if is_weighted else "none"
            raise ValueError(f"weights: expected {expected} with method={self.method.value}, found {self.weights}")
        if not is_weighted:
            return
        if len(self.weights) != len(self.checkpoints):
            raise ValueError(
                f"weights: expected one for each of the {len(self.checkpoints)} checkpoints, found {len(self.weights)}"
            )
        if not all(0 <= weight < float("inf") for weight in self.weights) or not sum(self.weights):
            raise ValueError(f"weights: expected numbers of 0 or more that are not all 0, found {self.weights}")
