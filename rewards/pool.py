"""Worker processes that can be killed: one task at a time each, a deadline for each, results as plain data.

A worker answers a task with two lines: `started` once what the task imports is loaded, then the outcome.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.result import Outcome, Status

_START_SECONDS = 60.0  # until `started`: the worker's own imports and those of a user's file


class ScoringPool:
    """Runs tasks of `rewards.worker` in `num_workers` processes that start when first needed."""

    def __init__(self, num_workers: int, timeout_seconds: float) -> None:
        self._num_workers = num_workers
        self._timeout = timeout_seconds
        self._workers: list[_Worker] = []

    def run(self, tasks: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Outcomes in task order. A task past its deadline or whose worker died is an outcome, never an exception."""
        outcomes: list[Outcome | None] = [None] * len(tasks)
        waiting = list(reversed(range(len(tasks))))
        while len(self._workers) < min(self._num_workers, len(tasks)):
            self._workers.append(_Worker())
        while any(outcome is None for outcome in outcomes):
            for worker in self._workers:
                if worker.task is None and waiting:
                    worker.send(waiting.pop(), tasks)
            for index, worker in enumerate(self._workers):
                if worker.task is None:
                    continue
                position = worker.task
                outcome = worker.receive(self._timeout)
                if outcome is not None:
                    outcomes[position] = outcome
                    if not worker.alive:
                        worker.close()
                        self._workers[index] = _Worker()
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []


class _Worker:
    """One process. The deadline of a task begins when the worker says that it started."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # -P keeps the working directory, which may hold a user's own rewards.py, off the module path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
        self.task: int | None = None
        self.alive = True
        self._since = 0.0
        self._limit = _START_SECONDS
        self._buffer = b""

    def send(self, position: int, tasks: Sequence[dict[str, Any]]) -> None:
        assert self._process.stdin is not None
        self.task = position
        self._since, self._limit = time.monotonic(), _START_SECONDS
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows at receive
            self._process.stdin.write(json.dumps(tasks[position]).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout: float) -> Outcome | None:
        """The outcome of the current task, or None if it is still running after a short wait."""
        assert self._process.stdout is not None
        left = self._since + self._limit - time.monotonic()
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, min(left, 0.02)))
        if ready:
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                return self._fail(f"scoring process died with exit code {self._process.wait()}")
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                if "started" not in reply:
                    self.task = None
                    seconds = time.monotonic() - self._since
                    if "reason" in reply:
                        failed = Status.unscorable
                        return Outcome(None, failed, reply["reason"], reply.get("traceback", ""), seconds)
                    return Outcome(reply["value"], seconds=seconds)
                self._since, self._limit = time.monotonic(), timeout
            return None
        if left <= 0:
            return self._fail(f"timeout after {self._limit:g} s")
        return None

    def _fail(self, reason: str) -> Outcome:
        self.task, self.alive = None, False
        return Outcome(None, Status.unscorable, reason, seconds=time.monotonic() - self._since)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
