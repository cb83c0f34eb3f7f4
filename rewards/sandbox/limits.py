"""Limits that a scorer process puts on itself, and whether it ran out of memory.

Where memory runs out Python raises `MemoryError`, which is an `Exception`: sympy and other libraries swallow it and go
on to call the answer wrong. `_MemoryProbe` notices such an exception after the fact. The size of the process would not
show it: a request that is refused leaves no trace there (DESIGN.md, 2026-11-30).
"""

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Iterator

_PAGE = resource.getpagesize()
_LONGEST = 1e9  # seconds; in effect no limit, and the system call still takes it
_MARGIN_SECONDS = 2  # the parent kills at the deadline; this later limit is there for a parent that cannot


class _MemoryProbe:
    """Tells whether a `MemoryError` was raised since `arm`, even if something swallowed it.

    CPython keeps up to 16 dead MemoryErrors for the next time that memory is short. `arm` empties that store. A
    MemoryError that is raised and dropped later lies in the store, so that making a new one takes no new block of
    memory. From 3.12 on an interpreter with an empty store raises one immortal instance instead, whose traceback
    stays. The probe looks at both.
    """

    def __init__(self) -> None:
        self._kept: list[MemoryError] = [MemoryError() for _ in range(32)]  # more than the store holds
        self._immortal = self._provoke()
        self.arm()

    @staticmethod
    def _provoke() -> MemoryError:
        try:
            bytes(sys.maxsize - 100)
        except MemoryError as error:
            return error
        raise AssertionError("more bytes than there are addresses were had")

    def _took_from_store(self) -> bool:
        before = sys.getallocatedblocks()
        error = MemoryError()
        after = sys.getallocatedblocks()
        self._kept.append(error)  # dropped, it would go into the store itself
        return after - before < 2  # the int `before` and, if the store was empty, the error

    def arm(self) -> None:
        while self._took_from_store():
            pass
        self._immortal.__traceback__ = self._immortal.__context__ = None

    def saw_one(self) -> bool:
        return self._immortal.__traceback__ is not None or self._took_from_store()


class Limits:
    """The limits of this process. Its memory limit counts from the size that it has when a task begins its work."""

    def __init__(self, memory_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._memory_bytes = self._allowed = memory_bytes
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:  # not Linux: no limit on memory
            self._statm = -1
        self._kept = 0
        self._hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        self._memory_probe = _MemoryProbe()

    def allow_seconds(self, seconds: float) -> None:
        """Allow so much more CPU time; then SIGXCPU ends this process."""
        limit = math.ceil(time.process_time() + min(seconds, _LONGEST)) + _MARGIN_SECONDS
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard < 0 else min(limit, hard), hard))

    @contextlib.contextmanager
    def memory(self, megabytes: float | None = None) -> Iterator[None]:
        """Limit the memory of a block: the process may grow by the memory limit, or by `megabytes` (0: without limit).

        Outside of the block there is no limit, so that the process can say what happened.
        """
        self._memory_probe.arm()
        self._allowed = self._memory_bytes if megabytes is None else int(megabytes * (1 << 20))
        size = self._size() if self._allowed else 0
        if size:
            limit = size + self._allowed
            resource.setrlimit(resource.RLIMIT_AS, (limit if self._hard < 0 else min(limit, self._hard), self._hard))
        try:
            yield
        finally:
            if size:
                resource.setrlimit(resource.RLIMIT_AS, (self._hard, self._hard))
                self._kept += self._size() - size

    def ran_out_of_memory(self) -> bool:
        """Tell whether a MemoryError was raised since `memory` was entered."""
        return self._memory_probe.saw_one()

    def memory_reason(self) -> str:
        """Say which limit the task ran into."""
        return f"ran into the limit of {self._allowed >> 20} MB" if self._allowed else "ran out of memory"

    def swollen(self) -> bool:
        """Tell whether the process still holds more than half of the limit from tasks that have ended."""
        return self._kept > (self._allowed or self._memory_bytes) // 2

    def _size(self) -> int:
        return int(os.pread(self._statm, 64, 0).split(b" ", 1)[0]) * _PAGE if self._statm >= 0 else 0
