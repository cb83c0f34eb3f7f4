"""The thread behind a pool: one loop that waits for all workers at once, keeps their time and has them replaced."""

import contextlib
import itertools
import math
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from rewards.nursery import Nursery
from rewards.result import Outcome, Status
from rewards.seat import Seat, State
from rewards.worker import FUNCTIONS, LOAD_SECONDS, VERIFIERS, lane_of

_START_SECONDS = 60.0  # for a worker to say that it is ready, the imports of its zygote included
_END_SECONDS = 0.2  # from a closed connection to the notice that the process ended, before it is killed
_KILL_SECONDS = 5.0  # from the order to kill to the notice, before the zygote counts as broken
_LONGEST_WAIT = 3600.0  # select refuses what its milliseconds cannot hold
_MAX_FAILED_STARTS = 3


class Run:
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
    def __init__(self, run: Run, position: int, task: Mapping[str, Any]) -> None:
        self.run, self.position, self.task = run, position, task
        self.lane = lane_of(task)
        self.tried = False  # in a worker that was taken from it through no fault of its own

    def finish(self, outcome: Outcome) -> None:
        self.run.finish(self.position, outcome)


def unscorable(kind: str, reason: str, trace: str = "", seconds: float = 0.0) -> Outcome:
    return Outcome(None, Status.unscorable, f"{kind}{reason}", trace, seconds)


