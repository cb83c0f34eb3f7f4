"""Settings of reinforcement learning, evaluation and the pipeline."""

from dataclasses import dataclass, field
from enum import Enum

from model.engine.config import EngineConfig, OptimizerConfig, RunConfig, Schedule
from rewards.config import RewardConfig
from rollouts.config import RolloutConfig


class AdvantageScale(Enum):
    """What a reward's distance from its group's mean is divided by."""

    group_std = "group_std"
    none = "none"


class LossNormalisation(Enum):
    """`tokens`: every trained token of the update weighs the same; `sequences`: every trajectory does."""

    tokens = "tokens"
    sequences = "sequences"


class GroupFilter(Enum):
    """Which groups train: all, those with right and wrong answers, or those with different total rewards."""

    none = "none"
    correctness_spread = "correctness_spread"
    reward_spread = "reward_spread"


@dataclass
class AlgorithmConfig:
    name: str = ""
    """registered algorithm"""
    group_size: int = 8
    """completions per prompt [G]"""
    clip_low: float = 0.2
    """the ratio is clipped below 1 - clip_low"""
    clip_high: float = 0.2
    """the ratio is clipped above 1 + clip_high"""
    advantage_scale: AdvantageScale = AdvantageScale.group_std
    """divide advantages by the group's standard deviation, or by nothing"""
    normalisation: LossNormalisation = LossNormalisation.tokens
    """what the loss of an update is divided by"""
    group_filter: GroupFilter = GroupFilter.none
    """which groups train; filtered ones are replaced by new draws"""
    kl_coefficient: float = 0.0
    """weight of the k3 estimate of KL(policy, reference) in the loss; 0 keeps no reference model"""

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"algorithm.group_size: expected at least 1, found {self.group_size}")
        if self.group_size == 1 and self.advantage_scale is AdvantageScale.group_std:
            raise ValueError(
                "algorithm.group_size: expected at least 2 with algorithm.advantage_scale=group_std (one completion "
                "has no spread), found 1; raise the group size or set advantage_scale=none"
            )
        if self.group_size == 1 and self.group_filter is not GroupFilter.none:
            raise ValueError("algorithm.group_filter: expected none with algorithm.group_size=1, found a spread filter")
        if not 0 < self.clip_low < 1 or not self.clip_high > 0:
            raise ValueError(
                f"algorithm.clip_low, algorithm.clip_high: expected 0 < clip_low < 1 and clip_high > 0, found "
                f"{self.clip_low}, {self.clip_high}"
            )
        if not 0 <= self.kl_coefficient < float("inf"):
            raise ValueError(f"algorithm.kl_coefficient: expected 0 or more, found {self.kl_coefficient}")


@dataclass
class GrpoConfig(AlgorithmConfig):
    """GRPO (arXiv 2402.03300): symmetric clip, per-sequence mean, KL to the reference in the loss, no filter."""

    name: str = "grpo"
    normalisation: LossNormalisation = LossNormalisation.sequences
    kl_coefficient: float = 0.04


@dataclass
class DapoConfig(AlgorithmConfig):
    """DAPO (arXiv 2503.14476): clip-higher, token-level loss, dynamic sampling, soft overlong punishment, no KL."""

    name: str = "dapo"
    clip_high: float = 0.28
    group_filter: GroupFilter = GroupFilter.correctness_spread
    overlong_buffer: int = 8
    """completion tokens before the limit in which the punishment grows from 0 to `overlong_penalty`"""
    overlong_penalty: float = 1.0
    """reward taken from a completion that reaches the limit"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlong_buffer < 0 or self.overlong_penalty < 0:
            raise ValueError("algorithm.overlong_buffer, algorithm.overlong_penalty: expected 0 or more")


@dataclass
class TrainerConfig:
    max_steps: int = 50
    """steps: sampled sets of groups"""
    groups_per_step: int = 32
    """useful groups that make a step"""
    mini_batch_size: int = 256
    """rollouts per optimizer update; a multiple of the group size"""
    passes: int = 1
    """times each step's rollouts are trained on"""
    max_draws: int = 96
    """prompts drawn per step at most, dropped groups included; then the step trains on what it has"""
    show_every: int = 10
    """steps between printed rollouts"""

    def __post_init__(self) -> None:
        for name in ("max_steps", "groups_per_step", "mini_batch_size", "passes", "show_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}: expected at least 1, found {getattr(self, name)}")
        if self.max_draws < self.groups_per_step:
            raise ValueError(
                f"trainer.max_draws: expected at least trainer.groups_per_step = {self.groups_per_step}, "
                f"found {self.max_draws}"
            )


