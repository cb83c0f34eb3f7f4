"""The processes that train one model together, as torchrun starts them, and one process that stands alone."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from model.engine.config import EngineConfig, ShardedConfig
from model.engine.device import pick_device
from model.engine.link import Link
from model.engine.watch import Watch
from model.run.world import World

dist: Any = torch.distributed
_LONG = timedelta(days=7)
"""Rank 0 may wait for samplers and rewards as long as it wants; `Watch` finds a process that failed."""
_SHOWN = 5
_PROBLEM = "problem"


class Ranks:
    """The processes of one engine: their mesh, the link from rank 0 to the others, and the watch over all."""

    def __init__(self, config: ShardedConfig) -> None:
        """Meet the other processes. `ValueError` where their number is no multiple of `engine.replicas`."""
        world = World.of_environment()
        self.rank, self.num_ranks, self.config = world.rank, world.num_ranks, config
        self.device = _device(config, world.local_rank)
        if world.num_ranks % config.replicas:
            if world.follows:
                raise SystemExit(2)  # rank 0 says it
            raise ValueError(
                f"engine.replicas: expected a divisor of the {world.num_ranks} processes, found {config.replicas}; "
                "every replica of the model is sharded over as many processes"
            )
        if world.num_ranks == 1:
            dist.init_process_group(_backend(self.device), store=dist.HashStore(), rank=0, world_size=1)
        else:
            if world.address in ("localhost", "127.0.0.1") and sys.platform == "linux":
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's own name may not be known to itself
            dist.init_process_group(_backend(self.device), timeout=_LONG)
        group = dist.new_group(backend="gloo", timeout=_LONG)
        self.link = Link(self.rank, self.num_ranks, group)
        self.mesh = self._mesh()
        port = 0
        if self.rank == 0:
            self.watch = Watch(0, self.num_ranks, world.address, 0, config.patience_s)
            port = self.watch.port
            self.link.send([port] * (self.num_ranks - 1))
        else:
            port = self.link.receive()
            self.watch = Watch(self.rank, self.num_ranks, world.address, port, config.patience_s)
        dist.barrier(group)
        self.watch.start()

    @property
    def shard_mesh(self) -> DeviceMesh:
        """The processes that hold one replica of the model."""
        return self.mesh["shard"] if self.config.replicas > 1 else self.mesh

    @property
    def num_shards(self) -> int:
        return self.num_ranks // self.config.replicas

    @property
    def shard(self) -> int:
        """The number of this rank's shard within its replica."""
        return self.rank % self.num_shards

    @property
    def writes(self) -> bool:
        """Whether this rank belongs to the replica that writes checkpoints."""
        return self.rank < self.num_shards

    def described(self) -> str:
        """Say how the model is spread, in one line."""
        processes = "one process" if self.num_ranks == 1 else f"{self.num_ranks} processes"
        spread = f"{processes}, the weights sharded over {self.num_shards} of them"
        copies = f", {self.config.replicas} replicas" if self.config.replicas > 1 else ""
        return f"engine: {self.config.name}, {spread}{copies}"

    def compare(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Refuse to train together where these facts are not the same on all ranks, or cannot be had on one.

        Rank 0 raises `ValueError` with one message; the others end with exit code 2.
        """
        try:
            own, problems = dict(facts()), []
        except (ValueError, OSError) as error:
            own, problems = {_PROBLEM: str(error)}, [str(error)]
        if self.rank:
            self.link.reply(own)
            if not self.link.receive():
                raise SystemExit(2)
            return
        for rank, found in enumerate(self.link.replies(), 1):
            if problem := found.get(_PROBLEM):
                problems += [] if problem in problems else [f"rank {rank}: {problem}"]
                continue
            for name in [] if _PROBLEM in own else own:
                if found.get(name) != own[name]:
                    problems.append(
                        f"expected the same on all {self.num_ranks} ranks, found: {name}: rank 0 has {own[name][:60]}, "
                        f"rank {rank} has {found.get(name, 'none')[:60]}"
                    )
        self.link.send([not problems] * (self.num_ranks - 1))
        if problems:
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            shown = "; ".join(problems[:_SHOWN])
            raise ValueError(
                f"engine: {shown}{more}; start all ranks with one command, from one installation, on the same files"
            )

    def close(self) -> None:
        """Leave the group; all ranks do, in good order."""
        with suppress(RuntimeError):
            dist.barrier(self.link._group)
        self.watch.close()
        with suppress(RuntimeError):
            dist.barrier(self.link._group)  # no rank is gone before rank 0 has stopped to watch it
        dist.destroy_process_group()

    def _mesh(self) -> DeviceMesh:
        if self.config.replicas == 1:
            return init_device_mesh(self.device.type, (self.num_ranks,), mesh_dim_names=("shard",))
        shape = (self.config.replicas, self.num_shards)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replica", "shard"))


def ignore_signals(watch: Watch) -> None:
    """On a rank that follows, SIGTERM is told to rank 0, which saves and ends the run; Ctrl-C reaches rank 0 itself.

    The main thread waits inside of the library for most of the time and runs no handlers; a thread does instead.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def listen() -> None:
        while os.read(read, 1)[0] != signal.SIGTERM:
            pass
        watch.ask_to_stop()

    threading.Thread(target=listen, name="signals", daemon=True).start()


def refuse_several_processes(config: EngineConfig) -> None:
    """`ValueError` where torchrun started several processes for an engine that trains in one; once, on rank 0."""
    world = World.of_environment()
    if world.num_ranks == 1:
        return
    if world.rank:
        raise SystemExit(2)
    raise ValueError(
        f"engine: expected one that trains in several processes, such as fsdp, with {world.num_ranks} of them, found "
        f"{config.name}; add engine=fsdp, or start one process: python -m ..."
    )


def _device(config: EngineConfig, local_rank: int) -> torch.device:
    device = pick_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
