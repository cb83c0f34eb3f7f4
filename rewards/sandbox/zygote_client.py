"""The caller's handle of a zygote process: it orders forks and kills, and hears which scorer processes ended."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from rewards.sandbox.tasks import VERIFIERS
from rewards.sandbox.zygote import FORK, KILL, NOTICE, ORDER

_MODULE = "rewards.sandbox.zygote"


class ZygoteClient:
    """Starts its process at once and does not wait for it. An OSError from a method means that it is gone."""

    def __init__(self, lane: str, memory_mb: int) -> None:
        self._received = b""
        self._last = 0
        self.control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the working directory, which may hold a user's own rewards.py, off the module path.
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), lane, str(memory_mb << 20)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C at the terminal is for the caller alone
                env=_environment(lane),
            )

    def fork(self) -> tuple[int, socket.socket]:
        """Order a new scorer process; its number, and our end of its connection."""
        ours, theirs = socket.socketpair()
        self._last += 1
        with theirs:
            socket.send_fds(self.control, [ORDER.pack(FORK, self._last)], [theirs.fileno()])
        ours.setblocking(False)
        return self._last, ours

    def kill(self, number: int) -> None:
        self.control.sendall(ORDER.pack(KILL, number))

    def read_notices(self) -> list[tuple[int, int]] | None:
        """Return (number, exit code or minus the signal) of processes that ended; None when the zygote itself did."""
        try:
            data = self.control.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        self._received += data
        whole = len(self._received) // NOTICE.size * NOTICE.size
        notices = list(NOTICE.iter_unpack(self._received[:whole]))
        self._received = self._received[whole:]
        return notices

    def stop(self, patience: float = 1.0) -> int:
        """End the zygote, and with it all its scorer processes; its exit code."""
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(patience)
        self._process.kill()
        return self._process.wait()


def _environment(lane: str) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    changes = {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
    }
    if lane == VERIFIERS:  # a user's reward model may want the GPU
        changes["CUDA_VISIBLE_DEVICES"] = ""
    # Under another allocator than Python's own, rewards.sandbox.limits could not see swallowed memory errors.
    return {key: value for key, value in os.environ.items() if key != "PYTHONMALLOC"} | changes
