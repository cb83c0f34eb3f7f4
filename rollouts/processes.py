"""Samplers in processes of this host, one CPU thread each: small models decode faster so than in one process with as
many threads (benchmarks/RESULTS.md), and go on while the trainer scores. Linux."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from rollouts.config import VllmRolloutConfig
from rollouts.pool import MemberFailed
from rollouts.session import Message, Start
from rollouts.weight_buffer import WeightBuffer
from rollouts.worker_process import receive, send

_PATIENCE = 2.0  # seconds for a process to end by itself


class ProcessFleet:
    """`Fleet` of processes behind pipes; weights go through shared memory."""

    def __init__(self, start: Start, weights: dict[str, Tensor], num_gpus: int = 0) -> None:
        """`num_gpus` of this host, the first of which is the trainer's; 0 where samplers run on CPU."""
        config = start.config
        self._devices = config.tensor_parallel if isinstance(config, VllmRolloutConfig) and num_gpus else 0
        if self._devices and num_gpus < 1 + self._devices * config.pool.workers:
            needed = 1 + self._devices * config.pool.workers
            raise ValueError(
                f"rollouts.pool.workers: expected {needed} GPUs, one for the trainer and "
                f"rollouts.tensor_parallel = {self._devices} for each of {config.pool.workers}, found {num_gpus}; set "
                "rollouts.pool.placement=trainer to share one"
            )
        self._start = start
        self._buffer = WeightBuffer.create(weights)

    def start(self, number: int) -> "ProcessMember":
        first = 1 + number * self._devices
        devices = ",".join(str(device) for device in range(first, first + self._devices))
        member = ProcessMember(number, self._buffer.descriptor, devices)
        with contextlib.suppress(MemberFailed):  # then its first answer says why
            memory = self._buffer.places, self._buffer.size, self._buffer.descriptor
            member.call((self._start, *memory))
        return member

    def wait(self, members: Sequence["ProcessMember"], seconds: float) -> list["ProcessMember"]:
        ready = wait([member.connection for member in members], seconds)
        return [member for member in members if member.connection in ready]

    def put(self, name: str, tensor: Tensor) -> None:
        self._buffer.put(name, tensor)

    def publish(self) -> None:
        pass  # the memory is shared

    def close(self) -> None:
        self._buffer.close()


class ProcessMember:
    """The caller's side of one process."""

    def __init__(self, number: int, descriptor: int, devices: str) -> None:
        self.name = f"sampler process {number}"
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rollouts.worker_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), descriptor),
                start_new_session=True,  # Ctrl-C at the terminal is for the caller alone
                env=worker_environment(devices),
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())

    def call(self, messages: Any) -> None:
        try:
            send(self.connection, messages)
        except OSError as error:
            raise MemberFailed(self._death()) from error

    def answers(self) -> list[Message]:
        try:
            found = receive(self.connection)
        except (EOFError, OSError) as error:
            raise MemberFailed(self._death()) from error
        except (UnpicklingError, AttributeError, ImportError, IndexError, ValueError) as error:
            raise MemberFailed(f"answered with bytes that are no message: {error!r}") from None
        if isinstance(found, str):
            raise MemberFailed(f"{self._death()}\n{found}".rstrip())
        if not isinstance(found, list):
            raise MemberFailed(f"answered garbage: {found!r:.200}")
        return found

    def dismiss(self) -> None:
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)

    def kill(self) -> None:
        if not self.connection.closed:
            self.connection.close()
        self.process.kill()
        self.process.wait()

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        code = self.process.poll()
        if code is None:
            return "it closed its connection"
        return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def worker_environment(devices: str = "") -> dict[str, str]:
    """Of a process that samples: our packages, one thread, and these GPUs."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": devices}
