"""Scoring in processes that can be killed: every task has a deadline and a memory limit, no task can harm another.

A scorer process does one task at a time. One that is past its deadline, out of memory, dead or breaks the protocol is
killed with all that it started, and replaced by a fork of a warm process (`rewards.sandbox.zygote`). Nothing here
depends on signals or on the main thread, so a pool works from any thread, from asyncio and from actors of other
frameworks. The memory limit needs Linux.
"""

import asyncio
import math
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeVar

from rewards.result import Outcome
from rewards.sandbox.attempts import Attempt
from rewards.sandbox.dispatcher import Dispatcher
from rewards.sandbox.tasks import Task

T = TypeVar("T")

REASON_KINDS = ("timeout", "memory", "died", "error", "load", "refused")
"""First word of the reason of an unscorable outcome. timeout: past the deadline. memory: out of memory. died: the
process ended or broke the protocol. error: an exception. load: a user's file does not load. refused: a verifier
raised `Unscorable`."""


class ScoringPool:
    """Runs the tasks of `rewards.sandbox.tasks` in at most `num_workers` scorer processes.

    A task may have a deadline and a memory limit of its own; the pool's are for the others.
    """

    def __init__(self, num_workers: int, timeout_seconds: float, memory_mb: int = 2048) -> None:
        if num_workers < 1 or not 0 < timeout_seconds < math.inf or memory_mb < 1:
            raise ValueError(
                "scoring pool: expected at least one worker, a positive deadline and memory limit, found "
                f"num_workers={num_workers}, timeout_seconds={timeout_seconds}, memory_mb={memory_mb}"
            )
        self._settings = num_workers, timeout_seconds, memory_mb
        self._lock = threading.Lock()
        self._dispatcher: Dispatcher | None = None
        self._at_end: weakref.finalize | None = None

    def run(self, tasks: Sequence[Task[T]]) -> list[Outcome[T]]:
        """Run tasks and give their outcomes in task order, from any thread. A task that fails has an outcome that says
        so; it never raises an exception here."""
        future = self.submit(tasks)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt: tasks that have not begun are not wanted any more
            future.cancel()
            raise

    async def run_async(self, tasks: Sequence[Task[T]]) -> list[Outcome[T]]:
        """Run tasks without blocking the event loop. Cancelling it drops the tasks that have not begun."""
        return await asyncio.wrap_future(self.submit(tasks))

    def submit(self, tasks: Sequence[Task[T]]) -> Future[list[Outcome[T]]]:
        """Hand in tasks and return at once; the future gives their outcomes in task order."""
        attempt = Attempt(tasks)
        while tasks and not self._running_dispatcher().submit(attempt):
            pass
        return attempt.future

    def close(self) -> None:
        """End all processes. Tasks that are still open become unscorable. A later `run` starts the pool again."""
        dispatcher = self._dispatcher
        if dispatcher is not None:
            dispatcher.stop()

    def __enter__(self) -> "ScoringPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running_dispatcher(self) -> Dispatcher:
        dispatcher = self._dispatcher
        if dispatcher is None or not dispatcher.serves():
            with self._lock:
                if self._dispatcher is None or not self._dispatcher.serves():
                    fresh = Dispatcher(*self._settings)
                    fresh.start()  # this may fail for want of a thread; then no dispatcher is kept
                    self._dispatcher = fresh
                    if self._at_end is not None:
                        self._at_end.detach()
                    self._at_end = weakref.finalize(self, fresh.stop)
                dispatcher = self._dispatcher
        return dispatcher