class _Lane:
    """Workers of one kind, the process that forks them, and the runs that wait for them, each in its turn."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: deque[Run] = deque()
        self.nursery: Nursery | None = None
        self.seats: dict[int, Seat] = {}
        self.failed_starts = 0

    def next_job(self) -> Job | None:
        while self.runs:
            run = self.runs.popleft()
            waiting = run.waiting[self.name]
            if run.future.cancelled() or not waiting:
                continue
            job = waiting.popleft()
            if waiting:
                self.runs.append(run)
            return job
        return None

    def put_back(self, job: Job) -> None:
        job.run.waiting[self.name].appendleft(job)
        if job.run in self.runs:
            self.runs.remove(job.run)
        self.runs.appendleft(job.run)

    def num_waiting(self, at_most: int) -> int:
        counts = (len(run.waiting[self.name]) for run in self.runs if not run.future.cancelled())
        return min(at_most, sum(itertools.islice(counts, at_most)))

    def in_state(self, *states: State) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.state in states]


class Dispatcher(threading.Thread):
    """Started by its first run. At most `num_workers` tasks run at once."""

    def __init__(self, num_workers: int, timeout_seconds: float, memory_mb: int) -> None:
        super().__init__(name="scoring-pool", daemon=True)
        self.pid = os.getpid()
        self._num_workers, self._timeout, self._memory_mb = num_workers, timeout_seconds, memory_mb
        self._arrived: deque[Run] = deque()
        self._lock = threading.Lock()
        self._stopping = False
        self._lanes = [_Lane(VERIFIERS), _Lane(FUNCTIONS)]
        self._numbers = itertools.count(1)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)

    # Called from other threads.

    def submit(self, run: Run) -> bool:
        """False when the dispatcher has ended meanwhile."""
        with self._lock:
            if self._stopping:
                return False
            self._arrived.append(run)
        self._wake()
        return True

    def serves(self) -> bool:
        """Not after `stop`, and not in a fork of the process that started it: threads stay behind there."""
        return os.getpid() == self.pid and not self._stopping

    def stop(self) -> None:
        if os.getpid() != self.pid:  # a fork of the process that owns the workers
            return
        with self._lock:
            self._stopping = True
        self._wake()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a full buffer wakes as well
            self._wake_write.send(b"!")

    # The thread.

    def run(self) -> None:
        while not self._stopping:
            try:
                self._step()
            except Exception:  # a fault of ours must neither hang a caller nor count as a wrong answer
                trace = traceback.format_exc()
                print(f"the scoring pool failed and starts afresh\n{trace}", file=sys.stderr)
                self._abandon(unscorable("died", ": the scoring pool failed", trace))
        self._abandon(unscorable("died", ": the pool was closed"))
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _step(self) -> None:
        while self._arrived:
            run = self._arrived.popleft()
            for lane in self._lanes:
                if run.waiting[lane.name]:
                    lane.runs.append(run)
        self._lanes.reverse()  # neither kind of task starves the other
        for lane in self._lanes:
            self._assign(lane)
        for key, mask in self._selector.select(self._seconds_to_next_limit()):
            key.data(mask)
        for lane in self._lanes:
            for seat in list(lane.seats.values()):
                if seat.limit is not None and time.monotonic() >= seat.limit:
                    self._on_limit(lane, seat)

    def _assign(self, lane: _Lane) -> None:
        while any(run.waiting[lane.name] for run in lane.runs):
            free = self._num_workers - sum(len(each.in_state(*State.working())) for each in self._lanes)
            if free <= 0:
                return
            idle = lane.in_state(State.idle)
            if not idle:
                starting = len(lane.in_state(State.starting))
                if starting < min(free, lane.num_waiting(free)):
                    self._hire(lane)
                    continue
                return
            job = lane.next_job()
            if job is not None:
                self._send(lane, idle[0], job)

    def _hire(self, lane: _Lane) -> None:
        try:
            if lane.nursery is None:
                nursery = lane.nursery = Nursery(lane.name, self._memory_mb)
                self._selector.register(
                    nursery.control, selectors.EVENT_READ, lambda _mask: self._on_notices(lane, nursery)
                )
            number, connection = lane.nursery.fork()
        except OSError as error:
            self._lose_nursery(lane, str(error))
            return
        seat = Seat(number, connection, time.monotonic() + _START_SECONDS)
        lane.seats[number] = seat
        self._selector.register(connection, selectors.EVENT_READ, lambda mask: self._on_ready(lane, seat, mask))

    def _send(self, lane: _Lane, seat: Seat, job: Job) -> None:
        seconds = job.task.get("timeout_seconds", self._timeout)
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            job.finish(unscorable("error", f": timeout_seconds: expected a positive number, found {seconds!r}"))
            return
        try:
            seat.put({"id": next(self._numbers), "task": job.task, "seconds": seconds})
        except (TypeError, ValueError, RecursionError) as error:
            job.finish(unscorable("error", f": the task is not plain JSON data: {error}"))
            return
        now = time.monotonic()
        loading = lane.name == FUNCTIONS
        seat.begin(job, State.loading if loading else State.running, now, LOAD_SECONDS if loading else seconds)
        self._flush(lane, seat)

    def _flush(self, lane: _Lane, seat: Seat) -> None:
        """Hand over what the connection takes without waiting."""
        more = seat.flush()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if more else 0)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.modify(seat.connection, events, lambda mask: self._on_ready(lane, seat, mask))

    # Events.

    def _drain_wake(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            self._wake_read.recv(4096)

    def _on_ready(self, lane: _Lane, seat: Seat, mask: int) -> None:
        if lane.seats.get(seat.number) is not seat or seat.state in (State.dying, State.closed):
            return  # an earlier event of this round ended it
        if mask & selectors.EVENT_WRITE:
            self._flush(lane, seat)
        if mask & selectors.EVENT_READ:
            self._read(lane, seat)

    def _read(self, lane: _Lane, seat: Seat) -> None:
        try:
            is_open = seat.receive()
            for reply in seat.replies():
                self._on_reply(lane, seat, reply)
                if seat.state is State.dying:
                    return
        except ValueError as error:
            self._kill(lane, seat, unscorable("died", f": {error}", seconds=seat.elapsed()))
            return
        if not is_open:  # the notice of its end says more; it comes at once unless the worker only closed its side
            self._selector.unregister(seat.connection)
            seat.state, seat.limit = State.closed, time.monotonic() + _END_SECONDS

    def _on_reply(self, lane: _Lane, seat: Seat, reply: dict[str, Any]) -> None:
        if seat.state is State.starting and reply.get("ready"):
            seat.state, seat.limit = State.idle, None
            lane.failed_starts = 0
            return
        job = seat.job
        if job is None or not seat.expects(reply):
            if job is not None and not job.tried:  # a late word about another task: this one is not to blame
                job.tried, seat.job = True, None
                lane.put_back(job)
            self._kill(lane, seat, unscorable("died", ": answered out of turn", seconds=seat.elapsed()))
            return
        if "started" in reply:
            seat.begin(job, State.running, time.monotonic(), job.task.get("timeout_seconds", self._timeout))
            return
        if seat.has_more():
            raise ValueError("answered more than once")
        job.finish(seat.outcome(reply))
        seat.rest()
        if reply.get("retire"):
            self._kill(lane, seat, None)

    def _on_limit(self, lane: _Lane, seat: Seat) -> None:
        match seat.state:
            case State.starting:
                self._lose_nursery(lane, f"no worker within {_START_SECONDS:g} s")
            case State.loading:
                reason = f": importing the file took more than {LOAD_SECONDS:g} s"
                self._kill(lane, seat, unscorable("load", reason))
            case State.running:
                self._kill(lane, seat, unscorable("timeout", f" after {seat.seconds:g} s"))
            case State.closed:
                self._kill(lane, seat, unscorable("died", ": closed its connection"))
            case State.dying:
                self._lose_nursery(lane, f"no worker killed within {_KILL_SECONDS:g} s")

    def _kill(self, lane: _Lane, seat: Seat, outcome: Outcome | None) -> None:
        """The outcome is given once the process is gone."""
        if seat.state is not State.closed:
            self._selector.unregister(seat.connection)
        seat.connection.close()
        seat.state, seat.limit, seat.last_words = State.dying, time.monotonic() + _KILL_SECONDS, outcome
        try:
            if lane.nursery is not None:
                lane.nursery.kill(seat.number)
        except OSError as error:
            self._lose_nursery(lane, str(error))

    def _on_notices(self, lane: _Lane, nursery: Nursery) -> None:
        if lane.nursery is not nursery:
            return
        notices = nursery.read_notices()
        if notices is None:
            self._lose_nursery(lane, "the process that forks them ended")
            return
        for number, code in notices:
            seat = lane.seats.get(number)
            if seat is None:
                continue
            if seat.state in (State.loading, State.running):
                self._read(lane, seat)  # it may have answered before it ended
            lane.seats.pop(number, None)
            if seat.state not in (State.dying, State.closed):
                self._selector.unregister(seat.connection)
            seat.connection.close()
            if seat.job is not None:
                seat.job.finish(seat.epitaph(code))

    def _lose_nursery(self, lane: _Lane, why: str) -> None:
        """Its workers die with it. What they worked on is tried once more."""
        for seat in lane.seats.values():
            if seat.state not in (State.dying, State.closed):
                self._selector.unregister(seat.connection)
            seat.connection.close()
            if seat.job is None:
                continue
            if seat.job.tried or seat.last_words is not None:
                seat.job.finish(seat.last_words or unscorable("died", f": {why}", seconds=seat.elapsed()))
            else:
                seat.job.tried = True
                lane.put_back(seat.job)
        lane.seats.clear()
        if lane.nursery is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(lane.nursery.control)
            why = f"{why} (exit code {lane.nursery.stop()})"
            lane.nursery = None
        lane.failed_starts += 1
        if lane.failed_starts >= _MAX_FAILED_STARTS:
            lane.failed_starts = 0
            while (job := lane.next_job()) is not None:
                job.finish(unscorable("died", f": scoring processes cannot be started: {why}; stderr may say more"))

    def _abandon(self, outcome: Outcome) -> None:
        """End all processes; whatever is open gets `outcome`."""
        with self._lock:
            runs = list(self._arrived)
            self._arrived.clear()
        for lane in self._lanes:
            for seat in lane.seats.values():
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(seat.connection)
                seat.connection.close()
                if seat.job is not None:
                    seat.job.finish(outcome)
            lane.seats.clear()
            if lane.nursery is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(lane.nursery.control)
                lane.nursery.stop()
                lane.nursery = None
            lane.runs.extend(run for run in runs if run.waiting[lane.name])
            while (job := lane.next_job()) is not None:
                job.finish(outcome)

    def _seconds_to_next_limit(self) -> float | None:
        limits = [seat.limit for lane in self._lanes for seat in lane.seats.values() if seat.limit is not None]
        return min(_LONGEST_WAIT, max(0.0, min(limits) - time.monotonic())) if limits else None
