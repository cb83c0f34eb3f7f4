"""The JSONL logs of a run: appended to, cut at a restart, and missed where somebody else shortened or removed them."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from model.json_values import parse_json
from model.run.durable import write_file
from model.run.interrupt import CONTINUES, CleanStop
from model.run.state import State


class LogsChanged(CleanStop):
    """Somebody else wrote to, or shortened, a log of this run while it ran."""


class Log:
    """One file that only this run writes. Every line holds a step."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[bytes] = path.open("ab+")
        self._size = os.fstat(self._file.fileno()).st_size
        self._loss = ""

    def append(self, lines: Iterable[str]) -> None:
        """Write lines, after a look whether all that was written before is still there.

        A file that was removed or replaced is written again whole, from what is still open here. One that was cut or
        written to is only noted, because the run is in the midst of a step: `refuse_loss` tells.
        """
        self._look()
        content = "".join(lines).encode()
        self._file.write(content)
        self._file.flush()
        self._size += len(content)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def refuse_loss(self) -> None:
        """`LogsChanged` where `append` found that somebody else had changed the file."""
        if self._loss:
            loss, self._loss = self._loss, ""
            raise LogsChanged(f"{loss}. The state is saved, and {CONTINUES}")

    def _look(self) -> None:
        found = os.fstat(self._file.fileno())
        if found.st_size != self._size and not _is_device(self.path):
            self._loss = (
                f"{self.path}: expected {self._size} bytes, as this run left it, found {found.st_size}; something else "
                "cut it or wrote to it"
            )
            print(self._loss, file=sys.stderr)
            self._size = found.st_size
        try:
            there = os.stat(self.path)
            if (there.st_ino, there.st_dev) == (found.st_ino, found.st_dev):
                return
        except FileNotFoundError:
            pass
        print(f"{self.path} was removed or replaced while the run writes it; it is written again", file=sys.stderr)
        self._file.seek(0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, self._file.read())
        self._file.close()
        self._file = self.path.open("ab+")


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def cut_lines(path: Path, last_step: int) -> None:
    """Drop lines of later steps, a torn last line, and lines that hold no step, from a log."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= last_step]
    write_file(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    """The step of a whole line; infinite where it has none."""
    try:
        step = parse_json(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, IndexError):
        step = None
    return step if isinstance(step, int) and not isinstance(step, bool) else float("inf")


def last_line(path: Path) -> State | None:
    """The last whole line of a log that holds a step, as far as its last MiB tells; None without any."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        lines = [line for line in file.read().splitlines(keepends=True)[-3:] if _step_of(line) < float("inf")]
    return json.loads(lines[-1]) if lines else None


def num_lines(path: Path) -> int:
    """Ends of lines in a log; 0 where it is missing."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def read_lines(path: Path) -> list[State]:
    """The whole lines of a log, in order; none where it is missing. Lines that hold no step are passed over."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) < float("inf")]
