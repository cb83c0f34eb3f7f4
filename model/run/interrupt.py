"""SIGTERM as a question that the run answers when its state is whole."""

import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

CONTINUES = "the same command, without run.start=fresh, continues from there"
"""A fresh start would delete what was saved."""


class CleanStop(RuntimeError):
    """The run ends before its last step, with its state saved; the same command continues it."""

    exit_code = 5


class Interrupted(CleanStop):
    """SIGTERM came."""


class StopSignal:
    """While open, SIGTERM only sets a flag; `check` raises `Interrupted` once it is set.

    Outside the main thread, where no handler can be installed, SIGTERM keeps what it does.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Callable[..., Any] | int | None = None

    def check(self) -> None:
        if self._asked:
            raise Interrupted(f"SIGTERM came; the state is saved, and {CONTINUES}")

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, *_: Any) -> None:
        self._asked = True
