"""Hold what an engine would need against the memory that is free, before any weight is read."""

import os

import torch

from model.config import SailVL2Config
from model.engine.config import DeepspeedConfig, EngineConfig, FsdpConfig, ShardedConfig
from model.engine.device import free_memory, pick_dtype
from model.engine.planning.estimate import Job, MicroBatch, Spread, memory
from model.engine.planning.machines import GIB
from model.lora.config import AdapterConfig

_SCORED = 0.5  # share of a micro-batch's tokens that are taken to be completions


def job_of(
    config: EngineConfig, shapes: SailVL2Config, adapter: AdapterConfig, device: torch.device, ranks: int = 1
) -> Job:
    """A micro-batch of engine.micro_batch_tokens text tokens; images come on top, which no setting limits."""
    scored = int(config.micro_batch_tokens * _SCORED)
    spread = Spread()
    if isinstance(config, ShardedConfig):
        spread = Spread(True, ranks, config.replicas)
    if isinstance(config, FsdpConfig):
        # On a CPU the host's memory is the device's.
        offloads = config.offload_moments and device.type == "cuda"
        spread = Spread(True, ranks, config.replicas, 8, offloads, config.reduce_each)
    if isinstance(config, DeepspeedConfig):
        offloads = config.offload_optimizer and device.type == "cuda"
        spread = Spread(True, ranks, 1, 8, offloads, stage=config.stage)
    return Job(
        config=shapes,
        batch=MicroBatch(config.micro_batch_tokens - scored, 1, scored),
        num_batches=2,
        spread=spread,
        checkpointing=config.gradient_checkpointing,
        on_gpu=pick_dtype(config.compute_dtype, device) is torch.bfloat16,
        freeze=tuple(config.freeze),
        adapter=adapter,
    )


def estimated(
    config: EngineConfig, shapes: SailVL2Config, adapter: AdapterConfig, device: torch.device, ranks: int = 1
) -> str:
    """Say in one line what a process needs at the peak of an update, by the estimate."""
    found = memory(job_of(config, shapes, adapter, device, ranks))
    rest = found.gathered + found.activations + found.head
    return (
        f"memory at the peak of an update: an estimated {found.total / GIB:.2f} GiB, {rest / GIB:.2f} of it for "
        f"micro-batches of {config.micro_batch_tokens} text tokens (engine.micro_batch_tokens), and more with images"
    )


def require_room(
    config: EngineConfig,
    shapes: SailVL2Config,
    adapter: AdapterConfig,
    device: torch.device,
    ranks: int = 1,
    processes_here: int = 1,
) -> None:
    """`ValueError` with the numbers where the estimate exceeds the free memory, unless engine.check_memory=false.

    Processes on one CPU share its memory.
    """
    if not config.check_memory:
        return
    found = memory(job_of(config, shapes, adapter, device, ranks))
    on_host = free_memory(torch.device("cpu"))
    if found.host > on_host:
        raise ValueError(
            f"engine: expected a host with {found.host / GIB:.1f} GiB free for what is offloaded by all processes of a "
            f"node, found {on_host / GIB:.1f} GiB; offload nothing, use more nodes, or set engine.check_memory=false"
        )
    sharing = processes_here if device.type == "cpu" else 1
    free = free_memory(device)
    if sharing * found.total <= free:
        return
    parts = ", ".join(f"{value / GIB:.2f} {name}" for name, value in found.parts.items() if value)
    each = f" for each of {sharing} processes" if sharing > 1 else ""
    raise ValueError(
        f"engine: expected a model that trains in the {free / GIB:.2f} GiB that are free on {device}, found one that "
        f"needs {found.total / GIB:.2f} GiB{each} ({parts}, with micro-batches of "
        f"{config.micro_batch_tokens} text tokens); lower engine.micro_batch_tokens, set "
        "engine.gradient_checkpointing=true, adapter=lora or engine=fsdp with "
        "more processes, as python -m rlhf.estimate works out, or set engine.check_memory=false to try it"
    )


def processes_here(num_ranks: int) -> int:
    """How many of the processes run on this host: torchrun says it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks))
