"""A folder of data that an example writes: whole or not at all, once, and never over somebody else's files."""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.run.durable import STAGING_SUFFIX
from model.run.failpoints import reach

DONE = "READY"


def write_once(out: Path, made_with: str, fill: Callable[[Path], None]) -> None:
    """Have `fill` write a folder, and publish it as `out` with a file READY that holds `made_with`.

    The folder appears whole or not at all; an existing finished folder is left as it is, and so is any other that holds
    files: that is a `ValueError`. Of several calls for one folder, one writes it and the others wait.
    """
    out = Path(out).resolve()
    if _is_finished(out, made_with):
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with _held(out.parent / f".{out.name}.lock"):
        if _is_finished(out, made_with):
            return
        staging = out.with_name(f".{out.name}{STAGING_SUFFIX}")
        shutil.rmtree(staging, ignore_errors=True)  # a call that was killed left it
        staging.mkdir()
        try:
            fill(staging)
            (staging / DONE).write_text(made_with)
            reach("publish")
            os.replace(staging, out)
            reach("published")
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def write_from(arguments: list[str], out: str, write: Callable[[Path, int, float], None]) -> int:
    """Call `write` with the folder, seed and share of a command line, by default `out`, 0 and 1; the exit code.

    Arguments that cannot be used, and a folder that cannot be written, are said on stderr, and the code is 2.
    """
    values = {"out": out, "seed": "0", "share": "1.0"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in values or not equals:
            print(f"error: {argument!r}: expected out=DIR, seed=NUMBER or share=NUMBER", file=sys.stderr)
            return 2
        values[key] = value
    try:
        write(Path(values["out"]), int(values["seed"]), float(values["share"]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"error: out: expected a folder that can be written, found: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file. A second process waits, and then finds the folder finished."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_finished(out: Path, made_with: str) -> bool:
    """Whether the folder is there as it would be made. `ValueError` for one that is made otherwise, or not by us."""
    if not out.exists():
        return False
    if (out / DONE).is_file():
        found = (out / DONE).read_text(errors="replace")
        if found != made_with:
            raise ValueError(
                f"out: expected data made with {made_with.strip()}, found {out} made with {found.strip():.80}; remove "
                "that folder or choose another"
            )
        return True
    if not out.is_dir() or any(out.iterdir()):
        raise ValueError(f"out: expected a new folder or one that this command finished, found {out} with other files")
    return False
