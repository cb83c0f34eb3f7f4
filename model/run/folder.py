"""A run's folder: resolved config, metrics, events, progress, checkpoints, and exact restart."""

import errno
import fcntl
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from model.run.config import RunConfig, StartMode
from model.run.durable import STAGING_SUFFIX, Digests, verify_folder, write_file, write_folder
from model.run.failpoints import reach
from model.run.interrupt import CONTINUES, CleanStop, StopSignal
from model.run.state import State

STATE = "state.json"
# In the order in which a fresh start deletes them: what would make a half-deleted run look alive goes first.
_OWN_FILES = (
    "done.json",
    "checkpoints",
    "final",
    "best",
    "ledger.jsonl",
    "skipped.jsonl",
    "evaluations.jsonl",
    "bad_rows*.jsonl",
    "rollouts",
    "media",
    "events",
    "metrics.jsonl",
    "config.yaml",
)
_OF_THE_DATA = "bad_rows*.jsonl"
"""Logs that are written whole, and hold no steps that a restart would have to cut."""
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutOfSpace(RuntimeError):
    """The disk, or the quota, is full."""

    exit_code = 6


class Saves(Protocol):
    """An engine, as far as a checkpoint is concerned."""

    def save(self, folder: Path) -> Digests:
        """Write the engine's files into the folder; returns their digests."""
        ...

    def load(self, folder: Path) -> None:
        """Read them again."""
        ...


