"""Sampling ahead of training, by a bounded number of policy versions.

A second thread collects later steps while the trainer works on one. New weights reach the samplers in flight:
unfinished completions go on with them, over keys and values of the older ones, and carry the version of every token.
What is kept of a step (ledger, order of draws, reward watch) is taken when its sampling ends, so a checkpoint never
holds a later step's draws; no step is sampled ahead across one that ends with a checkpoint or an evaluation.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from threading import Condition, Thread
from typing import TypeVar

from torch import Tensor

from model.run.state import State
from rlhf.collect import Collected, Collector, book
from rlhf.drawing.ledger import Ledger
from rollouts.rollout import MOMENT, RolloutRequest, RolloutWorker
from rollouts.weights.sync import sync_weights

Result = TypeVar("Result")


class _Abandoned(Exception):
    """The run ends while a later step is sampled."""


@dataclass(frozen=True)
class _Ready:
    """A collected step, and the state in which its sampling ended."""

    collected: Collected
    state: State
    waited: float  # seconds that the samplers waited for leave to begin
    took: float  # seconds from there to the end


class AheadCollector:
    """In the place of a `Collector`. Call it from one thread, and `close_thread` at the end."""

    def __init__(
        self,
        collector: Collector,
        worker: RolloutWorker,
        num_ahead: int,
        last_step: int,
        is_barrier: Callable[[int], bool],
    ) -> None:
        """`num_ahead` steps may be collected before their turn, none across a step for which `is_barrier`."""
        self.ledger = collector.ledger
        self._collector, self._worker = collector, worker
        self._num_ahead, self._last_step, self._is_barrier = num_ahead, last_step, is_barrier
        self._changed = Condition()
        self._thread: Thread | None = None
        self._step = 0  # that the trainer asked for last
        self._ready: dict[int, _Ready] = {}
        self._current: _Ready | None = None
        # (group index, end, reason) of the latest steps. A collected step's saved state may be older than these ends,
        # so they are replayed on it.
        self._closes: deque[list[tuple[int, str, str]]] = deque(maxlen=num_ahead + 1)
        self._is_busy = self._is_stopped = False
        self._mail: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._begun = time.monotonic()

    def collect(self, step: int, check: Callable[[], None] = lambda: None) -> Collected:
        """The step's groups, as soon as they are there. What goes wrong while a step is sampled is raised when
        that step is asked for, or before if it was the samplers; `check` is called while waiting."""
        begin = time.monotonic()
        with self._changed:
            self._step = step
            self._changed.notify_all()
        if self._thread is None:
            self._thread = Thread(target=self._sample, args=(self._step,), name="sampling ahead", daemon=True)
            self._thread.start()
        try:
            while not self._is_there():
                check()
        except BaseException:
            self.close_thread()
            raise
        with self._changed:
            ready = self._current = self._ready.pop(self._step)
            self.ledger = Ledger.from_state(ready.state["ledger"])
            for index, end, reason in chain.from_iterable(self._closes):
                if index in self.ledger.in_flight:
                    self.ledger.end(index, end, reason)
            self.ledger.take_closed()  # they were reported when they were closed
        now = time.monotonic()
        whole, self._begun = now - self._begun, now
        # How much of the step the trainer waited for samplers, and these for leave to go on.
        shares = {
            "idle/trainer_share": (now - begin) / max(whole, 1e-9),
            "idle/sampler_share": ready.waited / max(ready.waited + ready.took, 1e-9),
        }
        return replace(ready.collected, metrics={**ready.collected.metrics, **shares})

    def close(self, collected: Collected, untrained: set[int]) -> None:
        """See `Collector.close`."""
        with self._changed:
            ends = book(self.ledger, collected, untrained)
            self.ledger.check({group.group_index for group in collected.kept})
            for index, end, reason in ends:
                self._collector.ledger.end(index, end, reason)
            self._collector.ledger.take_closed()
            self._closes.append(ends)

    def sync(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Bring the policy's weights to the samplers, within a moment if they are at work.

        `tensors` is drawn in the thread that the samplers belong to, while the caller waits.
        """
        self._with_worker(lambda worker: sync_weights(worker, version, tensors))

    def probe(self, request: RolloutRequest) -> list[tuple[str, dict[str, Tensor]]]:
        """See `RolloutWorker.probe`."""
        return self._with_worker(lambda worker: worker.probe(request))

    def _with_worker(self, work: Callable[[RolloutWorker], Result]) -> Result:
        """Do something with the samplers, in the thread that they belong to."""
        with self._changed:
            future: Future[Result] = Future()
            mail = self._mail = lambda: _settle(future, work, self._worker)
            while self._mail is mail and self._is_busy:
                self._changed.wait(MOMENT)
            if self._mail is mail:
                self._mail = None
                mail()
        return future.result()

    def state(self) -> State:
        """Data that a checkpoint keeps. At a barrier the rewards' part is the present one: an evaluation may use it."""
        if self._current is None:
            return self._collector.state()
        state = {**self._current.state, "ledger": self.ledger.state()}
        return {**state, "rewards": self._collector.state()["rewards"]} if self._nothing_is_ahead() else state

    def restore(self, state: State) -> None:
        self._collector.restore(state)
        self.ledger = self._collector.ledger

    def close_thread(self) -> None:
        """End the second thread; what it was sampling is given up."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _nothing_is_ahead(self) -> bool:
        with self._changed:
            return not self._is_busy and not self._ready and self._error is None

    def _is_there(self) -> bool:
        with self._changed:
            if self._step not in self._ready and self._error is None:
                self._changed.wait(MOMENT)
            if self._step in self._ready:
                return True
            if self._error is not None:
                raise self._error
            return False

    def _may_begin(self, step: int) -> bool:
        barred = any(self._is_barrier(number) for number in range(self._step, step))
        return step <= min(self._step + self._num_ahead, self._last_step) and not barred

    def _sample(self, step: int) -> None:
        """The second thread: collect step after step, each as soon as it may begin."""
        while step <= self._last_step:
            begin = time.monotonic()
            with self._changed:
                while not self._is_stopped and not self._may_begin(step):
                    self._changed.wait(MOMENT)
                if self._is_stopped:
                    return
                self._is_busy = True
            waited = time.monotonic() - begin
            try:
                collected = self._collector.collect(step, self._between)
                took = time.monotonic() - begin - waited
                with self._changed:  # the trainer closes draws meanwhile
                    ready = _Ready(collected, self._collector.state(), waited, took)
            except BaseException as error:
                with self._changed:
                    self._error = None if isinstance(error, _Abandoned) else error
                    self._is_busy = False
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready[step] = ready
                self._is_busy = False
                self._changed.notify_all()
            step += 1

    def _between(self) -> None:
        """Called between looks at the samplers: stop, or take new weights."""
        with self._changed:
            if self._is_stopped:
                raise _Abandoned
            if self._mail is None:
                return
            self._mail()
            self._mail = None
            self._changed.notify_all()


def _settle(future: Future[Result], work: Callable[[RolloutWorker], Result], worker: RolloutWorker) -> None:
    try:
        future.set_result(work(worker))
    except BaseException as error:
        future.set_exception(error)
