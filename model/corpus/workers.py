"""Processes that build rows ahead of training. One that ends, or does not answer, is named and replaced.

Pixels come back in memory that both processes map, and are not copied: the worker writes them into an anonymous file in
memory and sends its descriptor. Results are taken by key, so that their order does not depend on the workers.
"""

import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.batch import Row
from model.data.media_error import MediaError
from model.run.failpoints import reach
from model.run.parent import die_with_parent

Build = Callable[[Any], Row]
"""Task -> row; it is sent to the workers once. `ValueError` for a row that cannot be used."""
_TASKS_EACH = 4
"""Tasks that a worker has at once, so that it does not wait for the next one."""
_MOST_ATTEMPTS = 2
_POLL_S = 0.2
_START_S = 120.0
"""Seconds that a worker may take to start, in which it imports what it needs, beside its patience."""


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    tasks: dict[Hashable, Any] = field(default_factory=dict)  # those under way, in the order in which they were sent
    since: float = field(default_factory=time.monotonic)  # when it started, or began with the first of them
    is_ready: bool = False


class Workers:
    """Builds rows in `count` processes; `submit` names a task, `result` waits for it."""

    def __init__(self, build: Build, count: int, patience_s: float) -> None:
        self._build, self._count, self._patience_s = build, count, patience_s
        self._context = multiprocessing.get_context("spawn")
        self._condition = threading.Condition()
        self._queue: deque[tuple[Hashable, Any]] = deque()
        self._attempts: dict[Hashable, int] = {}
        self._results: dict[Hashable, Row | Exception] = {}
        self._wanted: set[Hashable] = set()
        self._generation = 0  # counts the calls of `forget`
        self._error: BaseException | None = None
        self._closing = False
        self._wake_read, self._wake_write = os.pipe()
        self._workers: list[_Worker] = []
        self._thread = threading.Thread(target=self._run, name="data-workers", daemon=True)
        self._thread.start()

    @property
    def process_ids(self) -> list[int]:
        """Those of the workers that run."""
        with self._condition:
            return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def submit(self, key: Hashable, task: Any) -> None:
        """Have a row built. A key may be submitted again after its result was taken."""
        with self._condition:
            key = (self._generation, key)
            self._wanted.add(key)
            self._queue.append((key, task))
        self._wake()

    def result(self, key: Hashable) -> Row:
        """Wait for a row that was submitted. Raises the error that building it raised."""
        with self._condition:
            key = (self._generation, key)
            while key not in self._results:
                if self._error is not None:
                    raise RuntimeError("data: the thread that serves the data workers has ended") from self._error
                self._condition.wait(_POLL_S)
            self._wanted.discard(key)
            found = self._results.pop(key)
        if isinstance(found, Exception):
            raise found
        return found

    def forget(self) -> None:
        """Give up all that was submitted and not taken."""
        with self._condition:
            self._generation += 1
            self._queue.clear()
            self._wanted.clear()
            self._results.clear()
            self._attempts.clear()

    def close(self) -> None:
        """End the workers."""
        self._closing = True
        self._wake()
        self._thread.join(timeout=10.0)

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def _run(self) -> None:
        try:
            for number in range(self._count):
                self._begin(number)
            while not self._closing:
                self._hand_out()
                ready = wait([self._wake_read, *(w.connection for w in self._workers)], timeout=_POLL_S)
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                for worker in list(self._workers):
                    if worker.connection in ready:
                        self._receive(worker)
                    elif self._is_late(worker):
                        self._replace(worker, f"no answer within data.loader.patience_s={self._patience_s:g}")
        except BaseException as error:  # a thread that waits for a result has to know
            with self._condition:
                self._error = error
                self._condition.notify_all()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
                worker.connection.close()
            os.close(self._wake_read)

    def _is_late(self, worker: _Worker) -> bool:
        waited = time.monotonic() - worker.since
        if not worker.is_ready:
            return waited > self._patience_s + _START_S
        return bool(worker.tasks) and waited > self._patience_s

    def _begin(self, number: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._build), name=f"data-{number}", daemon=True)
        process.start()
        theirs.close()
        with self._condition:
            self._workers.append(_Worker(number, process, ours))

    def _hand_out(self) -> None:
        while True:
            worker = min(self._workers, key=lambda one: len(one.tasks))
            with self._condition:
                if not self._queue or len(worker.tasks) >= _TASKS_EACH:
                    return
                key, task = self._queue.popleft()
                if key not in self._wanted:
                    continue
            if worker.is_ready and not worker.tasks:
                worker.since = time.monotonic()
            worker.tasks[key] = task
            try:
                worker.connection.send((key, task))
            except OSError:
                self._replace(worker, _exit_of(worker.process))

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
            if message is None:
                worker.is_ready, worker.since = True, time.monotonic()
                return
            key, row, shapes = message
            if shapes:
                row = _with_pixels(row, shapes, reduction.recv_handle(worker.connection))
        except (EOFError, OSError):
            self._replace(worker, _exit_of(worker.process))
            return
        worker.tasks.pop(key, None)
        worker.since = time.monotonic()
        self._put(key, row)

    def _put(self, key: Hashable, result: Row | Exception) -> None:
        with self._condition:
            self._attempts.pop(key, None)
            if key in self._wanted:
                self._results[key] = result
                self._condition.notify_all()

    def _replace(self, worker: _Worker, why: str) -> None:
        print(
            f"data worker {worker.number} is replaced, {len(worker.tasks)} rows are built again: {why}",
            file=sys.stderr,
            flush=True,
        )
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        with self._condition:
            self._workers.remove(worker)
        # Only the first was under way; those behind it did not reach the worker.
        for number, (key, task) in enumerate(reversed(list(worker.tasks.items()))):
            is_first = number == len(worker.tasks) - 1
            attempts = self._attempts.get(key, 0) + is_first
            if attempts >= _MOST_ATTEMPTS:
                self._put(key, MediaError(f"the process that built it ended {attempts} times: {why}"))
                continue
            with self._condition:
                self._attempts[key] = attempts
                self._queue.appendleft((key, task))
        self._begin(worker.number)


