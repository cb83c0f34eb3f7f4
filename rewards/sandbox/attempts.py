"""Tasks on their way through a pool: those that were handed in together, and each by itself."""

import contextlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Generic, TypeVar

from rewards.result import Outcome
from rewards.sandbox.tasks import FUNCTIONS, VERIFIERS, Task

T = TypeVar("T")


class Attempt(Generic[T]):
    """Tasks that were handed in together; `future` gives their outcomes in order."""

    def __init__(self, tasks: Sequence[Task[T]]) -> None:
        self.future: Future[list[Outcome[T]]] = Future()
        self._outcomes: list[Outcome[T] | None] = [None] * len(tasks)
        self._num_open = len(tasks)
        self.waiting = {lane: deque[Job]() for lane in (VERIFIERS, FUNCTIONS)}
        for position, task in enumerate(tasks):
            self.waiting[task.lane].append(Job(self, position, task))
        if not tasks:
            self.future.set_result([])

    def finish(self, position: int, outcome: Outcome[T]) -> None:
        self._outcomes[position] = outcome
        self._num_open -= 1
        if not self._num_open:
            with contextlib.suppress(InvalidStateError):  # cancelled
                self.future.set_result([outcome for outcome in self._outcomes if outcome is not None])


class Job:
    """One task of an attempt."""

    def __init__(self, attempt: Attempt, position: int, task: Task[object]) -> None:
        self.attempt, self.position, self.task = attempt, position, task
        self.tried = False  # a process had it once and lost it through no fault of the task

    def finish(self, outcome: Outcome[object]) -> None:
        self.attempt.finish(self.position, outcome)
