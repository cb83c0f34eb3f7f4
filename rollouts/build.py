"""The samplers that a config asks for."""

import sys

import torch

from model.checkpoint import released_tensors
from model.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import Placement, RolloutConfig, VllmRolloutConfig
from rollouts.pool import WorkerPool
from rollouts.rollout import RolloutWorker
from rollouts.sampler import build_sampler
from rollouts.session import Start
from rollouts.weight_sync import tensor_checksum


def build_worker(model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> RolloutWorker:
    """With weights as `model` has them now, at policy version 0. Close it when done.

    Our own sampler of a model on a GPU is always in the trainer's process, as is all that would be a process of its own
    where there is no Linux. `ModuleNotFoundError` names a missing extra.
    """
    is_vllm, on_cpu = isinstance(config, VllmRolloutConfig), model.device.type == "cpu"
    num_gpus, placement = torch.cuda.device_count(), config.pool.placement
    apart = placement is Placement.ray or (placement is Placement.process and sys.platform == "linux")
    if not apart or not (is_vllm or on_cpu):
        return build_sampler(model, processor, config.alone(), run_seed)
    start = Start(model.config, processor, config.share_of_worker(), run_seed, model.dtype)
    weights = released_tensors(model)
    if placement is Placement.ray:
        fleet = _ray_fleet()(start, weights, num_gpus)
    else:
        from rollouts.processes import ProcessFleet

        fleet = ProcessFleet(start, weights, num_gpus)
    allowed = set(range(processor.tokenizer.num_entries)) - set(processor.barred_ids)
    manifest = {name: tensor_checksum(tensor) for name, tensor in weights.items()}
    return WorkerPool(fleet, config, allowed, manifest)


def _ray_fleet() -> type:
    try:
        from rollouts.ray_pool import RayFleet
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ModuleNotFoundError(
            "rollouts.pool.placement=ray: expected Ray, found none; install the extra: pip install 'sailvl2-rl[ray]'",
            name="ray",
        ) from None
    return RayFleet