class RunFolder:
    """Owns one run folder. Only one process may hold it at a time."""

    def __init__(self, config: RunConfig, resolved_config: str) -> None:
        """Lock the folder and write the config. `ValueError` if it is held, or belongs to another config."""
        self.config = config
        self.folder = Path(config.dir)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ValueError(f"run.dir: expected a folder that can be written, found: {error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"run.dir: {self.folder} is in use by another process") from None
        if config.start is StartMode.fresh:
            self._clear()
        self._check_config(resolved_config)
        self._metrics: Any = None
        self._events: Any = None
        self._times: dict[str, float] = {}

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the folder, however the run ended."""
        self._lock.close()

    @property
    def final_folder(self) -> Path:
        return self.folder / "final"

    @property
    def is_done(self) -> bool:
        return (self.folder / "done.json").exists()

    @property
    def seconds(self) -> float:
        """Seconds of the timed phases since the last log line."""
        return sum(self._times.values())

    def tokens_per_second(self, tokens: Mapping[str, float]) -> dict[str, float]:
        """`time/PHASE_tokens_per_second` of phases timed since the last log line, which handled so many tokens."""
        return {
            f"time/{phase}_tokens_per_second": round(count / self._times[phase], 1)
            for phase, count in tokens.items()
            if self._times.get(phase)
        }

    def restore(self, engine: Saves) -> State:
        """Load the newest checkpoint that verifies; returns its state, {"step": 0} when there is none.

        Rejected checkpoints are named with the reason; if all are damaged that is an error, never a silent new start.
        Lines past the restored step are cut from every log.
        """
        found = sorted((self.folder / "checkpoints").glob("step_*[0-9]"), reverse=True)
        state: State = {"step": 0}
        rejected = []
        for folder in found:
            problem = verify_folder(folder) or ("" if (folder / STATE).is_file() else f"{STATE} is missing")
            if not problem:
                state = json.loads((folder / STATE).read_text(encoding="utf-8"))
                engine.load(folder)
                break
            rejected.append(f"{folder.name}: {problem}")
            print(f"checkpoint rejected: {rejected[-1]}", file=sys.stderr)
        if not found:
            self._refuse_lost_checkpoints()
        if found and len(rejected) == len(found):
            raise ValueError(
                f"resume: no checkpoint in {self.folder / 'checkpoints'} is intact: {'; '.join(rejected)}; "
                "start anew with run.start=fresh"
            )
        # Set aside: a damaged folder of a later step must not count as one of the newest when old ones are pruned.
        for folder in found[: len(rejected)]:
            aside = folder.with_name(f"{folder.name}.rejected")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        self._prune()
        self._open_logs(state["step"])
        return state

    def save(self, engine: Saves, state: State) -> None:
        """Write a checkpoint of `state["step"]`, then prune the oldest. `OutOfSpace` leaves the last good one."""
        with self.space_for(f"the checkpoint of step {state['step']}"):
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            write_folder(self._checkpoint(state["step"]), {STATE: json.dumps(state).encode()}, engine.save)
        self._prune()

    @contextmanager
    def saved_on_stop(self, engine: Saves, state: Callable[[], State]) -> Iterator[StopSignal]:
        """While open, SIGTERM waits for `check` of what this gives. A `CleanStop` out of the block saves first.

        `state()` is what `save` would take; whoever stops cleanly does so when the engine is as it says.
        """
        try:
            with StopSignal() as stop:
                yield stop
        except CleanStop:
            if not self._checkpoint(state()["step"]).exists():
                self.save(engine, state())
            raise

    def finish(self, summary: State) -> None:
        """Mark the run as complete; a later start with the same command returns at once."""
        with self.space_for("done.json"):
            self._metrics.flush()
            if self._events is not None:
                self._events.close()
            write_file(self.folder / "done.json", json.dumps(summary, indent=2).encode())

    def is_due(self, step: int, last: int) -> bool:
        return step % self.config.save_every == 0 or step == last

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step's metrics, with the time of each phase since the last call under `time/`."""
        metrics = {**metrics, **{f"time/{name}": round(seconds, 4) for name, seconds in self._times.items()}}
        self._times = {}
        written = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        with self.space_for("metrics.jsonl"):
            self._metrics.write(json.dumps({"step": step, **written}) + "\n")
            self._metrics.flush()
        with self.space_for("events"):
            self._write_events(step, metrics)
        reach("log")

    def append(self, file: str, step: int, records: list[State]) -> None:
        """Append lines to a log of this run; each carries its step, so that a restart can cut it."""
        path = self.folder / file
        with self.space_for(file):
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as log:
                log.writelines(json.dumps({"step": step, **record}) + "\n" for record in records)
                log.flush()
                os.fsync(log.fileno())
        reach(f"append.{Path(file).stem}")

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a block under `time/PHASE` of the next log line."""
        reach(phase)
        begin = time.monotonic()
        yield
        self._times[phase] = self._times.get(phase, 0.0) + time.monotonic() - begin

    @contextmanager
    def space_for(self, what: str) -> Iterator[None]:
        """`OutOfSpace` in the user's words when the block fills the disk; folders it left half written are deleted."""
        try:
            yield
        except OSError as error:
            if error.errno not in _OUT_OF_SPACE:
                raise
            for folder in (self.folder, self.folder / "checkpoints"):
                for leftover in folder.glob(f"*{STAGING_SUFFIX}"):
                    shutil.rmtree(leftover, ignore_errors=True)
            good = sorted(path.name for path in (self.folder / "checkpoints").glob("step_*[0-9]"))
            raise OutOfSpace(
                f"run.dir: no space to write {what} in {self.folder} ({error.strerror}); the newest checkpoint is "
                f"{good[-1] if good else 'none'}: free space, and {CONTINUES}"
            ) from error

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:08d}"

    def _refuse_lost_checkpoints(self) -> None:
        """A run that went on past its first checkpoint does not silently begin again because all of them are gone."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        steps = [int(match[1]) for line in lines if (match := re.match(r'\{"step": (\d+)', line))]
        if max(steps, default=0) > self.config.save_every:
            raise ValueError(
                f"resume: {path} reaches step {max(steps)}, but {self.folder / 'checkpoints'} holds no checkpoint; put "
                "one back, or start anew with run.start=fresh"
            )

    def _prune(self) -> None:
        found = sorted((self.folder / "checkpoints").glob("step_*[0-9]"))
        for old in found[: -self.config.keep_checkpoints]:
            reach("save.prune")
            shutil.rmtree(old)

    def _clear(self) -> None:
        for pattern in _OWN_FILES:
            for path in sorted(self.folder.glob(pattern)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _check_config(self, resolved: str) -> None:
        path = self.folder / "config.yaml"
        # How a run was started is not part of what it is.
        resolved = resolved.replace(f"start: {StartMode.fresh.value}\n", f"start: {StartMode.resume.value}\n")
        begun = (self.folder / "metrics.jsonl").exists()  # refused data, for one, leaves a folder that never began
        if begun and path.exists() and path.read_text(encoding="utf-8") != resolved:
            raise ValueError(
                f"run.dir: {self.folder} holds a run with another config ({path}); "
                "choose another run.dir, or start anew with run.start=fresh"
            )
        write_file(path, resolved.encode())

    def _open_logs(self, step: int) -> None:
        for leftover in self.folder.glob(f"**/*{STAGING_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for path in [*self.folder.glob("*.jsonl"), *self.folder.glob("rollouts/*.jsonl")]:
            if not path.match(_OF_THE_DATA):
                cut_lines(path, step or -1)  # lines from before the first step are written again
        self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        # The event files say nothing that metrics.jsonl does not: write them anew up to the restored step.
        shutil.rmtree(self.folder / "events", ignore_errors=True)
        for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
            metrics = json.loads(line)
            self._write_events(metrics.pop("step"), metrics)

    def _write_events(self, step: int, metrics: State) -> None:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder / "events"))
        for name, value in metrics.items():
            if value is not None:
                self._events.add_scalar(name, value, step)


def cut_lines(path: Path, last_step: int) -> None:
    """Drop lines of later steps, and a torn last line, from a JSONL log."""
    if not path.exists():
        return
    kept = []
    for line in re.findall(r"[^\n]*\n?", path.read_text(encoding="utf-8")):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= last_step:
                kept.append(line)
        except ValueError:
            continue
    write_file(path, "".join(kept).encode())
