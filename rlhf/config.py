"""Settings of reinforcement learning, evaluation and the pipeline."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self

from model.config import Flavour, StoredDtype
from model.data.config import ChatTableConfig
from model.engine.config import EngineConfig, OptimizerConfig, require_fitting
from model.engine.planning.machines import Gpu
from model.interface import Mode
from model.json_values import JsonObject, member
from model.lora.config import AdapterConfig, LoraConfig
from model.run.config import OUTSIDE, ReportConfig, RunConfig
from rewards.config import RewardConfig
from rlhf.algorithms.config import AlgorithmConfig, Correction, RatioLevel
from rollouts.config import RolloutConfig


class BudgetEnd(Enum):
    """How a step ends whose draws are used up before it has its groups: train those it has, train none of them, or
    end the run with exit code 7 after a checkpoint.
    """

    train_partial = "train_partial"
    skip_step = "skip_step"
    stop = "stop"


class KeepSurplus(Enum):
    """Whether useful groups beyond those that a step needs are dropped, or kept for the next step."""

    never = "never"
    always = "always"


class Curriculum(Enum):
    """Which prompts are drawn more often: none; by `pass_rate` p those that sometimes succeed, as p (1 - p); or by
    `variance` those whose rewards and completions vary (MMR1), see `data.variance`.
    """

    none = "none"
    pass_rate = "pass_rate"
    variance = "variance"


@dataclass
class TrainerConfig:
    name: str = "sailvl2"
    """the loop that trains, as `trainer=NAME` chose it; not a key to set"""
    max_steps: int = 0
    """steps: sampled sets of groups; 0: as many as draw every prompt once"""
    groups_per_step: int = 256
    """useful groups that make a step; the report has 2,048 rollouts a step, and does not say in which groups"""
    mini_batch_size: int = 512
    """rollouts per optimizer update; a multiple of the group size"""
    passes: int = 2
    """times each step's rollouts are trained on"""
    max_draws: int = 0
    """prompts drawn per step at most, dropped groups included; 0: three times groups_per_step"""
    when_budget_ends: BudgetEnd = BudgetEnd.train_partial
    """how a step ends when max_draws are drawn and groups are still missing"""
    keep_surplus: KeepSurplus = KeepSurplus.never
    """useful groups beyond groups_per_step: drop them, or train them in the next step (their policy is older)"""
    curriculum: Curriculum = Curriculum.none
    """which prompts are drawn more often"""
    balance_coefficient: float = 0.0
    """weight of the load-balancing term of an MoE decoder's routers; the model's own router loss is not added"""
    skip_zero_advantage: bool = True
    """completions whose advantage is 0 add nothing to a gradient: leave them out of its passes, unless a KL or entropy
    term, load balancing or a custom objective needs them; metrics of tokens are then of those that are left"""
    show_every: int = field(default=10, metadata=OUTSIDE)
    """steps between printed rollouts"""
    max_sampler_gap: float = 0.2
    """nats by which sampler and trainer may differ at a token of the same weights; more is looked into and warned of"""
    warn_after: int = field(default=3, metadata=OUTSIDE)
    """steps in a row after which the doctor warns of what keeps a policy from learning, such as no update, completions
    that are cut off, or equal rewards; 0: never (docs/pipeline.md)"""

    def __post_init__(self) -> None:
        self.when_budget_ends = member(BudgetEnd, self.when_budget_ends, "trainer.when_budget_ends")
        self.keep_surplus = member(KeepSurplus, self.keep_surplus, "trainer.keep_surplus")
        self.curriculum = member(Curriculum, self.curriculum, "trainer.curriculum")
        ones = [(name, 1) for name in ("groups_per_step", "mini_batch_size", "passes", "show_every")]
        for name, least in (("max_steps", 0), ("max_draws", 0), ("warn_after", 0), *ones):
            if getattr(self, name) < least:
                raise ValueError(f"trainer.{name}: expected at least {least}, found {getattr(self, name)}")
        self.max_draws = self.max_draws or 3 * self.groups_per_step
        if self.max_draws < self.groups_per_step:
            raise ValueError(
                f"trainer.max_draws: expected at least trainer.groups_per_step = {self.groups_per_step}, "
                f"found {self.max_draws}"
            )
        if not self.max_sampler_gap > 0:
            raise ValueError(f"trainer.max_sampler_gap: expected above 0, found {self.max_sampler_gap}")
        if not 0 <= self.balance_coefficient < float("inf"):
            raise ValueError(f"trainer.balance_coefficient: expected 0 or more, found {self.balance_coefficient}")

    def complete(self, num_prompts: int) -> Self:
        """The same with as many steps as draw every prompt once, where none are given."""
        return replace(self, max_steps=self.max_steps or -(-num_prompts // self.groups_per_step))


@dataclass
class TrlTrainerConfig(TrainerConfig):
    """The same recipe through TRL's trainers, as a baseline: docs/trl.md says what is off and what is not equal."""

    name: str = "trl"
    micro_batch_size: int = 0
    """completions of one forward and backward pass, which must divide the mini-batch; 0 takes the whole mini-batch"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch_size < 0:
            raise ValueError(f"trainer.micro_batch_size: expected 0 or more, found {self.micro_batch_size}")


TRAINER_CONFIGS: dict[str, type[TrainerConfig]] = {"sailvl2": TrainerConfig, "trl": TrlTrainerConfig}
"""The choices of `trainer=NAME`."""


class EvaluationMode(Enum):
    """How a held-out prompt is answered: thinking greedily, thinking sampled, directly (greedily), or as the model
    itself judges (`Mode.auto`, greedily)."""

    think = "think"
    think_sampled = "think_sampled"
    direct = "direct"
    auto = "auto"

    @property
    def is_sampled(self) -> bool:
        return self is EvaluationMode.think_sampled

    @property
    def asked(self) -> Mode:
        """The mode that the prompt is put in."""
        return Mode.think if self is EvaluationMode.think_sampled else Mode(self.value)


BOTH_MODES = (EvaluationMode.think, EvaluationMode.think_sampled, EvaluationMode.direct)
"""The modes of every checkpoint. `auto` is for those that were trained for it, and has to be asked for."""


def checked_modes(given: Sequence[EvaluationMode | str], name: str) -> list[EvaluationMode]:
    """Modes by themselves or by their names. `ValueError` for none, an unknown one, and one that is there twice."""
    modes = [member(EvaluationMode, mode, name) for mode in given]
    if not modes or len(set(modes)) < len(modes):
        found = ", ".join(mode.value for mode in modes) or "none"
        known = ", ".join(mode.value for mode in EvaluationMode)
        raise ValueError(f"{name}: expected some of {known}, each once, found {found}")
    return modes


@dataclass
class EvaluationConfig:
    prompts: str = field(default="", metadata=OUTSIDE)
    """held-out prompts, same formats as `prompts`; empty: no evaluation during training"""
    modes: list[EvaluationMode] = field(default_factory=lambda: list(BOTH_MODES))
    """how every prompt is answered, one after the other"""
    every: int = 10
    """steps between evaluations; there is one before the first step and one after the last"""
    num_prompts: int = 0
    """use the first so many rows; 0 uses all"""
    num_samples: int = 4
    """sampled thinking completions per prompt: pass@1 is their mean, pass@k whether any of them is right"""
    group_by: str = ""
    """column whose values split the accuracies: each value gets its own; empty: none"""
    metric: EvaluationMode = EvaluationMode.think
    """mode whose accuracy decides which policy is best; that policy is kept in run.dir/best. Where answers are not
    rewarded (reward.verifier=none, or a weight of 0) the mode's reward decides"""
    patience: int = 0
    """end the run after so many evaluations in a row without a new best; 0 never does"""

    def __post_init__(self) -> None:
        self.metric = member(EvaluationMode, self.metric, "evaluation.metric")
        self.modes = checked_modes(self.modes, "evaluation.modes")
        if self.metric not in self.modes:
            asked = ", ".join(mode.value for mode in self.modes)
            raise ValueError(
                f"evaluation.metric: expected one of evaluation.modes ({asked}), found {self.metric.value}; name it "
                "there too"
            )
        for name, least in (("every", 1), ("num_samples", 1), ("num_prompts", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name}: expected at least {least}, found {getattr(self, name)}")


@dataclass
class DataConfig(ChatTableConfig):
    """How files of prompts are read; docs/data.md."""

    also: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """further files or folders of prompts; their ids get NAME/ in front, the file's name without its ending"""
    weights: dict[str, float] = field(default_factory=dict)
    """how often a row is drawn, by its data set: column `dataset` or `data_source`, else the file's name; others 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"data.weights: {name}: expected 0 or more, found {weight}")

    def without_mixture(self) -> "DataConfig":
        """How a held-out file is read: by the same columns and limits, but alone."""
        return replace(self, also=[], weights={})


@dataclass
class VarianceConfig:
    """MMR1's variance-aware sampling (arXiv 2509.21268) and its values, for `trainer.curriculum=variance`."""

    share: float = 0.5
    """share of the draws that go by score; the others take every prompt alike"""
    outcome: float = 0.8
    """weight of p (1 - p) in a prompt's score, p being its pass rate"""
    diversity: float = 0.2
    """weight of the diversity of a prompt's completions: different runs of three tokens / all of them"""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"data.variance.share: expected 0 to 1, found {self.share}")
        for name in ("outcome", "diversity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"data.variance.{name}: expected 0 or more, found {getattr(self, name)}")
        if not self.outcome + self.diversity > 0:
            raise ValueError(
                "data.variance.outcome, data.variance.diversity: expected one above 0, found 0 and 0; "
                "trainer.curriculum=none draws every prompt alike"
            )


@dataclass
class RlDataConfig(DataConfig):
    """Prompts of a run, which it may draw by what it knows of them."""

    variance: VarianceConfig = field(default_factory=VarianceConfig)


def _report_optimizer() -> OptimizerConfig:
    """SAIL-VL2 report, table 4: 1e-6. It states no schedule and no warm-up: none here."""
    return OptimizerConfig(learning_rate=1e-6)


@dataclass
class RlConfig:
    """Defaults are the report's (section 4.2.3, table 4), or neutral where it states nothing."""

    checkpoint: str = field(default="", metadata=OUTSIDE)
    """folder of the model to start from"""
    prompts: str = field(default="", metadata=OUTSIDE)
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; images lie beside the file or in it"""
    mode: Mode = Mode.think
    """how prompts are asked: think, or auto, where the policy judges first whether to think (docs/sail-rl.md)"""
    dtype: StoredDtype = StoredDtype.keep
    """number type of the weights in the model that is written; keep: that of the model it starts from"""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optimizer: OptimizerConfig = field(default_factory=_report_optimizer)
    engine: EngineConfig = field(default_factory=EngineConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    data: RlDataConfig = field(default_factory=RlDataConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/rl"))
    report: ReportConfig = field(default_factory=ReportConfig, metadata=OUTSIDE)

    def __post_init__(self) -> None:
        self.dtype = member(StoredDtype, self.dtype, "dtype")
        self.mode = member(Mode, self.mode, "mode")
        if self.mode is Mode.direct:
            raise ValueError("mode: expected think or auto, found direct; RL of direct answers is not supported")
        self.optimizer.require_learning_rate()
        require_fitting(self.engine, self.run)
        for name in ("checkpoint", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a path, found nothing")
        if self.trainer.mini_batch_size % self.algorithm.group_size:
            raise ValueError(
                f"trainer.mini_batch_size: expected a multiple of algorithm.group_size = {self.algorithm.group_size}, "
                f"found {self.trainer.mini_batch_size}; groups are never split over mini-batches"
            )
        level = "token" if self.algorithm.ratio_level is RatioLevel.token else "sequence"
        overlong, limit = self.algorithm.overlong, self.rollouts.max_completion_tokens
        if overlong.punishes and limit and (overlong.buffer or 0) > limit:
            raise ValueError(
                f"algorithm.overlong.buffer: expected at most rollouts.max_completion_tokens = "
                f"{self.rollouts.max_completion_tokens}, found {overlong.buffer}"
            )
        if self.trainer.curriculum is not Curriculum.variance and self.data.variance != VarianceConfig():
            raise ValueError(
                f"data.variance: expected its defaults with trainer.curriculum={self.trainer.curriculum.value}, which "
                f"does not look at it, found {self.data.variance}; set trainer.curriculum=variance"
            )
        if self.algorithm.kl.refresh_every:
            self._check_refresh()
        if self.evaluation.patience and not self.evaluation.prompts:
            raise ValueError(
                f"evaluation.patience: {self.evaluation.patience} counts evaluations, but evaluation.prompts is empty, "
                "so there are none; set evaluation.prompts=FILE, or evaluation.patience=0"
            )
        if 0 < self.rollouts.max_staleness < self.updates_per_step:
            raise ValueError(
                f"rollouts.max_staleness: expected 0, or at least the {self.updates_per_step} updates of a step "
                f"(trainer.passes times its mini-batches), found {self.rollouts.max_staleness}; with less no step can "
                "be sampled ahead"
            )
        if self.rollouts.max_staleness and self.algorithm.correction.rule is Correction.none:
            raise ValueError(
                f"rollouts.max_staleness: {self.rollouts.max_staleness} trains tokens that an older policy sampled, "
                "but algorithm.correction.rule=none takes no account of that; set algorithm.correction."
                f"rule={level}_truncate, or rollouts.max_staleness=0"
            )
        if self.trainer.keep_surplus is KeepSurplus.always and self.algorithm.correction.rule is Correction.none:
            raise ValueError(
                "trainer.keep_surplus: always trains groups that an older policy sampled, but algorithm.correction."
                f"rule=none takes no account of that; set algorithm.correction.rule={level}_truncate, or "
                "trainer.keep_surplus=never"
            )

    def _check_refresh(self) -> None:
        """`ValueError` where the reference cannot become the policy and come back from a checkpoint."""
        wrong = {
            "engine": (self.engine.name != "local", "local", self.engine.name),
            "adapter": (isinstance(self.adapter, LoraConfig), "none", "lora"),
        }
        for name, (is_wrong, expected, found) in wrong.items():
            if is_wrong:
                raise ValueError(
                    f"algorithm.kl.refresh_every: {self.algorithm.kl.refresh_every} expects {name}={expected}, whose "
                    f"reference can be saved, found {found}; set that, or algorithm.kl.refresh_every=0"
                )

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of a full step."""
        rollouts = self.trainer.groups_per_step * self.algorithm.group_size
        return self.trainer.passes * math.ceil(rollouts / self.trainer.mini_batch_size)


@dataclass
class PipelineEvaluationConfig:
    """`python -m rlhf.evaluate` after the stages that write a model."""

    after: list[str] = field(default_factory=list)
    """names of the stages; empty: all that write a model"""
    inputs: JsonObject = field(default_factory=dict)
    """as those of a stage; without any there is no evaluation"""
    overrides: list[str] = field(default_factory=list)
    """KEY=VALUE of rlhf.evaluate"""


def split_command(text: str, key: str) -> list[str]:
    """Split a command line as a shell does. `ValueError` for a quotation mark without its other one."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{key}: expected a command line, found {text!r}: {error}") from None


@dataclass
class MachineConfig:
    """The machines of stages that train. `gpu`, `gpus` and `nodes` are short for `machine.gpu` and so on."""

    gpu: Gpu | None = None
    """kind of every GPU that a plan estimates memory and time for; null: it estimates none"""
    gpus: int = 8
    """GPUs of a node"""
    nodes: int = 1
    """nodes with so many GPUs each"""
    launcher: str = ""
    """command in front of the stages that pre-train, fine-tune or run RL, for example
    'torchrun --nproc-per-node=8' with engine=fsdp; empty: each is one process"""

    def __post_init__(self) -> None:
        self.gpu = None if self.gpu is None else member(Gpu, self.gpu, "machine.gpu")
        for name in ("gpus", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"machine.{name}: expected at least 1, found {getattr(self, name)}")
        split_command(self.launcher, "machine.launcher")


class PipelineAction(Enum):
    """`run` runs the stages, and again those whose settings or inputs have changed since; `resume` refuses to run a
    finished stage again; `plan` says what each stage would do, and `status` how far each is. Those two start nothing.
    """

    run = "run"
    resume = "resume"
    plan = "plan"
    status = "status"

    @property
    def starts(self) -> bool:
        """Tell whether stages are started, so that what they need has to be there."""
        return self in (PipelineAction.run, PipelineAction.resume)


@dataclass
class PipelineConfig:
    """Stages are data: docs/pipeline.md describes their fields."""

    action: PipelineAction = field(default=PipelineAction.run, metadata=OUTSIDE)
    """run; resume: run, but refuse to run a finished stage again; plan: print every stage's command, rate, trainable
    towers, lengths, inputs and costs, and start nothing; status: print how far each stage is"""
    run: RunConfig = field(default_factory=lambda: RunConfig(dir="runs/pipeline"))
    report: ReportConfig = field(default_factory=ReportConfig, metadata=OUTSIDE)
    stages: list[JsonObject] = field(default_factory=list)
    """the processes to run, in this order; each has name, command, from, recipe, inputs, overrides"""
    evaluation: PipelineEvaluationConfig = field(default_factory=PipelineEvaluationConfig)
    base: str = field(default="", metadata=OUTSIDE)
    """folder of the model that stages with `from: base` start from"""
    model: Flavour | None = None
    """flavour that pre-training stages with `from: base` build from random weights, where `base` names no folder"""
    data: str = field(default="", metadata=OUTSIDE)
    """folder that the stages' inputs are relative to"""
    overrides: list[str] = field(default_factory=list)
    """KEY=VALUE of every stage that pre-trains or fine-tunes, behind all others of that stage"""
    prepare: str = ""
    """module that writes the data before the first stage, and KEY=VALUE arguments of it, as on a command line; it is
    called with out=DATA too. Empty: the data is there"""
    machine: MachineConfig = field(default_factory=MachineConfig, metadata=OUTSIDE)
    note: str = field(default="", metadata=OUTSIDE)
    """said at the end, below the results"""
    num_eval: int = 0
    """evaluate the first so many questions; 0 evaluates all"""
    num_threads: int = 2
    """CPU threads inside an operation, in every stage and evaluation"""
    dtype: StoredDtype = StoredDtype.keep
    """number type of the weights that the stages write; keep: that of the model a stage starts from"""

    def __post_init__(self) -> None:
        self.action = member(PipelineAction, self.action, "action")
        self.dtype = member(StoredDtype, self.dtype, "dtype")
        self.model = None if self.model is None else member(Flavour, self.model, "model")
        if self.base and self.model is not None:
            raise ValueError(
                f"base, model: expected one of both, found {self.base} and {self.model.value}; leave model out, or set "
                "model=null where a recipe gives it, to start from the folder"
            )
        if self.num_eval < 0 or self.num_threads < 1:
            raise ValueError(
                f"num_eval, num_threads: expected at least 0 and 1, found {self.num_eval} and {self.num_threads}"
            )
        if self.prepare_command and not self.data:
            raise ValueError("data: expected the folder that `prepare` writes, found nothing")

    @property
    def prepare_command(self) -> list[str]:
        """Return the module of `prepare` and its arguments. `ValueError` for a quotation mark without its other one."""
        return split_command(self.prepare, "prepare")
