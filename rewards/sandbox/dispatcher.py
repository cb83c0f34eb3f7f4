"""The thread behind a pool: one loop that waits for all scorer processes, keeps their time and has them replaced."""

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
from typing import Never

from rewards.result import Outcome, Status
from rewards.sandbox.attempts import Attempt, Job
from rewards.sandbox.tasks import FUNCTIONS, VERIFIERS, Failed, Ready, Reply, Scored, Started
from rewards.sandbox.worker import LOAD_SECONDS
from rewards.sandbox.worker_handle import State, WorkerHandle
from rewards.sandbox.zygote_client import ZygoteClient

_START_SECONDS = 60.0  # a new process must be ready after this time, which includes the imports of its zygote
_END_SECONDS = 0.2  # a process that closed its connection is killed when it has not ended after this time
_KILL_SECONDS = 5.0  # the zygote counts as broken when a process that it should kill has not ended after this time
_LONGEST_WAIT = 3600.0  # seconds; select refuses a wait that its milliseconds cannot hold
_MAX_FAILED_STARTS = 3


def unscorable(kind: str, reason: str, trace: str = "", seconds: float = 0.0) -> Outcome[Never]:
    return Outcome(None, Status.unscorable, f"{kind}{reason}", trace, seconds)


class _Lane:
    """The scorer processes of one kind, the zygote that forks them, and the attempts that wait for them in turn."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attempts: deque[Attempt] = deque()
        self.zygote: ZygoteClient | None = None
        self.handles: dict[int, WorkerHandle] = {}
        self.failed_starts = 0

    def next_job(self) -> Job | None:
        while self.attempts:
            attempt = self.attempts.popleft()
            waiting = attempt.waiting[self.name]
            if attempt.future.cancelled() or not waiting:
                continue
            job = waiting.popleft()
            if waiting:
                self.attempts.append(attempt)
            return job
        return None

    def put_back(self, job: Job) -> None:
        job.attempt.waiting[self.name].appendleft(job)
        if job.attempt in self.attempts:
            self.attempts.remove(job.attempt)
        self.attempts.appendleft(job.attempt)

    def num_waiting(self, at_most: int) -> int:
        counts = (len(attempt.waiting[self.name]) for attempt in self.attempts if not attempt.future.cancelled())
        return min(at_most, sum(itertools.islice(counts, at_most)))

    def in_state(self, *states: State) -> list[WorkerHandle]:
        return [handle for handle in self.handles.values() if handle.state in states]


class Dispatcher(threading.Thread):
    """Deals tasks to scorer processes. At most `num_workers` tasks run at once."""

    def __init__(self, num_workers: int, timeout_seconds: float, memory_mb: int) -> None:
        super().__init__(name="scoring-pool", daemon=True)
        self.pid = os.getpid()
        self._num_workers, self._timeout, self._memory_mb = num_workers, timeout_seconds, memory_mb
        self._arrived: deque[Attempt] = deque()
        self._lock = threading.Lock()
        self._stopping = False
        self._lanes = [_Lane(VERIFIERS), _Lane(FUNCTIONS)]
        self._numbers = itertools.count(1)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)

    # These methods are called from other threads.

    def submit(self, attempt: Attempt) -> bool:
        """Take tasks in; False when the dispatcher has ended meanwhile."""
        with self._lock:
            if self._stopping:
                return False
            self._arrived.append(attempt)
        self._wake()
        return True

    def serves(self) -> bool:
        """Tell whether it still works: not after `stop`, and not in a fork of its process, which has no threads."""
        return os.getpid() == self.pid and not self._stopping

    def stop(self) -> None:
        if os.getpid() != self.pid:  # this is a fork; the scorer processes belong to the original
            return
        with self._lock:
            self._stopping = True
        self._wake()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a buffer that is full wakes the thread as well
            self._wake_write.send(b"!")

    # The methods below run in the thread.

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
            attempt = self._arrived.popleft()
            for lane in self._lanes:
                if attempt.waiting[lane.name]:
                    lane.attempts.append(attempt)
        self._lanes.reverse()  # neither kind of task starves the other
        for lane in self._lanes:
            self._assign(lane)
        for key, mask in self._selector.select(self._seconds_to_next_limit()):
            key.data(mask)
        for lane in self._lanes:
            for handle in list(lane.handles.values()):
                if handle.limit is not None and time.monotonic() >= handle.limit:
                    self._on_limit(lane, handle)

    def _assign(self, lane: _Lane) -> None:
        while any(attempt.waiting[lane.name] for attempt in lane.attempts):
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
            if lane.zygote is None:
                zygote = lane.zygote = ZygoteClient(lane.name, self._memory_mb)
                self._selector.register(
                    zygote.control, selectors.EVENT_READ, lambda _mask: self._on_notices(lane, zygote)
                )
            number, connection = lane.zygote.fork()
        except OSError as error:
            self._lose_zygote(lane, str(error))
            return
        handle = WorkerHandle(number, connection, time.monotonic() + _START_SECONDS)
        lane.handles[number] = handle
        self._selector.register(connection, selectors.EVENT_READ, lambda mask: self._on_ready(lane, handle, mask))

    def _send(self, lane: _Lane, handle: WorkerHandle, job: Job) -> None:
        seconds = self._seconds(job)
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            job.finish(unscorable("error", f": timeout_seconds: expected a positive number, found {seconds!r}"))
            return
        try:
            handle.put(next(self._numbers), seconds, job.task)
        except (TypeError, ValueError, RecursionError) as error:
            job.finish(unscorable("error", f": the task is not plain JSON data: {error}"))
            return
        now = time.monotonic()
        loading = lane.name == FUNCTIONS
        handle.begin(job, State.loading if loading else State.running, now, LOAD_SECONDS if loading else seconds)
        self._flush(lane, handle)

    def _seconds(self, job: Job) -> float:
        return self._timeout if job.task.timeout_seconds is None else job.task.timeout_seconds

    def _flush(self, lane: _Lane, handle: WorkerHandle) -> None:
        """Send as much of the request as the connection takes without waiting."""
        more = handle.flush()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if more else 0)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.modify(handle.connection, events, lambda mask: self._on_ready(lane, handle, mask))

    # The methods below handle events.

    def _drain_wake(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            self._wake_read.recv(4096)

    def _on_ready(self, lane: _Lane, handle: WorkerHandle, mask: int) -> None:
        if lane.handles.get(handle.number) is not handle or handle.state in (State.dying, State.closed):
            return  # an earlier event of this round ended the process
        if mask & selectors.EVENT_WRITE:
            self._flush(lane, handle)
        if mask & selectors.EVENT_READ:
            self._read(lane, handle)

    def _read(self, lane: _Lane, handle: WorkerHandle) -> None:
        try:
            is_open = handle.receive()
            for reply in handle.replies():
                self._on_reply(lane, handle, reply)
                if handle.state is State.dying:
                    return
        except ValueError as error:
            self._kill(lane, handle, unscorable("died", f": {error}", seconds=handle.elapsed()))
            return
        if not is_open:  # the notice of its end says more; it comes at once, unless only the connection was closed
            self._selector.unregister(handle.connection)
            handle.state, handle.limit = State.closed, time.monotonic() + _END_SECONDS

    def _on_reply(self, lane: _Lane, handle: WorkerHandle, reply: Reply) -> None:
        if handle.state is State.starting and isinstance(reply, Ready):
            handle.state, handle.limit = State.idle, None
            lane.failed_starts = 0
            return
        job = handle.job
        if job is None or not isinstance(reply, Started | Scored | Failed) or not handle.expects(reply):
            if job is not None and not job.tried:  # an earlier task may have sent this: the present one is tried again
                job.tried, handle.job = True, None
                lane.put_back(job)
            self._kill(lane, handle, unscorable("died", ": answered out of turn", seconds=handle.elapsed()))
            return
        if isinstance(reply, Started):
            handle.begin(job, State.running, time.monotonic(), self._seconds(job))
            return
        if handle.has_more():
            raise ValueError("answered more than once")
        job.finish(handle.outcome(reply))
        handle.rest()
        if reply.retire:
            self._kill(lane, handle, None)

    def _on_limit(self, lane: _Lane, handle: WorkerHandle) -> None:
        match handle.state:
            case State.starting:
                self._lose_zygote(lane, f"no worker within {_START_SECONDS:g} s")
            case State.loading:
                reason = f": importing the file took more than {LOAD_SECONDS:g} s"
                self._kill(lane, handle, unscorable("load", reason))
            case State.running:
                self._kill(lane, handle, unscorable("timeout", f" after {handle.seconds:g} s"))
            case State.closed:
                self._kill(lane, handle, unscorable("died", ": closed its connection"))
            case State.dying:
                self._lose_zygote(lane, f"no worker killed within {_KILL_SECONDS:g} s")

    def _kill(self, lane: _Lane, handle: WorkerHandle, outcome: Outcome[Never] | None) -> None:
        """Have a process killed. Its task gets `outcome` once the process is gone."""
        if handle.state is not State.closed:
            self._selector.unregister(handle.connection)
        handle.connection.close()
        handle.state, handle.limit, handle.exit_report = State.dying, time.monotonic() + _KILL_SECONDS, outcome
        try:
            if lane.zygote is not None:
                lane.zygote.kill(handle.number)
        except OSError as error:
            self._lose_zygote(lane, str(error))

    def _on_notices(self, lane: _Lane, zygote: ZygoteClient) -> None:
        if lane.zygote is not zygote:
            return
        notices = zygote.read_notices()
        if notices is None:
            self._lose_zygote(lane, "the process that forks them ended")
            return
        for number, code in notices:
            handle = lane.handles.get(number)
            if handle is None:
                continue
            if handle.state in (State.loading, State.running):
                self._read(lane, handle)  # it may have answered before it ended
            lane.handles.pop(number, None)
            if handle.state not in (State.dying, State.closed):
                self._selector.unregister(handle.connection)
            handle.connection.close()
            if handle.job is not None:
                handle.job.finish(handle.report_of_exit(code))

    def _lose_zygote(self, lane: _Lane, why: str) -> None:
        """Give up a zygote, whose scorer processes die with it. Their tasks are tried once more."""
        for handle in lane.handles.values():
            if handle.state not in (State.dying, State.closed):
                self._selector.unregister(handle.connection)
            handle.connection.close()
            if handle.job is None:
                continue
            if handle.job.tried or handle.exit_report is not None:
                handle.job.finish(handle.exit_report or unscorable("died", f": {why}", seconds=handle.elapsed()))
            else:
                handle.job.tried = True
                lane.put_back(handle.job)
        lane.handles.clear()
        if lane.zygote is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(lane.zygote.control)
            why = f"{why} (exit code {lane.zygote.stop()})"
            lane.zygote = None
        lane.failed_starts += 1
        if lane.failed_starts >= _MAX_FAILED_STARTS:
            lane.failed_starts = 0
            while (job := lane.next_job()) is not None:
                job.finish(unscorable("died", f": scoring processes cannot be started: {why}; stderr may say more"))

    def _abandon(self, outcome: Outcome[Never]) -> None:
        """End all processes; tasks that are still open get `outcome`."""
        with self._lock:
            attempts = list(self._arrived)
            self._arrived.clear()
        for lane in self._lanes:
            for handle in lane.handles.values():
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(handle.connection)
                handle.connection.close()
                if handle.job is not None:
                    handle.job.finish(outcome)
            lane.handles.clear()
            if lane.zygote is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(lane.zygote.control)
                lane.zygote.stop()
                lane.zygote = None
            lane.attempts.extend(attempt for attempt in attempts if attempt.waiting[lane.name])
            while (job := lane.next_job()) is not None:
                job.finish(outcome)

    def _seconds_to_next_limit(self) -> float | None:
        limits = [handle.limit for lane in self._lanes for handle in lane.handles.values() if handle.limit is not None]
        return min(_LONGEST_WAIT, max(0.0, min(limits) - time.monotonic())) if limits else None
