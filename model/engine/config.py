"""Settings of optimisation, shared by every training entry point."""

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from model.config import AttentionKernel, Device, StoredDtype, Tower
from model.json_values import member
from model.lora.config import AdapterConfig
from model.run.config import OUTSIDE, ReportConfig, RunConfig


class Schedule(Enum):
    """How the learning rate goes from its peak to `final_share` of it after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class ComputeDtype(Enum):
    """The dtype of forward and backward; weights and optimizer stay float32. `auto`: bfloat16 on a GPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Normalisation(Enum):
    """The number that divides an update's loss: `tokens` that train, or `samples` (the report's equations 2 and 3)."""

    tokens = "tokens"
    samples = "samples"


@dataclass
class OptimizerConfig:
    learning_rate: float = 0.0
    """peak learning rate of AdamW; 0 stands for none given, which no stage trains with"""
    warmup_steps: int = 0
    """optimizer updates of linear warm-up"""
    schedule: Schedule = Schedule.constant
    """decay after the warm-up: constant, linear or cosine"""
    final_share: float = 0.0
    """learning rate at the end of a decay, as a share of the peak"""
    beta1: float = 0.9
    """AdamW beta 1"""
    beta2: float = 0.999
    """AdamW beta 2"""
    weight_decay: float = 0.0
    """AdamW decoupled weight decay, on matrices only"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this global norm"""

    def __post_init__(self) -> None:
        self.schedule = member(Schedule, self.schedule, "optimizer.schedule")
        if not 0 <= self.learning_rate < float("inf"):
            raise ValueError(f"optimizer.learning_rate: expected a positive number, found {self.learning_rate}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps: expected 0 or more, found {self.warmup_steps}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}: expected at least 0 and below 1, found {getattr(self, name)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"optimizer.weight_decay: expected 0 or more, found {self.weight_decay}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"optimizer.final_share: expected 0 to 1, found {self.final_share}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"optimizer.max_grad_norm: expected a positive number, found {self.max_grad_norm}")

    def of(self, adapter: AdapterConfig) -> "OptimizerConfig":
        """The same with the learning rate that the adapters of a run get."""
        return replace(self, learning_rate=adapter.learning_rate(self.learning_rate))

    def require_learning_rate(self) -> None:
        """`ValueError` where none was given."""
        if self.learning_rate == 0:
            raise ValueError(
                "optimizer.learning_rate: expected a positive number, found 0; there is no default that fits every "
                "model, so give one, or a recipe that has one"
            )


@dataclass
class EngineConfig:
    name: str = field(default="local", metadata=OUTSIDE)
    """kind of engine, as `engine=NAME` chose it: local trains in one process, others in several; not a key to set"""
    device: Device = Device.auto
    """where to train: the GPU if there is one, or what is named"""
    compute_dtype: ComputeDtype = ComputeDtype.auto
    """forward and backward: bfloat16 on a GPU, else float32; the optimizer's weights are float32 always"""
    num_threads: int = 2
    """CPU threads inside an operation; part of the run's identity, because it changes last bits"""
    micro_batch_tokens: int = 8192
    """packed tokens of one forward and backward"""
    freeze: list[Tower] = field(default_factory=list)
    """towers whose weights stay as they are"""
    gradient_checkpointing: bool = False
    """keep only each block's input for the backward pass: less memory, one more forward pass"""
    attention_kernel: AttentionKernel = AttentionKernel.auto
    """kernel that computes attention over packed rows: the best for the device, or one by name"""
    max_skipped_updates: int = field(default=3, metadata=OUTSIDE)
    """the run ends with exit code 4 after so many updates in a row whose loss or gradient was not finite"""
    check_memory: bool = field(default=True, metadata=OUTSIDE)
    """refuse, before weights are read, a model that does not fit the free memory by the estimate; false tries it"""

    def __post_init__(self) -> None:
        self.device = member(Device, self.device, "engine.device")
        self.compute_dtype = member(ComputeDtype, self.compute_dtype, "engine.compute_dtype")
        self.freeze = [member(Tower, one, "engine.freeze") for one in self.freeze]
        self.attention_kernel = member(AttentionKernel, self.attention_kernel, "engine.attention_kernel")
        for name in ("num_threads", "micro_batch_tokens", "max_skipped_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name}: expected at least 1, found {getattr(self, name)}")
        if set(self.freeze) == set(Tower):
            raise ValueError("engine.freeze: expected a tower that still trains, found all of them")


@dataclass
class ShardedConfig(EngineConfig):
    """The settings that engines over several processes share. They change no result but by the order of sums."""

    replicas: int = field(default=1, metadata=OUTSIDE)
    """whole copies of the model, each sharded over its part of the processes: one a node where the network between
    nodes is slow and memory allows it"""
    patience_s: float = field(default=30.0, metadata=OUTSIDE)
    """seconds without a sign of life, or of progress while others wait, after which a process counts as failed"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replicas < 1:
            raise ValueError(f"engine.replicas: expected at least 1, found {self.replicas}")
        if not 1 <= self.patience_s < float("inf"):
            raise ValueError(f"engine.patience_s: expected at least 1 second, found {self.patience_s}")


@dataclass
class FsdpConfig(ShardedConfig):
    """Weights, gradients and moments sharded by torch's FSDP2."""

    name: str = field(default="fsdp", metadata=OUTSIDE)
    """kind of engine, as `engine=NAME` chose it; not a key to set"""
    reduce_each: bool = field(default=True, metadata=OUTSIDE)
    """add gradients up over the processes after every micro-batch, which keeps them sharded; false does so once an
    update, and every process keeps gradients of the whole model until then"""
    offload_moments: bool = field(default=False, metadata=OUTSIDE)
    """keep AdamW's moments in the host's memory and update the weights there"""


@dataclass
class DeepspeedConfig(ShardedConfig):
    """Moments, gradients and weights sharded by DeepSpeed's ZeRO, as the stage says."""

    name: str = field(default="deepspeed", metadata=OUTSIDE)
    """kind of engine, as `engine=NAME` chose it; not a key to set"""
    stage: int = field(default=2, metadata=OUTSIDE)
    """1 shards moments and float32 weights, 2 gradients too, 3 also the weights that compute"""
    offload_optimizer: bool = field(default=False, metadata=OUTSIDE)
    """keep moments and float32 weights in the host's memory and update the weights there"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in (1, 2, 3):
            raise ValueError(f"engine.stage: expected 1, 2 or 3, found {self.stage}")
        if self.replicas != 1:
            raise ValueError(
                f"engine.replicas: expected 1 with engine=deepspeed, found {self.replicas}; engine=fsdp has replicas"
            )


def require_fitting(engine: EngineConfig, run: RunConfig) -> None:
    """`ValueError` for settings of a run that an engine cannot do."""
    if run.save_in_background and isinstance(engine, DeepspeedConfig):
        raise ValueError(
            "run.save_in_background: expected false with engine=deepspeed, whose processes gather what they save, "
            "found true; use engine=fsdp for it"
        )


def require_for_deepspeed(engine: EngineConfig, has_experts: bool, has_adapters: bool) -> None:
    """`ValueError` for a model that DeepSpeed does not train here; other engines take all."""
    if not isinstance(engine, DeepspeedConfig):
        return
    if has_experts and engine.stage == 3:
        raise ValueError(
            "engine.stage: expected 1 or 2 for a model with experts, found 3; under ZeRO-3 DeepSpeed expects that all "
            "processes run the same modules in the same order, which routing does not promise; use engine.stage=2, or "
            "engine=fsdp, which shards experts too"
        )
    if has_adapters:
        raise ValueError(
            "engine: expected fsdp or local for a model with adapters, found deepspeed; it shards what the optimizer "
            "updates, which adapters make small, and would round them to the type that computes"
        )


ENGINE_CONFIGS: dict[str, type[EngineConfig]] = {
    "local": EngineConfig,
    "fsdp": FsdpConfig,
    "deepspeed": DeepspeedConfig,
}
"""The choices of `engine=`."""


@dataclass
class HeldOutConfig:
    """How supervised stages watch the loss on rows that they do not train."""

    data: str = field(default="", metadata=OUTSIDE)
    """held-out rows, in the formats and shapes of the training rows; empty: no evaluation"""
    source: str = ""
    """with data.sources: the source whose kind, template, columns and media the held-out rows have; empty: the kind,
    template and columns that all sources have, or where they differ none, and rows are told by their columns"""
    every: int = 50
    """updates between evaluations; there is one before the first update and one after the last"""
    num_rows: int = 0
    """use the first so many rows; 0 uses all"""

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("num_rows", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name}: expected at least {least}, found {getattr(self, name)}")
        if self.source and not self.data:
            raise ValueError(f"evaluation.source: expected evaluation.data beside it, found {self.source!r} alone")


@dataclass
class AdaLrsConfig:
    """AdaLRS searches the learning rate while a run trains (SAIL-VL2 report, section 3.2.3). See docs/adalrs.md.

    The report gives no values. Those for `up`, `down`, `decay`, `begin` and `end` are the method's own (arXiv
    2506.13274) where it names some.
    """

    window: int = 0
    """updates over which the slope of the loss is measured, k in the report; 0: no search"""
    up: float = 3.0
    """factor of the rate in a trial, alpha; it decays to 1"""
    down: float = 2.0
    """divisor of the rate after a trial with a slower descent, beta; it decays to 1"""
    decay: float = 0.99
    """share of both factors that remains after each window, lambda"""
    begin: float = 0.1
    """share of the run after which the search begins"""
    end: float = 0.4
    """share of the run at which the search ends; the scheduled rates then stay at the scale that was found"""
    guard: bool = True
    """end a trial at once when the loss exceeds its highest value so far, and try no rate as high again"""

    def __post_init__(self) -> None:
        if self.window and self.window < 3:
            raise ValueError(
                "adalrs.window: expected 0, or the 3 updates or more that a slope and its error take, found "
                f"{self.window}"
            )
        for name in ("up", "down"):
            if not 1 < getattr(self, name) < float("inf"):
                raise ValueError(f"adalrs.{name}: expected a factor above 1, found {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"adalrs.decay: expected above 0, and 1 at most, found {self.decay}")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"adalrs.begin, adalrs.end: expected shares of the run, 0 <= begin < end <= 1, found {self.begin} and "
                f"{self.end}"
            )

    def steps(self, total: int) -> tuple[int, int]:
        """The updates between which the search lies, in a run of `total`. `ValueError` where no trial fits between
        them."""
        first, last = round(self.begin * total), round(self.end * total)
        if self.window and last - first < 2 * self.window:
            raise ValueError(
                f"adalrs.window: expected at most {(last - first) // 2} updates, because a window and a trial have to "
                f"fit between adalrs.begin and adalrs.end, which are updates {first} and {last} of {total}; found "
                f"{self.window}"
            )
        return first, last


@dataclass
class SupervisedConfig:
    """The settings that pre-training and supervised fine-tuning share."""

    max_steps: int = 0
    """optimizer updates; 0: as many as `epochs` says"""
    epochs: float = 0.0
    """passes over the rows, instead of max_steps; 0 with a max_steps of 0 is one pass"""
    normalisation: Normalisation = Normalisation.tokens
    """number that divides the loss of an update: tokens, or samples (the report's equations 2 and 3)"""
    balance_coefficient: float = 0.001
    """weight of the load-balancing term of an MoE decoder (Qwen3-MoE's own; the report names none)"""
    dtype: StoredDtype = StoredDtype.keep
    """number type of the weights in the model that is written; keep: that of the model it starts from"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    evaluation: HeldOutConfig = field(default_factory=HeldOutConfig)
    adalrs: AdaLrsConfig = field(default_factory=AdaLrsConfig)
    run: RunConfig = field(default_factory=RunConfig)
    report: ReportConfig = field(default_factory=ReportConfig, metadata=OUTSIDE)

    def __post_init__(self) -> None:
        self.normalisation = member(Normalisation, self.normalisation, "normalisation")
        self.dtype = member(StoredDtype, self.dtype, "dtype")
        self.optimizer.require_learning_rate()
        require_fitting(self.engine, self.run)
        if self.max_steps < 0:
            raise ValueError(f"max_steps: expected at least 0, found {self.max_steps}")
        if not 0 <= self.epochs < float("inf"):
            raise ValueError(f"epochs: expected 0 or more, found {self.epochs}")
        if self.max_steps and self.epochs:
            raise ValueError(
                f"max_steps, epochs: expected one of both, found {self.max_steps} and {self.epochs:g}; set the "
                "other one to 0 where a recipe gives it"
            )
        if not 0 <= self.balance_coefficient < float("inf"):
            raise ValueError(f"balance_coefficient: expected 0 or more, found {self.balance_coefficient}")
        if self.adalrs.window and self.engine.max_skipped_updates < 2:
            raise ValueError(
                "engine.max_skipped_updates: expected at least 2 with adalrs.window, because a trial is undone at the "
                f"first update that is skipped, found {self.engine.max_skipped_updates}"
            )

    def steps_for(self, steps_per_pass: int) -> int:
        """The updates of the whole run, where one pass over the rows takes so many."""
        return self.max_steps or math.ceil((self.epochs or 1.0) * steps_per_pass)
