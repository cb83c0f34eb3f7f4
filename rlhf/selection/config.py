"""The settings of `python -m rlhf.pass_at_k`."""

from dataclasses import dataclass, field

from model.engine.config import Device
from model.json_values import member
from model.run.config import OUTSIDE
from rewards.config import RewardConfig
from rlhf.config import DataConfig
from rollouts.config import RolloutConfig

BLOCK = 4
"""Samples of a prompt that are drawn together. Raising k draws further blocks and keeps those that are there."""


@dataclass
class GeneralConfig:
    """Prompts that are added to the chosen ones without a choice, as in the report's second RL stage."""

    prompts: str = field(default="", metadata=OUTSIDE)
    """file or folder of prompts, as `prompts`; `general=FILE` is short for it; empty: none are added"""
    share: float = 0.5
    """share of them among all that are written; `general_share` is short for it. The report's is 0.5"""
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"general.share: expected above 0 and below 1, found {self.share}")


@dataclass
class PassAtKConfig:
    checkpoint: str = field(default="", metadata=OUTSIDE)
    """folder of the model that the prompts are for"""
    prompts: str = field(default="", metadata=OUTSIDE)
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; images lie beside the file or in it"""
    out: str = field(default="", metadata=OUTSIDE)
    """folder to write, or to continue"""
    k: int = 8
    """sampled thinking completions of each prompt, a multiple of 4; raising it later samples only what is new"""
    max_pass_rate: float = 1.0
    """prompts with this share of right completions or more are too easy and are dropped"""
    min_pass_rate: float = 0.0
    """prompts with a lower share of right completions are too hard and are dropped"""
    drop_all_wrong: bool = True
    """drop prompts without a right completion, too; false keeps them, as where a judge gives partial rewards"""
    num_prompts: int = 0
    """use the first so many rows; 0 uses all"""
    seed: int = 0
    """seed of the samples, and of the rows of the unfiltered arm"""
    num_threads: int = 2
    """CPU threads inside an operation"""
    device: Device = Device.auto
    """where to run: the GPU if there is one, in bfloat16, or what is named"""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    data: DataConfig = field(default_factory=DataConfig)
    general: GeneralConfig = field(default_factory=GeneralConfig)

    def __post_init__(self) -> None:
        self.device = member(Device, self.device, "device")
        for name in ("checkpoint", "prompts", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a path, found nothing")
        if self.k < BLOCK or self.k % BLOCK:
            raise ValueError(f"k: expected a multiple of {BLOCK}, found {self.k}")
        if not 0 < self.max_pass_rate <= 1:
            raise ValueError(f"max_pass_rate: expected above 0 and at most 1, found {self.max_pass_rate}")
        if not 0 <= self.min_pass_rate < self.max_pass_rate:
            raise ValueError(
                f"min_pass_rate: expected 0 or more, and below max_pass_rate = {self.max_pass_rate}, found "
                f"{self.min_pass_rate}"
            )
        if self.min_pass_rate and not self.drop_all_wrong:
            raise ValueError(
                f"drop_all_wrong: expected true with min_pass_rate = {self.min_pass_rate}, which drops prompts that "
                "are never answered right, found false; leave one of both out"
            )
        for name, least in (("num_prompts", 0), ("seed", 0), ("num_threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not self.reward.has_answers:
            raise ValueError("reward.verifier: expected one, because prompts are chosen by right answers, found none")
