"""SIGTERM: a process ends within seconds, with exit code 5, and with its state whole.

While a loop runs, SIGTERM is a question that the loop answers between two steps. Outside of a loop, and where the
answer takes too long, what is under way is given up: everything that was written stays whole, so nothing is lost but
the work since the newest checkpoint.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

CONTINUES = "the same command, without run.start=fresh, continues from there"
"""A fresh start would delete what was saved."""
EXIT_CODE = 5
STOP_SECONDS = 7.0
"""Seconds after SIGTERM in which a step may still be ended and saved."""
_CLOSING_SECONDS = 2.0  # for what closes on the way out; then the process ends as it is


class CleanStop(RuntimeError):
    """The run ends before its last step, with its state saved; the same command continues it."""

    exit_code = EXIT_CODE


class Interrupted(CleanStop):
    """SIGTERM came, and the state is saved."""


class Terminated(SystemExit):
    """SIGTERM came, and what was under way is given up.

    A `SystemExit`, because it is raised wherever the program happens to be, and no handler of errors may swallow it.
    """

    code: int = EXIT_CODE

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)

    def __str__(self) -> str:
        return (
            "SIGTERM came; what was under way is given up, and everything that was written is whole: the same command, "
            "without run.start=fresh, goes on from the newest checkpoint"
        )


class StopSignal:
    """While open, SIGTERM only sets a flag; `check` raises `Interrupted` once it is set.

    After `seconds`, or at the second SIGTERM, `Terminated` is raised wherever the program is. Outside the main thread,
    where no handler can be installed, SIGTERM keeps what it does.
    """

    def __init__(self, seconds: float = STOP_SECONDS) -> None:
        self._asked = False
        self._waits = True
        self._seconds = seconds
        self._previous: Callable[..., Any] | int | None = None

    def check(self) -> None:
        if self._asked:
            raise Interrupted(f"SIGTERM came; the state is saved, and {CONTINUES}")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While open, nothing that is under way can be saved: SIGTERM raises `Terminated` at once."""
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            if not _watchdog.outlives_loops:
                _watchdog.rest()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._waits:
            _watchdog.insist(0.0)
            raise Terminated
        self._asked = True
        _watchdog.insist(self._seconds)


@contextmanager
def answer_sigterm() -> Iterator[None]:
    """While open, SIGTERM raises `Terminated` at once. A `StopSignal` inside takes its place for a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        _watchdog.insist(0.0)
        raise Terminated

    previous = signal.signal(signal.SIGTERM, give_up)
    _watchdog.outlives_loops = True
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        _watchdog.outlives_loops = False
        _watchdog.rest()


class _Watchdog:
    """Ends a process that does not answer SIGTERM: one call into a library, or a part that does not close, can keep the
    main thread from its signal handler."""

    def __init__(self) -> None:
        self.outlives_loops = False  # a command is under way, which has to end as well
        self._rests = threading.Event()

    def insist(self, seconds: float) -> None:
        """Send SIGTERM again after so many seconds, unless they are 0, and end the process if that does not help."""
        if self._rests.is_set():
            self._rests = threading.Event()
        rests = self._rests

        def watch() -> None:
            if seconds and not rests.wait(seconds):
                os.kill(os.getpid(), signal.SIGTERM)
            if not rests.wait(_CLOSING_SECONDS):
                print(f"error: {Terminated()}", file=sys.stderr, flush=True)
                os._exit(EXIT_CODE)

        threading.Thread(target=watch, name="sigterm", daemon=True).start()

    def rest(self) -> None:
        self._rests.set()


_watchdog = _Watchdog()
