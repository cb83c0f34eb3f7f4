"""The sampler that a config asks for."""

import sys

from model.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.processes import ProcessWorkers
from rollouts.rollout import RolloutWorker


def build_worker(model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> RolloutWorker:
    """With weights as `model` has them now, at policy version 0. Close it when done."""
    if config.processes > 1 and model.device.type == "cpu" and sys.platform == "linux":
        return ProcessWorkers(model, processor, config, run_seed)
    return EmbeddedWorker(model, processor, config, run_seed)
