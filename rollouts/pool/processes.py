"""Samplers in processes of this host, with one CPU thread each. Linux only.

Small models decode faster so than in one process with as many threads (benchmarks/RESULTS.md), and the processes go on
while the trainer scores.
"""

import contextlib
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rollouts.config import VllmRolloutConfig
from rollouts.pool.messages import Answer, Failed, Message, StartMessage
from rollouts.pool.worker_pool import MemberFailed
from rollouts.pool.worker_process import HEADER, framed

_PATIENCE = 2.0  # seconds for a process to end by itself
_CHUNK = 2**20


class ProcessLauncher:
    """Starts samplers as processes behind sockets that never block; a `WorkerLauncher`."""

    def __init__(self, start: StartMessage, num_gpus: int = 0, is_first_taken: bool = False) -> None:
        """`num_gpus` is the number of GPUs that this process sees, 0 where samplers run on CPU. With `is_first_taken`
        the first of them is the trainer's."""
        config = start.config
        self._devices = config.tensor_parallel if isinstance(config, VllmRolloutConfig) and num_gpus else 0
        self._first_device = int(is_first_taken)
        needed = self._first_device + self._devices * config.pool.workers
        if self._devices and num_gpus < needed:
            raise ValueError(
                f"rollouts.pool.workers: expected {needed} GPUs, {self._first_device} for the trainer and "
                f"rollouts.tensor_parallel = {self._devices} for each of {config.pool.workers}, found {num_gpus}; "
                "rollouts.pool.placement=trainer shares one (docs/vllm.md)"
            )
        self._start = start
        self.on_gpu = bool(self._devices)

    def start(self, number: int) -> "ProcessMember":
        first = self._first_device + number * self._devices
        member = ProcessMember(number, visible_gpus(range(first, first + self._devices)))
        member.start(self._start)
        return member

    def wait(self, members: Sequence["ProcessMember"], seconds: float) -> list["ProcessMember"]:
        end = time.monotonic() + seconds
        while not any(member.is_ready for member in members):
            left = end - time.monotonic()
            if left <= 0:
                break
            with selectors.DefaultSelector() as selector:
                for member in members:
                    selector.register(member.channel, member.wanted_events, member)
                for key, events in selector.select(left):
                    key.data.move(events)
        for member in members:  # take what came meanwhile
            member.move(selectors.EVENT_READ | selectors.EVENT_WRITE)
        return [member for member in members if member.is_ready]

    def close(self) -> None:
        pass


class ProcessMember:
    """The caller's side of one process."""

    def __init__(self, number: int, devices: str) -> None:
        self.name = f"sampler process {number}"
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rollouts.pool.worker_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C at the terminal is for the caller alone
                env=worker_environment(devices),
            )
        self.channel.setblocking(False)
        self._outgoing, self._incoming = memoryview(b""), bytearray()
        self._has_ended = self._is_dismissed = False

    @property
    def is_ready(self) -> bool:
        """Whether a whole answer is there, or none will come."""
        if self._has_ended:
            return True
        return len(self._incoming) >= HEADER.size and len(self._incoming) >= self._frame_end

    @property
    def wanted_events(self) -> int:
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)

    def start(self, start: StartMessage) -> None:
        self._send(framed(start))

    def call(self, messages: list[Message]) -> None:
        self._send(framed(messages))

    def move(self, events: int) -> None:
        """Send and receive as much as goes without waiting."""
        try:
            while events & selectors.EVENT_WRITE and self._outgoing:
                self._outgoing = self._outgoing[self.channel.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except OSError:  # the process has ended, and what it sent before says why
            self._outgoing = memoryview(b"")
        try:
            while events & selectors.EVENT_READ and not self._has_ended:
                chunk = self.channel.recv(_CHUNK)
                self._incoming += chunk
                self._has_ended = not chunk
        except BlockingIOError:
            pass
        except OSError:
            self._has_ended = True

    def check(self) -> None:
        self.move(selectors.EVENT_READ)
        if self._has_ended:
            raise MemberFailed(self._death())

    def answers(self) -> list[Answer]:
        if len(self._incoming) < HEADER.size or len(self._incoming) < self._frame_end:
            raise MemberFailed(self._death())
        end = self._frame_end
        payload, self._incoming = self._incoming[HEADER.size : end], self._incoming[end:]
        try:
            found = pickle.loads(payload)
        except Exception as error:  # unpickling such bytes may raise anything
            raise MemberFailed(f"answered with bytes that are no message: {error!r}") from None
        if isinstance(found, Failed):
            raise MemberFailed(f"{self._death()}\n{found.traceback}".rstrip())
        if not isinstance(found, list):
            raise MemberFailed(f"answered garbage: {found!r:.200}")
        return found

    def dismiss(self) -> None:
        self._is_dismissed = True
        self.channel.close()

    def kill(self) -> None:
        if self._is_dismissed:  # it ends by itself once it has cleaned up
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_PATIENCE)
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its children too: they hold devices
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a driver may take long even so
            self.process.wait(_PATIENCE)

    def _send(self, content: bytes) -> None:
        self._outgoing = memoryview(content)
        self.move(selectors.EVENT_WRITE)

    @property
    def _frame_end(self) -> int:
        return HEADER.size + HEADER.unpack_from(self._incoming)[0]

    def _death(self) -> str:
        code = self.process.poll()
        if code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(_PATIENCE)
        if code is None:
            return "it closed its connection"
        return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def worker_environment(devices: str = "") -> dict[str, str]:
    """Return the environment of a process that samples: our packages, one thread, and these GPUs."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": devices}


def visible_gpus(numbers: Sequence[int]) -> str:
    """Return CUDA_VISIBLE_DEVICES for a child that gets these of the GPUs that this process sees."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = own.split(",") if own else None
    return ",".join(names[number] if names else str(number) for number in numbers)
