"""The samplers that a config asks for."""

import sys

from model.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import Placement, RolloutConfig, VllmRolloutConfig
from rollouts.processes import ProcessWorkers
from rollouts.rollout import RolloutWorker
from rollouts.sampler import build_sampler


def build_worker(model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> RolloutWorker:
    """With weights as `model` has them now, at policy version 0. Close it when done.

    Our own sampler of a model on a GPU is always in the trainer's process, as all samplers are where there is no Linux.
    """
    apart = config.placement is Placement.process and sys.platform == "linux"
    if apart and (isinstance(config, VllmRolloutConfig) or (model.device.type == "cpu" and config.workers > 1)):
        return ProcessWorkers(model, processor, config, run_seed)
    return build_sampler(model, processor, config.alone(), run_seed)
