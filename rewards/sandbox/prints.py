"""Prints of a user's reward function: each line has the function's name in front, and a process shows few of them."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache

MOST_LINES = 20
MOST_CHARACTERS = 500


class NamedLines(io.TextIOBase):
    """A stream that writes whole lines, each behind a name, and stops after `MOST_LINES` of them."""

    def __init__(self, name: str, out: io.TextIOBase) -> None:
        super().__init__()
        self._name, self._out = name, out
        self._rest, self._num_lines = "", 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._num_lines <= MOST_LINES:
            *lines, self._rest = (self._rest + text[: 100 * MOST_CHARACTERS]).split("\n")
            self._rest = self._rest[: MOST_CHARACTERS + 1]
            for line in lines:
                self._show(line)
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def fileno(self) -> int:
        """The file below, for libraries that ask for one, such as faulthandler; what they write there has no name."""
        return self._out.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._out.encoding or "utf-8"

    def end_line(self) -> None:
        """Show what has no end of line yet."""
        if self._rest:
            self._show(self._rest)
            self._rest = ""

    def _show(self, line: str) -> None:
        self._num_lines += 1
        if self._num_lines <= MOST_LINES:
            clean = "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line[:MOST_CHARACTERS])
            self._out.write(f"[{self._name}] {clean}{'...' if len(line) > MOST_CHARACTERS else ''}\n")
        elif self._num_lines == MOST_LINES + 1:
            self._out.write(f"[{self._name}] prints more than {MOST_LINES} lines; this process shows no more of them\n")


@contextmanager
def named_prints(spec: str) -> Iterator[None]:
    """Prefix what is printed in the block with the name of the function that FILE.py:NAME, or the like, names."""
    lines = _lines_of(spec)
    with redirect_stdout(lines), redirect_stderr(lines):
        try:
            yield
        finally:
            lines.end_line()


@cache
def _lines_of(spec: str) -> NamedLines:
    """One stream a function for the whole life of a process, so that its lines are counted together."""
    return NamedLines(spec.rpartition(":")[2], sys.stderr)  # pyright: ignore[reportArgumentType]
