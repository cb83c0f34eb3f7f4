"""SIGTERM and Ctrl-C: a process ends with its state whole.

While a loop runs, SIGTERM and the first Ctrl-C are questions that the loop answers between two steps; it saves and
ends with exit code 5. Outside of a loop, and where the answer to SIGTERM takes too long, what is under way is given up:
everything that was written stays whole, so nothing is lost but the work since the newest checkpoint. Ctrl-C waits for
the answer, because it can be pressed again, which ends the run at once.
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
    """SIGTERM or Ctrl-C came, and the state is saved."""


class Terminated(SystemExit):
    """SIGTERM came (or what `cause` names), and what was under way is given up.

    A `SystemExit`, because it is raised wherever the program happens to be, and no handler of errors may swallow it.
    """

    code: int = EXIT_CODE

    def __init__(self, cause: str = "SIGTERM") -> None:
        super().__init__(EXIT_CODE)
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"{self.cause} came; what was under way is given up, and everything that was written is whole: the same "
            "command, without run.start=fresh, goes on from the newest checkpoint"
        )


class StopSignal:
    """While open, SIGTERM and Ctrl-C only set a flag; `check` raises `Interrupted` once it is set.

    After `seconds`, or at the second SIGTERM, `Terminated` is raised wherever the program is; at the second Ctrl-C,
    `KeyboardInterrupt`. Outside the main thread, where no handler can be installed, both keep what they do. So does
    Ctrl-C in a process that was started to ignore it.
    """

    def __init__(self, seconds: float = STOP_SECONDS) -> None:
        self._asked = ""
        self._waits = True
        self._seconds = seconds
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    def check(self) -> None:
        if self._asked:
            raise Interrupted(f"{self._asked} came; the state is saved, and {CONTINUES}")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While open, nothing that is under way can be saved: SIGTERM raises `Terminated` at once. Ctrl-C waits for the
        end of the block.
        """
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def __enter__(self) -> "StopSignal":
        _open_signals.append(self)
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open_signals.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous and not _watchdog.outlives_loops:
            _watchdog.rest()

    def ask(self, cause: str) -> None:
        """Do what the first SIGTERM does. Nothing happens where one came before."""
        if not self._asked and not self._waits:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._asked:
            self._asked = cause
            _watchdog.insist(self._seconds)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self._asked == "SIGTERM" or not self._waits:
            _watchdog.insist(0.0)
            raise Terminated
        self._asked = "SIGTERM"
        _watchdog.insist(self._seconds)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = "Ctrl-C"
        os.write(2, b"\nCtrl-C: the run ends as soon as its state is saved; press it again to end at once\n")


def ask_to_stop(cause: str) -> None:
    """Ask the loop that runs now to save and stop, from any thread, as SIGTERM does; outside of a loop SIGTERM is sent.

    Nothing happens where the loop was asked before.
    """
    if _open_signals:
        _open_signals[-1].ask(cause)
    elif not _watchdog.insists:
        os.kill(os.getpid(), signal.SIGTERM)


_open_signals: list[StopSignal] = []


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
        self.insists = False  # SIGTERM came, and the process is about to end
        self._rests = threading.Event()

    def insist(self, seconds: float) -> None:
        """Send SIGTERM again after so many seconds, unless they are 0, and end the process if that does not help."""
        self.insists = True
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
