"""Linux: what the kernel does to a process when the thread that started it ends."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # opened here: a forked child may only call it


def die_with_parent() -> None:
    """Call in a child: it is killed when its parent ends, also while it is stopped."""
    _signal_at_death(signal.SIGKILL)


def wake_with_parent() -> None:
    """Call in a child that ends by itself once its parent is gone: it is woken for that where it was stopped."""
    _signal_at_death(signal.SIGCONT)


def _signal_at_death(number: int) -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
