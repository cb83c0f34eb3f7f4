"""Processes that build rows, or open images, ahead of training. One that ends, or does not answer, is replaced.

Images come back in memory that both processes map, and are not copied: the worker writes the arrays of a row into an
anonymous file in memory and sends its descriptor, which is closed once the file is mapped. So rows hold no descriptors,
and nothing has a name that would stay behind. Results are taken by key, so that their order does not depend on the
workers.
"""

import errno
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from model.data.media_error import MediaError
from model.run.failpoints import reach
from model.run.parent import die_with_parent

Build = Callable[[Any], Any]
"""Task -> what is wanted, mostly a row; it is sent to the workers once. `ValueError` for a task that cannot be done."""
_TASKS_EACH = 4
"""Tasks that a worker has at once, so that it does not wait for the next one."""
_MOST_ATTEMPTS = 3
_ALIGNED = 64
_SMALL_BYTES = 1 << 15
"""Arrays below this size are copied into the message."""
_LOOKED_THROUGH = 256
"""Waiting tasks among which a worker finds one that is near those it had."""
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
        self._queue: deque[tuple[Hashable, Any, int | None]] = deque()  # key, task, number of the worker it is for
        self._attempts: dict[Hashable, int] = {}
        self._results: dict[Hashable, Any] = {}
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

    def submit(self, key: Hashable, task: Any, near: Hashable = None) -> None:
        """Have a row built. A key may be submitted again after its result was taken.

        Tasks with an equal `near` go to one worker, unless another one would have nothing to do.
        """
        with self._condition:
            key = (self._generation, key)
            self._wanted.add(key)
            self._queue.append((key, task, None if near is None else hash(near) % self._count))
        self._wake()

    def result(self, key: Hashable) -> Any:
        """Wait for a row that was submitted. Raises the error that building it raised."""
        with self._condition:
            key = (self._generation, key)
            while key not in self._results:
                if self._error is not None:
                    raise RuntimeError(
                        f"data: the thread that serves the data workers has ended: {self._error}{_advice(self._error)}"
                    ) from self._error
                self._condition.wait(_POLL_S)
            self._wanted.discard(key)
            found = self._results.pop(key)
        if isinstance(found, Exception):
            raise found
        return found

    def is_done(self, keys: Iterable[Hashable]) -> bool:
        """Whether `result` would not wait for any of these."""
        with self._condition:
            return self._error is not None or all((self._generation, key) in self._results for key in keys)

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
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

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
                key, task = self._next_for(worker.number)
                if key not in self._wanted:
                    continue
            if worker.is_ready and not worker.tasks:
                worker.since = time.monotonic()
            worker.tasks[key] = task
            try:
                worker.connection.send((key, task))
            except OSError:
                self._replace(worker, _exit_of(worker.process))

    def _next_for(self, number: int) -> tuple[Hashable, Any]:
        """Take the first waiting task that a worker may have, or the first one where all are for others."""
        for at, (key, task, owner) in enumerate(islice(self._queue, _LOOKED_THROUGH)):
            if owner is None or owner == number:
                del self._queue[at]
                return key, task
        return self._queue.popleft()[:2]

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
            if message is None:
                worker.is_ready, worker.since = True, time.monotonic()
                return
            key, content, sizes = message
            memory = _received(worker.connection) if sizes else -1
        except (EOFError, OSError) as error:
            if _advice(error):
                raise
            self._replace(worker, _exit_of(worker.process))
            return
        row = pickle.loads(content, buffers=_mapped(memory, sizes) if sizes else [])
        worker.tasks.pop(key, None)
        worker.since = time.monotonic()
        self._put(key, row)

    def _put(self, key: Hashable, result: Any) -> None:
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
                self._queue.appendleft((key, task, None))
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
            result = build(task)
        except Exception as error:
            result = _sendable(error)
        arrays: list[pickle.PickleBuffer] = []
        content = pickle.dumps(result, protocol=5, buffer_callback=partial(_keeps, arrays))
        parts = [array.raw() for array in arrays]
        connection.send((key, content, [part.nbytes for part in parts]))
        if parts:
            memory = _written(parts)
            reduction.send_handle(connection, memory, parent)
            os.close(memory)


def _keeps(arrays: list[pickle.PickleBuffer], array: pickle.PickleBuffer) -> bool:
    """Whether an array stays in the message: mappings are limited in number, and a small one costs less to copy."""
    if array.raw().nbytes < _SMALL_BYTES:
        return True
    arrays.append(array)
    return False


def _sendable(error: Exception) -> Exception:
    """An error of the row as it is; any other as text, because it may not be sendable."""
    return error if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


def _written(parts: list[memoryview]) -> int:
    """The descriptor of memory that holds these bytes one behind the other, each at a multiple of `_ALIGNED`."""
    memory = os.memfd_create("sailvl2-row")
    starts, size = _places([part.nbytes for part in parts])
    os.ftruncate(memory, size)
    with mmap.mmap(memory, size) as mapped:
        for start, part in zip(starts, parts, strict=True):
            mapped[start : start + part.nbytes] = part
    return memory


def _received(connection: Connection) -> int:
    """The descriptor that a worker sent. `OSError` where this process may open no more, `EOFError` where none comes."""
    try:
        return reduction.recv_handle(connection)
    except RuntimeError:  # the system delivers what was sent beside a descriptor, but has no room for the descriptor
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None


def _mapped(memory: int, sizes: list[int]) -> list[memoryview]:
    """The parts that `_written` wrote, in memory that goes when the last of them is used no more."""
    starts, size = _places(sizes)
    try:
        whole = torch.from_file(f"/proc/self/fd/{memory}", shared=True, size=size, dtype=torch.uint8).numpy().data
    except RuntimeError as error:  # it is mapped through one more descriptor, which is closed at once
        raise OSError(errno.EMFILE if "open files" in str(error) else errno.ENOMEM, str(error)) from None
    finally:
        os.close(memory)
    return [whole[start : start + part] for start, part in zip(starts, sizes, strict=True)]


def _places(sizes: list[int]) -> tuple[list[int], int]:
    """(where each part begins, number of all bytes)."""
    *starts, size = accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0)
    return starts, max(1, size)


def _advice(error: BaseException) -> str:
    """The way out where a process has too many descriptors; empty for other errors."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "; raise the number of files that a process may have open: ulimit -n"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return (
            "; lower data.loader.ahead_mib or data.loader.ahead, or raise the number of mappings of a process: "
            "sysctl vm.max_map_count"
        )
    return ""
