"""Named instants at which a test can kill the process, to prove that a restart loses nothing.

`SAILVL2_FAILPOINT=NAME:COUNT` kills with SIGKILL when NAME is reached for the COUNT-th time;
`SAILVL2_FAILPOINT=bytes:COUNT` when COUNT checkpoint bytes have been written. Unset, both do nothing.
"""

import os
import signal

_reached: dict[str, int] = {}


def reach(name: str, amount: int = 1) -> None:
    """Count one visit of `name` (or `amount` bytes), and die here if the environment says so."""
    wanted, _, count = os.environ.get("SAILVL2_FAILPOINT", "").partition(":")
    if name != wanted:
        return
    _reached[name] = _reached.get(name, 0) + amount
    if _reached[name] >= int(count):
        os.kill(os.getpid(), signal.SIGKILL)


def bytes_until_kill() -> int | None:
    """How many more checkpoint bytes may be written before the kill, or None when no byte kill is set."""
    wanted, _, count = os.environ.get("SAILVL2_FAILPOINT", "").partition(":")
    return max(0, int(count) - _reached.get("bytes", 0)) if wanted == "bytes" else None