def _rl_optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=5e-4, warmup_steps=5, schedule=Schedule.linear, beta2=0.99, weight_decay=0.0)


@dataclass
class RlConfig:
    checkpoint: str = ""
    """folder of the model to start from"""
    prompts: str = ""
    """JSONL rows: id, messages, reference and any further columns; images lie beside the file"""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optimizer: OptimizerConfig = field(default_factory=_rl_optimizer)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/rl"))

    def __post_init__(self) -> None:
        for name in ("checkpoint", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a path, found nothing")
        if self.trainer.mini_batch_size % self.algorithm.group_size:
            raise ValueError(
                f"trainer.mini_batch_size: expected a multiple of algorithm.group_size = {self.algorithm.group_size}, "
                f"found {self.trainer.mini_batch_size}; groups are never split over mini-batches"
            )
        buffer = getattr(self.algorithm, "overlong_buffer", 0)
        if buffer > self.rollouts.max_completion_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer: expected at most rollouts.max_completion_tokens = "
                f"{self.rollouts.max_completion_tokens}, found {buffer}"
            )


@dataclass
class EvaluateConfig:
    checkpoint: str = ""
    """folder of the model to evaluate"""
    prompts: str = ""
    """JSONL rows: id, messages, reference"""
    output: str = ""
    """JSON file for the result; empty prints it only"""
    num_prompts: int = 0
    """use the first so many rows; 0 uses all"""
    seed: int = 0
    """seed of the sampled evaluation"""
    num_threads: int = 2
    """CPU threads inside an operation"""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        for name in ("checkpoint", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a path, found nothing")
        if self.num_prompts < 0 or self.seed < 0 or self.num_threads < 1:
            raise ValueError(
                f"num_prompts, seed, num_threads: expected 0 or more, 0 or more, 1 or more, "
                f"found {self.num_prompts}, {self.seed}, {self.num_threads}"
            )


@dataclass
class StagesConfig:
    """KEY=VALUE overrides of each stage's own command; the command line's stages.NAME.KEY=VALUE come after these."""

    pretrain: list[str] = field(default_factory=lambda: ["recipe=quickstart"])
    """python -m model.pretrain.train"""
    longcot_sft: list[str] = field(default_factory=lambda: ["recipe=quickstart_longcot"])
    """python -m sft.train"""
    rl: list[str] = field(default_factory=lambda: ["recipe=quickstart"])
    """python -m rlhf.train"""
    think_fusion: list[str] = field(default_factory=lambda: ["recipe=quickstart_fusion"])
    """python -m sft.train"""


@dataclass
class PipelineConfig:
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/quickstart"))
    stages: StagesConfig = field(default_factory=StagesConfig)
    prepare: str = "examples.digits.write"
    """module that writes the data, called with out=DIR; it makes pretrain, demonstrations, train and test JSONL"""
    prepare_arguments: list[str] = field(default_factory=list)
    """KEY=VALUE arguments of `prepare`"""
    data: str = "data/digits"
    """folder of the data; written if it is not there"""
    split: str = "test"
    """data split that is evaluated after every stage"""
    num_eval: int = 0
    """evaluate the first so many questions; 0 evaluates all"""
    num_threads: int = 2
    """CPU threads inside an operation, in every stage and evaluation"""

    def __post_init__(self) -> None:
        if self.num_eval < 0 or self.num_threads < 1:
            raise ValueError(
                f"num_eval, num_threads: expected at least 0 and 1, found {self.num_eval} and {self.num_threads}"
            )
