"""Named instants at which a test can end the process, to prove that a restart loses nothing.

`SAILVL2_FAILPOINT=NAME:COUNT` acts when NAME is reached for the COUNT-th time; `SAILVL2_FAILPOINT=bytes:COUNT` when
COUNT checkpoint bytes have been written. The act is SIGKILL, or what stands behind another colon: `term` is SIGTERM,
`full` a disk without space. Unset, nothing happens. `SAILVL2_FAILPOINT_RANK=R` leaves all ranks of an engine alone but
rank R.
"""

import errno
import os
import signal

_reached: dict[str, int] = {}
_is_meant = True


def only_on_rank(rank: int) -> None:
    """Say which rank this process is."""
    global _is_meant
    _is_meant = os.environ.get("SAILVL2_FAILPOINT_RANK", str(rank)) == str(rank)


def reach(name: str, amount: int = 1) -> None:
    """Count one visit of `name` (or `amount` bytes), and act here if the environment says so."""
    wanted, count, act = _failpoint()
    if name != wanted:
        return
    before = _reached.get(name, 0)
    _reached[name] = before + amount
    if before < count <= _reached[name]:
        if act == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), signal.SIGTERM if act == "term" else signal.SIGKILL)


def bytes_until_end() -> int | None:
    """How many more checkpoint bytes may be written before the act, or None when no bytes are counted."""
    wanted, count, _ = _failpoint()
    left = count - _reached.get("bytes", 0)
    return left if wanted == "bytes" and left > 0 else None


def _failpoint() -> tuple[str, int, str]:
    name, _, rest = (os.environ.get("SAILVL2_FAILPOINT", "") if _is_meant else "").partition(":")
    count, _, act = rest.partition(":")
    return name, int(count or 0), act
