"""One scorer process as its parent sees it: its connection, its present task, and until when it may take."""

import signal
import socket
import time
from collections.abc import Iterator
from enum import Enum, auto
from typing import Never

from rewards.result import Outcome, Status
from rewards.sandbox.attempts import Job
from rewards.sandbox.tasks import (
    MAX_REPLY_BYTES,
    Failed,
    Reply,
    Scored,
    Started,
    Task,
    decode_reply,
    encode_request,
)

_CHUNK = 1 << 16


class State(Enum):
    starting = auto()  # it is forked or about to be, and has not said that it is ready
    idle = auto()
    loading = auto()  # it imports a user's file
    running = auto()
    closed = auto()  # it closed its side of the connection; the notice of its end is awaited
    dying = auto()  # the order to kill it is given; the notice of its end is awaited

    @classmethod
    def working(cls) -> tuple["State", ...]:
        return cls.loading, cls.running, cls.closed


class WorkerHandle:
    def __init__(self, number: int, connection: socket.socket, limit: float) -> None:
        self.number, self.connection = number, connection
        self.state = State.starting
        self.limit: float | None = limit  # time on the monotonic clock; None while nothing is awaited
        self.job: Job | None = None
        self.seconds = 0.0  # time that the present task may take
        self.exit_report: Outcome[Never] | None = None  # outcome of the task of a process that is being killed
        self._since = 0.0
        self._id = 0
        self._inbox = bytearray()
        self._outbox = memoryview(b"")
        self._was_loading = False

    def put(self, number: int, seconds: float, task: Task[object]) -> None:
        """Queue a request. TypeError, ValueError or RecursionError when the task is not plain JSON data."""
        self._outbox = memoryview(encode_request(number, seconds, task))
        self._id = number

    def begin(self, job: Job, state: State, now: float, seconds: float) -> None:
        self.job, self.state, self.seconds = job, state, seconds
        self._was_loading = state is State.loading
        self._since, self.limit = now, now + seconds

    def rest(self) -> None:
        self.job, self.state, self.limit = None, State.idle, None

    def elapsed(self) -> float:
        return time.monotonic() - self._since if self.job is not None else 0.0

    def flush(self) -> bool:
        """Send without waiting; True when something is left. That the process is dead shows when reading."""
        try:
            while self._outbox:
                self._outbox = self._outbox[self.connection.send(self._outbox) :]
        except BlockingIOError:
            return True
        except OSError:
            self._outbox = memoryview(b"")
        return False

    def receive(self) -> bool:
        """Take in the bytes that are there, at most those of one reply; False at the end of the connection."""
        try:
            while len(self._inbox) <= MAX_REPLY_BYTES:
                chunk = self.connection.recv(_CHUNK)
                if not chunk:
                    return False
                self._inbox += chunk
                if len(chunk) < _CHUNK:
                    break
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def replies(self) -> Iterator[Reply]:
        """Return the replies received so far. ValueError for a line that is no reply or too long."""
        while (end := self._inbox.find(b"\n")) >= 0:
            line = bytes(self._inbox[:end])
            del self._inbox[: end + 1]
            yield decode_reply(line)
        if len(self._inbox) > MAX_REPLY_BYTES:
            raise ValueError(f"a reply has at most {MAX_REPLY_BYTES} bytes, found more than that")

    def has_more(self) -> bool:
        return bool(self._inbox)

    def expects(self, reply: Reply) -> bool:
        """Tell whether it is this process's turn to say that, about the task that it has."""
        if not isinstance(reply, Started | Scored | Failed) or self.job is None or reply.id != self._id:
            return False
        return self.state is State.loading or (self.state is State.running and not isinstance(reply, Started))

    def outcome(self, reply: Scored | Failed) -> Outcome[object]:
        """Return the outcome of the present task. `ValueError` for a value that the task cannot have."""
        seconds = self.elapsed()
        if isinstance(reply, Failed):
            return Outcome(None, Status.unscorable, f"{reply.kind}: {reply.reason}", reply.traceback, seconds)
        assert self.job is not None
        return Outcome(self.job.task.read_value(reply.value), seconds=seconds)

    def report_of_exit(self, code: int) -> Outcome[Never]:
        """Return the outcome of the task that this process ended on; `code` is its exit code or minus the signal."""
        outcome = self.exit_report
        if outcome is None:
            cause = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            text = f"load: the process died {cause}" if self._was_loading else f"died {cause}"
            outcome = Outcome(None, Status.unscorable, text)
        return Outcome(None, outcome.status, outcome.reason, outcome.traceback, self.elapsed())
