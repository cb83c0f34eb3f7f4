"""List runs with their state: `python -m rlhf.runs FOLDER`.

Shows every run and pipeline in a folder, and the stages of each pipeline: whether it is complete, running, stopped or
failed, the exit code of its last process, its newest figures, and how much of the disk it takes.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model.run.ends import run_command
from model.run.failpoints import reach
from model.run.folder import MARK
from model.run.logs import last_line
from model.run.ownership import METRICS
from model.run.printable import printable
from rlhf.reporting.figures import is_number
from rlhf.reporting.state import state_of

_DEPTH = 4
"""Folders below the given one that are looked through."""
_FIGURES = ("accuracy", "reward", "eval/best", "length/mean", "nll_per_token", "loss")
_MOST_FIGURES = 3


@dataclass(frozen=True)
class Listed:
    """A run, or a pipeline, as the list has it."""

    name: str  # path relative to the folder that was given
    state: str
    exit_code: int | None  # the last process that ended said it
    step: int | None
    figures: dict[str, float]
    last_seen: float | None  # Unix time at which its metrics or events were last written
    num_bytes: int


def listed(folder: Path) -> list[Listed]:
    """The runs in a folder, itself included, by name. `ValueError` where there is no folder."""
    if not folder.is_dir():
        raise ValueError(
            f"expected a folder that holds runs at {folder}, found {'a file' if folder.exists() else 'none'}"
        )
    reach("list")
    return [_listed(run, folder) for run in _runs(folder, _DEPTH)]


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that are marked as runs. Of a run only the folders directly in it can be others: stages."""
    is_run = (folder / MARK).is_file()
    if is_run:
        yield folder
    if depth:
        for inner in _folders(folder):
            yield from _runs(inner, 0 if is_run else depth - 1)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:  # one that may not be read holds nothing to list
        return []


def _listed(run: Path, folder: Path) -> Listed:
    state, last = state_of(run), last_line(run / METRICS) or {}
    figures = {name: float(last[name]) for name in _FIGURES if is_number(last.get(name))}
    seen = [path.stat().st_mtime for path in (run / METRICS, run / "events.jsonl") if path.is_file()]
    return Listed(
        str(run.relative_to(folder)) if run != folder else run.resolve().name,
        state.name,
        state.exit_code,
        last.get("step"),
        dict(list(figures.items())[:_MOST_FIGURES]),
        max(seen, default=None),
        _num_bytes(run),
    )


def _num_bytes(folder: Path) -> int:
    """Bytes of the files in a folder. Links, and files that vanish meanwhile, count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def table(runs: Sequence[Listed], now: float) -> list[str]:
    """The list as lines for a terminal."""
    rows = [("run", "state", "exit", "step", "seen", "size", "newest figures")]
    for run in runs:
        code = "-" if run.exit_code is None else str(run.exit_code)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in run.figures.items())
        step = "-" if run.step is None else str(run.step)
        seen = "-" if run.last_seen is None else _ago(now - run.last_seen)
        rows.append((printable(run.name, 60), run.state, code, step, seen, _size(run.num_bytes), figures))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    to_the_right = (2, 3, 4, 5)
    return [
        "  ".join(
            cell.rjust(width) if place in to_the_right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 2 for a folder that is not there."""
    parser = argparse.ArgumentParser(prog="python -m rlhf.runs", description="List runs with their state.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="folder of runs (default runs)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each run, one a line")
    args = parser.parse_args(arguments)
    return run_command(lambda: _print(args.folder.expanduser(), args.json))


def _print(folder: Path, as_json: bool) -> int:
    try:
        found = listed(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if as_json:
        print("\n".join(json.dumps(asdict(run)) for run in found))
    elif found:
        print("\n".join(table(found, time.time())))
    else:
        print(f"no run in {folder}: none of its folders has the file {MARK}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