def _exit_of(process: BaseProcess) -> str:
    process.join(timeout=5.0)
    code = process.exitcode
    if code is not None and code < 0:
        return f"killed by signal {-code}"
    return f"it ended with code {code}"


def _work(connection: Connection, build: Build) -> None:
    """Build rows until the parent is gone."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = os.getppid()
    connection.send(None)  # ready
    while True:
        try:
            key, task = connection.recv()
        except EOFError:
            return
        reach("decode")
        try:
            row, shapes, memory = _without_pixels(build(task))
        except Exception as error:
            row, shapes, memory = _sendable(error), [], -1
        connection.send((key, row, shapes))
        if memory >= 0:
            reduction.send_handle(connection, memory, parent)
            os.close(memory)


def _sendable(error: Exception) -> Exception:
    """An error of the row as it is; any other as text, because it may not be sendable."""
    return error if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


def _without_pixels(row: Row) -> tuple[Row, list[torch.Size], int]:
    """(the row with no pixels, shape of each image, descriptor of the memory that holds all of them, or -1)."""
    pixels = [image for image in row.images if isinstance(image, Tensor)]
    if not pixels or len(pixels) != len(row.images):
        return row, [], -1
    memory = os.memfd_create("sailvl2-pixels")
    size = sum(image.nbytes for image in pixels)
    os.ftruncate(memory, size)
    with mmap.mmap(memory, size) as mapped:
        at = 0
        for image in pixels:
            target = np.frombuffer(mapped, np.float32, image.numel(), at)
            np.copyto(target, image.numpy().reshape(-1))
            at += image.nbytes
            del target
    return replace(row, images=()), [image.shape for image in pixels], memory


def _with_pixels(row: Row, shapes: list[torch.Size], memory: int) -> Row:
    """The row with its pixels, in memory that goes when they are used no more."""
    sizes = [shape.numel() for shape in shapes]
    try:
        mapped = mmap.mmap(memory, 4 * sum(sizes))
    finally:
        os.close(memory)
    flat = torch.frombuffer(mapped, dtype=torch.float32)
    return replace(row, images=tuple(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)))
