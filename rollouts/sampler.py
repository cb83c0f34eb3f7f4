"""One sampler, in the process that asks for it."""

import os
import warnings
from collections.abc import Mapping
from typing import Protocol

from model.processing.processor import Processor
from rollouts.config import RolloutConfig, VllmRolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import Proof, RolloutWorker
from rollouts.weights.handles import TensorHandle
from rollouts.weights.template import ModelTemplate

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine stays in one process, which starts in seconds
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise several engines bind to the same core
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process that has looked for GPUs cannot use them
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""vLLM reads these when it is imported or starts an engine. What the user has set takes precedence."""


class Sampler(RolloutWorker, Protocol):
    """A worker that a pool can bring weights to."""

    def receive(self, version: int, tensor_handle: TensorHandle, manifest: Mapping[str, int]) -> Proof:
        """Take the tensors of a handle, whose checksums `manifest` has, and prove what is held afterwards.

        `WeightsLost` if they did not come. The sampler is then as it was, and can be sent them again.
        """
        ...

    def release(self) -> bool:
        """Free the memory of weights and caches until the next weights come; True where the sampler is of no more use
        and another one has to be built."""
        ...


def build_sampler(
    template: ModelTemplate, processor: Processor, config: RolloutConfig, run_seed: int, returns_routes: bool = False
) -> Sampler:
    """Build a sampler without weights. `ModuleNotFoundError` names a missing extra.

    `returns_routes` prepares vLLM to say which experts it took; our own sampler always can.
    """
    if isinstance(config, VllmRolloutConfig):
        for name, value in VLLM_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)  # vLLM's use
        config.require_packages()
        from rollouts.vllm_worker import VllmWorker

        return VllmWorker(template, processor, config, run_seed, returns_routes)
    return EmbeddedWorker(template, processor, config, run_seed)
