"""Builds the samplers that a config asks for."""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.engine.base import TrainEngine
from model.processing.processor import Processor
from rollouts.config import Placement, PoolConfig, RolloutConfig, Transfer, VllmRolloutConfig
from rollouts.pool.messages import StartMessage
from rollouts.pool.worker_pool import WorkerPool
from rollouts.rollout import RolloutWorker
from rollouts.sampler import build_sampler
from rollouts.weights.senders import FileSender, HostSender, MemorySender, WeightSender
from rollouts.weights.template import ModelTemplate, template_tensors

if TYPE_CHECKING:
    from model.engine.lead import Lead


def build_worker_of(
    engine: TrainEngine,
    lead: "Lead | None",
    processor: Processor,
    config: RolloutConfig,
    run_seed: int,
    returns_routes: bool = False,
) -> RolloutWorker:
    """`build_worker` for the model of an engine. Of an engine over several processes each has a sampler, unless
    samplers have processes of their own."""
    if lead is None or config.pool.is_apart:
        return build_worker(engine.shape, processor, config, run_seed, returns_routes)
    from model.engine.lead import LeadEngine
    from rollouts.on_ranks import RanksWorker

    assert isinstance(engine, LeadEngine)
    config.require_packages()
    return RanksWorker(lead, engine, processor, config, run_seed, returns_routes)


def build_worker(
    template: ModelTemplate, processor: Processor, config: RolloutConfig, run_seed: int, returns_routes: bool = False
) -> RolloutWorker:
    """Build a worker without weights: `load_weights` brings the first ones too. Close it when done.

    `returns_routes` says whether requests may ask for the experts of every token, for which vLLM must be prepared.

    `template` may be a model, whose weights are not looked at, or a `ModelShape`. Our own sampler of a model on a GPU
    is always in the trainer's process, and so is every sampler where there is no Linux. `ModuleNotFoundError` names a
    missing extra.
    """
    config.require_packages()
    config = config.within(template.config.language.max_position_embeddings)
    is_vllm, on_cpu = isinstance(config, VllmRolloutConfig), template.device.type == "cpu"
    if config.pool.placement is Placement.ranks:
        raise ValueError(
            "rollouts.pool.placement: expected trainer, process or ray where one process trains or samples, found "
            "ranks; ranks are those of engine=fsdp"
        )
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
        return build_sampler(template, processor, config.alone(), run_seed, returns_routes)
    share = config.share_of_worker()
    start = StartMessage(template.config, processor, share, run_seed, template.dtype, returns_routes)
    weights = template_tensors(template)
    if placement is Placement.ray:
        ray_pool = _ray_pool(config.pool)
        launcher = ray_pool.RayLauncher(start, sum(tensor.nbytes for tensor in weights.values()), num_gpus)
        address, memory = launcher.address, ray_pool.ObjectSender
    else:
        from rollouts.pool.processes import ProcessLauncher

        launcher = ProcessLauncher(start, num_gpus, is_first_taken=not on_cpu)
        address, memory = "127.0.0.1", MemorySender
    try:
        device = template.device if launcher.on_gpu else torch.device("cpu")
        sender = _sender(config, weights, memory, address, device)
    except BaseException:
        launcher.close()
        raise
    allowed = set(range(processor.tokenizer.num_entries)) - set(processor.barred_ids)
    return WorkerPool(launcher, sender, config, allowed)


def _sender(
    config: RolloutConfig,
    weights: Mapping[str, Tensor],
    memory: Callable[[Mapping[str, Tensor]], HostSender],
    address: str,
    device: torch.device,
) -> WeightSender:
    """Make the sender that `rollouts.pool.transfer` names. `memory` also serves samplers that no broadcast reaches."""
    folder = os.path.abspath(config.pool.transfer_folder) if config.pool.transfer_folder else ""
    match config.pool.transfer:
        case Transfer.files:
            return FileSender(weights, Path(folder))
        case Transfer.broadcast:
            from rollouts.weights.broadcast import BroadcastSender

            other, patience = memory(weights), config.pool.patience_s
            return BroadcastSender(other, config.num_processes, patience, device, address, folder)
        case _:
            return memory(weights)


def _ray_pool(config: PoolConfig) -> ModuleType:
    # Ray reads these as it is imported. With a token, other users of this host cannot speak to the run's cluster.
    if not config.ray_address and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from rollouts.pool import ray_pool

    return ray_pool
