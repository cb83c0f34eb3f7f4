"""Samplers in processes of their own, one CPU thread each: small models decode faster so than in one process with as
many threads (benchmarks/RESULTS.md), and go on while the trainer scores. Linux."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from model.checkpoint import released_tensors
from model.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig
from rollouts.rollout import Rollout, RolloutRequest
from rollouts.weight_buffer import WeightBuffer
from rollouts.worker_process import Start, receive, send

_PATIENCE = 2.0  # seconds for a process to end by itself


class SamplerDied(RuntimeError):
    """A sampler's process ended or failed; the message says which and why."""

    exit_code = 8


class ProcessWorkers:
    """`RolloutWorker` over `config.workers` samplers. Each group goes where the fewest are open, so a batch that
    is submitted between two polls is always dealt out alike; completions are those of `EmbeddedWorker` with one thread.
    """

    def __init__(self, model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> None:
        """`model` is on CPU and only read here. Processes start beside the caller, who waits at the first `poll`."""
        self.config = config
        self._buffer = WeightBuffer.create(released_tensors(model))
        memory = self._buffer.places, self._buffer.size, self._buffer.descriptor
        self._start = Start(model.config, processor, config.share_of_worker(), run_seed, model.dtype, *memory)
        self._children: list[_Child] = []
        try:
            for number in range(config.workers):
                self._children.append(_Child(number, self._buffer.descriptor))
        except OSError:
            self.close()
            raise
        self._has_started = False
        self._waiting: list[tuple[int, RolloutRequest]] = []
        self._child_of: dict[int, _Child] = {}  # open requests that were given out
        self._done: list[tuple[int, list[Rollout]]] = []
        self._next_handle = 0
        self._manifest: dict[str, int] = {}
        self._received: set[str] = set()

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._child_of or self._done)

    def submit(self, request: RolloutRequest) -> int:
        self.config.check_length(request.prompt_id, len(request.prompt_ids))
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._waiting.append((handle, request))
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        self._begin()
        self._give_out()
        while not self._done and self._child_of:
            self._read(wait([child.connection for child in self._children]))
        done, self._done = self._done, []
        return done

    def abort(self, handle: int) -> None:
        self._waiting = [item for item in self._waiting if item[0] != handle]
        self._done = [item for item in self._done if item[0] != handle]
        if child := self._child_of.pop(handle, None):
            child.num_open -= 1
            child.send(("abort", handle))

    def begin_update(self, version: int, manifest: dict[str, int]) -> None:
        self._manifest, self._received = manifest, set()

    def load(self, name: str, tensor: Any) -> None:
        self._buffer.put(name, tensor)
        self._received.add(name)

    def finish_update(self, version: int) -> dict[str, int]:
        """The checksums that every process found; where one found another, that one."""
        missing = self._manifest.keys() - self._received
        if missing:
            raise RuntimeError(f"weight sync to version {version}: tensors never arrived: {sorted(missing)}")
        self._begin()
        for child in self._children:
            child.send(("update", version, self._manifest))
        found = dict(self._manifest)
        for child in self._children:
            while child.checksums is None:
                self._read([child.connection])
            found |= {name: child.checksums.get(name, -1) for name in found if child.checksums.get(name) != found[name]}
            child.checksums = None
        return found

    def close(self) -> None:
        for child in self._children:
            child.connection.close()
        for child in self._children:
            child.end()
        self._children = []
        self._buffer.close()

    def _begin(self) -> None:
        """Processes read what to sample with once they have loaded their libraries, some seconds after they began."""
        if not self._has_started:
            for child in self._children:
                child.send(self._start)
            self._has_started = True

    def _give_out(self) -> None:
        batches: dict[_Child, list[tuple[int, RolloutRequest]]] = {}
        for handle, request in self._waiting:
            child = min(self._children, key=lambda child: child.num_open)
            child.num_open += 1
            self._child_of[handle] = child
            batches.setdefault(child, []).append((handle, request))
        self._waiting = []
        for child, batch in batches.items():
            child.send(("submit", batch))

    def _read(self, ready: Sequence[Any]) -> None:
        for child in self._children:
            if child.connection not in ready:
                continue
            match child.receive():
                case ("done", groups):
                    for handle, rollouts in groups:
                        if self._child_of.pop(handle, None):  # else it was aborted meanwhile
                            child.num_open -= 1
                            self._done.append((handle, rollouts))
                case ("updated", checksums):
                    child.checksums = checksums


class _Child:
    """The caller's side of one process."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.num_open = 0  # groups
        self.checksums: Mapping[str, int] | None = None  # of a finished update
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rollouts.worker_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), descriptor),
                start_new_session=True,  # Ctrl-C at the terminal is for the caller alone
                env=_environment(),
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())

    def send(self, message: Any) -> None:
        try:
            send(self.connection, message)
        except OSError:
            while True:  # what it sent before it ended says why
                self.receive()

    def receive(self) -> Any:
        try:
            message = receive(self.connection)
        except (EOFError, OSError) as error:
            raise self._death("") from error
        if message[0] == "failed":
            raise self._death(message[1])
        return message

    def end(self) -> int:
        """Its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_PATIENCE)
        self._process.kill()
        return self._process.wait()

    def _death(self, reason: str) -> SamplerDied:
        code = self.end()
        cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return SamplerDied(
            f"sampler process {self.number} of rollouts.workers ended ({cause}); its groups are lost, and the run "
            f"continues from its last checkpoint when started again\n{reason}".rstrip()
        )


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
