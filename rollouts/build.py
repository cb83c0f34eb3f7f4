"""The samplers that a config asks for."""

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from model.checkpoint import released_tensors
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import Placement, PoolConfig, RolloutConfig, Transfer, VllmRolloutConfig
from rollouts.pool.session import StartMessage
from rollouts.pool.worker_pool import WorkerPool
from rollouts.rollout import RolloutWorker
from rollouts.sampler import build_sampler
from rollouts.weights.senders import FileSender, MemorySender, WeightSender
from rollouts.weights.sync import tensor_checksum


def build_worker(model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> RolloutWorker:
    """With weights as `model` has them now, at policy version 0. Close it when done.

    Our own sampler of a model on a GPU is always in the trainer's process, as is all that would be a process of its own
    where there is no Linux. `ModuleNotFoundError` names a missing extra.
    """
    is_vllm, on_cpu = isinstance(config, VllmRolloutConfig), model.device.type == "cpu"
    num_gpus, placement = torch.cuda.device_count(), config.pool.placement
    apart = placement is Placement.ray or (placement is Placement.process and sys.platform == "linux")
    if config.max_staleness and not (apart and (is_vllm or on_cpu)):
        raise ValueError(
            f"rollouts.max_staleness: expected 0, found {config.max_staleness}: the sampler of this model would be in "
            "the trainer's process on this machine, and cannot run ahead; rollouts=vllm has one of its own on a GPU"
        )
    if config.pool.transfer is Transfer.ipc and on_cpu and config.num_processes > 1:
        raise ValueError(
            f"rollouts.pool.transfer: expected memory for a model on CPU in {config.num_processes} processes, found ipc"
        )
    if not apart or not (is_vllm or on_cpu):
        return build_sampler(model, processor, config.alone(), run_seed)
    start = StartMessage(model.config, processor, config.share_of_worker(), run_seed, model.dtype)
    weights = released_tensors(model)
    manifest = {name: tensor_checksum(tensor) for name, tensor in weights.items()}
    if placement is Placement.ray:
        ray_pool = _ray_pool(config.pool)
        launcher = ray_pool.RayLauncher(start, sum(tensor.nbytes for tensor in weights.values()), num_gpus)
        address, memory = launcher.address, ray_pool.ObjectSender
    else:
        from rollouts.pool.processes import ProcessLauncher

        launcher = ProcessLauncher(start, num_gpus, is_first_taken=not on_cpu)
        address, memory = "127.0.0.1", MemorySender
    try:
        sender = _sender(config, weights, memory, address, on_gpu=launcher.on_gpu and not on_cpu)
    except BaseException:
        launcher.close()
        raise
    allowed = set(range(processor.tokenizer.num_entries)) - set(processor.barred_ids)
    return WorkerPool(launcher, sender, config, allowed, manifest)


def _sender(
    config: RolloutConfig,
    weights: dict[str, Tensor],
    memory: Callable[[dict[str, Tensor]], WeightSender],
    address: str,
    on_gpu: bool,
) -> WeightSender:
    """What `rollouts.pool.transfer` names. `memory` is for samplers that a broadcast does not reach, too."""
    folder = os.path.abspath(config.pool.transfer_folder) if config.pool.transfer_folder else ""
    match config.pool.transfer:
        case Transfer.files:
            return FileSender(weights, Path(folder))
        case Transfer.broadcast:
            from rollouts.weights.broadcast import BroadcastSender

            other, patience = memory(weights), config.pool.patience_s
            return BroadcastSender(other, config.num_processes, patience, on_gpu, address, folder)
        case _:
            return memory(weights)


def _ray_pool(config: PoolConfig) -> ModuleType:
    # Ray reads this as it is imported. With a token, other users of this host cannot speak to the run's cluster.
    if not config.ray_address and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        from rollouts.pool import ray_pool
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ModuleNotFoundError(
            "rollouts.pool.placement=ray: expected Ray, found none; install the extra: pip install 'sailvl2-rl[ray]'",
            name="ray",
        ) from None
    return ray_pool
