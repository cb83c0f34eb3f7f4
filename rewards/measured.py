"""Numbers that a judge measures while it works, on their way into a step's metrics as means.

They belong to the call of a reward function that is running: coroutines and threads that it starts inherit where they
go. Outside such a call nothing is kept.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Measured = dict[str, list[float]]
_here: ContextVar[Measured | None] = ContextVar("measured", default=None)
_lock = threading.Lock()


def measure(name: str, value: float) -> None:
    """Keep a value under a name."""
    kept = _here.get()
    if kept is not None:
        with _lock:
            kept.setdefault(name, []).append(value)


@contextmanager
def measuring() -> Iterator[Measured]:
    """Give what is measured inside."""
    kept: Measured = {}
    token = _here.set(kept)
    try:
        yield kept
    finally:
        _here.reset(token)
