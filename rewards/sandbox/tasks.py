"""Tasks on their way through a pool: those of one call, and each by itself."""

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from rewards.result import Outcome
from rewards.sandbox.worker import FUNCTIONS, VERIFIERS, lane_of


class Attempt:
    """Tasks handed in together; `future` gives their outcomes in order."""

    def __init__(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        self.future: Future[list[Outcome]] = Future()
        self._outcomes: list[Outcome | None] = [None] * len(tasks)
        self._open = len(tasks)
        self.waiting = {lane: deque[Job]() for lane in (VERIFIERS, FUNCTIONS)}
        for position, task in enumerate(tasks):
            self.waiting[lane_of(task)].append(Job(self, position, task))
        if not tasks:
            self.future.set_result([])

    def finish(self, position: int, outcome: Outcome) -> None:
        self._outcomes[position] = outcome
        self._open -= 1
        if not self._open:
            with contextlib.suppress(InvalidStateError):  # cancelled
                self.future.set_result([outcome for outcome in self._outcomes if outcome is not None])


class Job:
    def __init__(self, attempt: Attempt, position: int, task: Mapping[str, Any]) -> None:
        self.attempt, self.position, self.task = attempt, position, task
        self.lane = lane_of(task)
        self.tried = False  # in a worker that was taken from it through no fault of its own

    def finish(self, outcome: Outcome) -> None:
        self.attempt.finish(self.position, outcome)
