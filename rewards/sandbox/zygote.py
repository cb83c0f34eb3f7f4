"""The process that forks scorer processes: `python -P -m rewards.sandbox.zygote SOCKET LANE MEMORY_BYTES`.

Importing sympy and warming math-verify's parser takes seconds, forking a process that has done so takes milliseconds.
It has one thread, so that a fork is safe, and never runs a task itself. Its children are called workers here.

Orders of the form `ORDER` arrive on the socket: FORK carries the worker's end of its connection along (SCM_RIGHTS),
KILL ends a worker with all that it started. The end of every worker is reported with one `NOTICE`. The caller numbers
the workers: process ids are used in this file alone, and only until the process is reaped, so that no id can be
mistaken for that of a later process. When the caller goes away (end of file, or another parent process) everything is
killed.
"""

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys

from rewards.sandbox import worker
from rewards.sandbox.tasks import VERIFIERS
from rewards.sandbox.warm_up import warm_verifiers

ORDER = struct.Struct("!cQ")  # FORK or KILL, number of the worker
NOTICE = struct.Struct("!Qi")  # number of the worker, its exit code or minus the signal
FORK, KILL = b"F", b"K"

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_AROUND_MS = 1000  # how often to check that the parent lives; a copy of it may hold the socket open


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Zygote:
    def __init__(self, control: socket.socket, lane: str, memory_bytes: int) -> None:
        self._control = control
        self._lane, self._memory_bytes = lane, memory_bytes
        self._parent, self._own_pid = os.getppid(), os.getpid()
        self._numbers: dict[int, int] = {}  # number of each process id, until the process is reaped
        self._received = b""
        self._descriptors: list[int] = []
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # processes that workers leave behind become ours, so that we can end them

    def run(self) -> None:
        """Serve until the caller is gone."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        try:
            while os.getppid() == self._parent:
                self._reap()
                ready = dict(poller.poll(_LOOK_AROUND_MS))
                if self._wake_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                if self._control.fileno() in ready and not self._take_orders():
                    return
        except ConnectionResetError:
            return
        finally:
            for pid in list(self._numbers):
                self._kill(pid)
            self._kill_strays()

    def _take_orders(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 64)
        if not data:
            return False
        self._descriptors += descriptors
        self._received += data
        while len(self._received) >= ORDER.size:
            what, number = ORDER.unpack_from(self._received)
            self._received = self._received[ORDER.size :]
            if what == FORK:
                self._fork(number, self._descriptors.pop(0))
            else:
                for pid in [pid for pid, known in self._numbers.items() if known == number]:
                    self._kill(pid)
        return True

    def _fork(self, number: int, descriptor: int) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                self._become_worker(descriptor)
            finally:
                os._exit(1)
        self._numbers[pid] = number
        os.close(descriptor)

    def _become_worker(self, descriptor: int) -> None:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._own_pid:  # it died before the line above
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for other in (self._wake_read, self._wake_write, *self._descriptors):
            os.close(other)
        os.set_inheritable(descriptor, False)
        with socket.socket(fileno=descriptor) as connection:
            worker.serve(connection, self._lane, self._memory_bytes)
        os._exit(0)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self._forget(pid)

    def _reap(self) -> None:
        for pid in list(self._numbers):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._forget(pid)
        for pid in self._children() - set(self._numbers):  # processes that a living worker left behind
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _forget(self, pid: int) -> None:
        """Report the end of `pid`, which has ended and still holds its id: end its group, then give the id back."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        number = self._numbers.pop(pid)
        self._kill_strays()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # that the caller is gone shows when reading
            self._control.sendall(NOTICE.pack(number, os.waitstatus_to_exitcode(status)))

    def _kill_strays(self) -> None:
        """End processes that workers left behind, also those that moved to a session of their own."""
        for _ in range(100):
            strays = self._children() - set(self._numbers)
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            if not strays:
                return

    def _children(self) -> set[int]:
        try:
            with open(f"/proc/self/task/{self._own_pid}/children", encoding="ascii") as file:
                return {int(pid) for pid in file.read().split()}
        except OSError:  # not Linux
            return set()


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    lane, memory_bytes = sys.argv[2], int(sys.argv[3])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)  # woken where it was stopped, it sees that the caller is gone
    os.dup2(2, 1)  # prints of user code go to stderr
    if lane == VERIFIERS:
        warm_verifiers()
    gc.collect()
    gc.freeze()  # collections in a worker leave these pages shared
    Zygote(control, lane, memory_bytes).run()
    with contextlib.suppress(ValueError, OSError):
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
