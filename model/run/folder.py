"""A run's folder: resolved config, metrics, events, progress, checkpoints, and exact restart."""

import fcntl
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from model.json_values import read_json_object
from model.run.checkpoint_state import STATE, state_bytes, verified_state
from model.run.config import ReportConfig, RunConfig, StartMode
from model.run.durable import (
    OUT_OF_SPACE,
    STAGING_SUFFIX,
    OutOfSpace,
    delete_written,
    free_name,
    refuse_foreign_files,
    write_file,
    write_folder,
    write_stream,
)
from model.run.failpoints import reach
from model.run.identity import Identity, Input, code_input, listed, settings_of
from model.run.interrupt import CONTINUES, CleanStop, StopSignal
from model.run.logs import Log, cut_lines, num_lines, read_lines
from model.run.manifest import DamagedFolder, Digests
from model.run.ownership import LOGS, METRICS, MODELS, clear_refused, clear_run, delete_leftovers, holds_nothing
from model.run.printable import printable
from model.run.saving import BackgroundFolder, Writing
from model.run.shown.presentation import Presentation
from model.run.shown.trackers import Sample
from model.run.state import State

MARK = "run.json"
"""The file that says that a folder is a run's, and which run it is."""
_FORMAT = 1
_GROWING = frozenset({"trainer.max_steps", "max_steps", "epochs"})
"""Settings that say how long a run lasts."""


class Saves(Protocol):
    """An engine, as far as a checkpoint is concerned."""

    def save(self, folder: Path) -> Digests:
        """Write the engine's files into the folder; returns their digests."""
        ...

    def save_in_background(self, folder: Path) -> Writing:
        """The same for the present state, while the engine goes on."""
        ...

    def load(self, folder: Path) -> None:
        """Read them again. `ValueError`, with nothing changed, for a file that does not fit."""
        ...


class RunFolder:
    """Owns one run folder. Only one process may hold it at a time.

    Files that a run did not write are never cut or deleted: a folder that holds any, and is not marked as a run's, is
    refused.
    """

    def __init__(
        self,
        config: RunConfig,
        resolved_config: str,
        outside: Iterable[str] = ("run",),
        report: ReportConfig | None = None,
    ) -> None:
        """Lock the folder and write the config.

        `outside`: dotted keys that are no part of what a run is, as `outside_keys` gives them. `report`: None where no
        report is written. `ValueError` if the folder is held, holds other things than a run, or a run with other
        settings, which are named.
        """
        self.config = config
        self.folder = Path(config.dir)
        self._identity = Identity(settings_of(resolved_config, outside))
        self._refuse_other_folders()
        self._is_new = holds_nothing(self.folder, MARK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            if error.errno in OUT_OF_SPACE:
                raise
            raise ValueError(f"run.dir: expected a folder that can be written, found: {error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"run.dir: {self.folder} is in use by another process") from None
        if config.start is StartMode.fresh:
            clear_run(self.folder)
        for name in MODELS:
            refuse_foreign_files(self.folder / name)
        for name in LOGS:
            if (self.folder / name).is_dir() or (self.folder / name).is_fifo():
                raise ValueError(f"run.dir: {self.folder / name}: expected a file, found a folder or a pipe; remove it")
        self._before = self._previous_identity()
        self._goes_on = False
        self._refuse_other_settings()
        self._logs: dict[str, Log] = {}
        self._saving: tuple[BackgroundFolder, State] | None = None
        self.exporter: Callable[[Path], None] | None = None  # writes the present model to a folder
        self.presentation = Presentation(self.folder, config.trackers, resolved_config, report)
        self._times: dict[str, float] = {}
        if not self.is_done:
            with self.space_for("config.yaml"):
                if self._before is None:
                    self._write_mark()
                write_file(self.folder / "config.yaml", resolved_config.encode())

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        """Let go of the folder, however the run ended. What a log still held was said when it could not be written.

        A run that was refused before its first step leaves nothing but the list of rows that cannot be used.
        """
        for log in self._logs.values():
            with suppress(OSError):
                log.close()
        self.presentation.leave(error)
        evaluated = _size(self.folder / "evaluations.jsonl") > 0  # before the first step; it may have taken long
        if isinstance(error, ValueError) and self._is_new and not self._has_begun() and not evaluated:
            with suppress(OSError):
                clear_refused(self.folder, MARK)
        self._lock.close()

    @property
    def final_folder(self) -> Path:
        return self.folder / "final"

    @property
    def is_done(self) -> bool:
        """Whether the run is complete: its final model too is there, and no more steps are asked for."""
        return (self.folder / "done.json").exists() and self.final_folder.exists() and not self._goes_on

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

    def declare(self, inputs: Mapping[str, Input]) -> None:
        """Say what the run reads, by name; checkpoints keep it.

        `ValueError` names every input that does not hold what the run began with, the code included, unless
        `run.accept_changes` names it.
        """
        self._identity.inputs |= inputs
        self._identity.inputs.setdefault("code", code_input())
        known = {*self._identity.inputs, *(self._before.inputs if self._before else ())}
        for name in self.config.accept_changes:
            if name not in known and name not in self._identity.settings:
                raise ValueError(
                    f"run.accept_changes: expected names among {', '.join(sorted(known))}, or keys, found {name!r}"
                )
        if self._before is not None:
            changed = self._identity.changed_inputs(self._before)
            self._refuse_changed(changed)
            for text in changed.values():
                print(f"resume: {text}; accepted by run.accept_changes", file=sys.stderr)
        if self._goes_on:
            (self.folder / "done.json").unlink(missing_ok=True)
        self._write_mark()

    def already_complete(self, inputs: Callable[[], Mapping[str, Input]]) -> bool:
        """Whether the run is complete; this is said. `inputs` gives those that can be had without opening the data.

        `ValueError` names those that do not hold what the run began with.
        """
        if not self.is_done:
            return False
        if self._before is not None:
            found = Identity({}, dict(inputs()))
            known = {name: one for name, one in self._before.inputs.items() if name in found.inputs}
            self._refuse_changed(found.changed_inputs(Identity({}, known)))
        print(f"{self.folder}: already complete; run.start=fresh starts anew")
        return True

    def restore(self, engine: Saves) -> State:
        """Load the newest checkpoint that verifies; returns its state, {"step": 0} when there is none.

        Rejected checkpoints are named with the reason; if all are damaged that is an error, never a silent new start.
        Lines past the restored step are cut from every log; lines that are missing are counted on stderr.
        """
        found = self._checkpoints()[::-1]
        state: State = {"step": 0}
        rejected = []
        for folder in found:
            try:
                state = verified_state(folder)
            except DamagedFolder as error:
                rejected.append(f"{folder.name}: {printable(str(error).replace(f'{folder}/', ''))}")
                print(f"checkpoint rejected: {rejected[-1]}", file=sys.stderr)
                continue
            engine.load(folder)
            self._export(folder.name)  # a stop may have come between a checkpoint and the model beside it
            break
        if not found:
            self._refuse_lost_checkpoints()
        if found and len(rejected) == len(found):
            raise ValueError(
                f"resume: no checkpoint in {self.folder / 'checkpoints'} is intact: {'; '.join(rejected)}; "
                "start anew with run.start=fresh"
            )
        # Set aside: a damaged folder of a later step must not count as one of the newest when old ones are pruned.
        for folder in found[: len(rejected)]:
            os.replace(folder, free_name(folder.with_name(f"{folder.name}.rejected")))
        self._prune()
        with self.space_for("the logs"):
            self._open_logs(state["step"], state.get("logs", {}))
        return state

    def roll_back(self, engine: Saves) -> State:
        """Go back to the newest checkpoint in the middle of a run, exactly as a restart would; returns its state."""
        self.end_saving()
        for log in self._logs.values():
            log.refuse_loss()
            log.close()
        self._logs = {}
        self._times = {}
        return self.restore(engine)

    def save(self, engine: Saves, state: State) -> None:
        """Write a checkpoint of `state["step"]`, then prune the oldest. `OutOfSpace` leaves the last good one.

        With `run.save_in_background` it is written while the caller goes on, and is there after `end_saving`.
        `LogsChanged`, after that, where somebody cut a log of this run.
        """
        self.end_saving()
        folder = self._checkpoint(state["step"])
        with self.space_for(f"the checkpoint of step {state['step']}"):
            for log in self._logs.values():
                log.sync()
            logs = {name: num_lines(self.folder / name) for name in LOGS}
            whole = {**state, "identity": self._identity.to_json(), "logs": logs}
            if self.config.save_in_background:
                self._saving = BackgroundFolder(folder, engine.save_in_background), whole
            else:
                write_folder(folder, {}, lambda staging: self._with_state(engine.save(staging), staging, whole))
                self._prune()
        self._export(folder.name, is_new=True)
        for log in self._logs.values():
            log.refuse_loss()

    def _export(self, name: str, is_new: bool = False) -> None:
        """Write the present model beside a checkpoint, where that is asked for and not done."""
        target = self.folder / "exports" / name
        if self.config.export_checkpoints and self.exporter is not None and (is_new or not target.exists()):
            with self.space_for(f"the model {target}"):
                self.exporter(target)

    def end_saving(self) -> None:
        """Wait for the checkpoint that is being written, and let it appear."""
        if self._saving is None:
            return
        (folder, whole), self._saving = self._saving, None
        with self.space_for(f"the checkpoint of step {whole['step']}"):
            folder.publish(lambda digests: {STATE: state_bytes(whole, digests)})
            self._prune()

    def _with_state(self, digests: Digests, staging: Path, whole: State) -> Digests:
        return {**digests, STATE: write_stream(staging / STATE, [state_bytes(whole, digests)])}

    @contextmanager
    def saved_on_stop(self, engine: Saves, state: Callable[[], State]) -> Iterator[StopSignal]:
        """While open, SIGTERM waits for `check` of what this gives. A `CleanStop` out of the block saves first.

        `state()` is what `save` would take; whoever stops cleanly does so when the engine is as it says.
        """
        with StopSignal(self.config.stop_seconds) as stop:
            try:
                yield stop
                self.end_saving()
            except CleanStop:
                self.end_saving()
                if not self._checkpoint(state()["step"]).exists():
                    self.save(engine, state())
                    self.end_saving()
                raise
            except (ValueError, ArithmeticError):
                with suppress(Exception):  # a person has to hear of what ended the run
                    self.end_saving()
                raise

    def finish(self, summary: State) -> None:
        """Mark the run as complete; a later start with the same command returns at once."""
        with self.space_for("done.json"):
            for log in self._logs.values():
                log.append([])
                log.refuse_loss()
            write_file(self.folder / "done.json", json.dumps(summary, indent=2).encode())
            self.presentation.end()

    def is_due(self, step: int, last: int) -> bool:
        return step % self.config.save_every == 0 or step == last

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one step's metrics, with the time of each phase since the last call under `time/`."""
        times = {f"time/{name}": round(seconds, 4) for name, seconds in self._times.items()}
        self._times = {}
        written = {
            name: value if value is not None and math.isfinite(value) else None  # JSON has no NaN
            for name, value in {**metrics, **times}.items()
        }
        with self.space_for(METRICS):
            self._log(METRICS).append([json.dumps({"step": step, **written}) + "\n"])
        with self.space_for("events"):
            self.presentation.log(step, written)
        reach("log")
        if self._saving is not None and self._saving[0].is_ready:
            self.end_saving()

    def append(self, file: str, step: int, records: list[State]) -> None:
        """Append lines to a log of this run; each carries its step, so that a restart can cut it."""
        with self.space_for(file):
            log = self._log(file) if file in LOGS else Log(self.folder / file)
            log.append(json.dumps({"step": step, **record}) + "\n" for record in records)
            log.sync()
            if file not in LOGS:
                log.close()
        reach(f"append.{Path(file).stem}")

    def show(self, step: int, samples: Callable[[], Sequence[Sample]]) -> None:
        """Show some completions of a step, where a tracker takes them."""
        with self.space_for("events"):
            self.presentation.show(step, samples)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a block under `time/PHASE` of the next log line."""
        reach(phase)
        begin = time.monotonic()
        yield
        self._times[phase] = self._times.get(phase, 0.0) + time.monotonic() - begin

    @contextmanager
    def space_for(self, what: str) -> Iterator[None]:
        """`OutOfSpace` in the user's words when the block fills the disk; what it left half written is deleted."""
        try:
            yield
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
            delete_leftovers(self.folder)
            good = [path.name for path in self._checkpoints()]
            raise OutOfSpace(
                f"run.dir: no space to write {what} in {self.folder} ({error.strerror}); the newest checkpoint is "
                f"{good[-1] if good else 'none'}: free space, and {CONTINUES}"
            ) from error

    def _log(self, name: str) -> Log:
        if name not in self._logs:
            self._logs[name] = Log(self.folder / name)
        return self._logs[name]

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:08d}"

    def _checkpoints(self) -> list[Path]:
        """The folders of checkpoints, oldest first."""
        found = (self.folder / "checkpoints").glob("step_*")
        return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name) and path.is_dir())

    def _refuse_other_folders(self) -> None:
        """`ValueError` for a folder that holds something, and is not marked as a run's."""
        if not self.folder.is_dir() or (self.folder / MARK).is_file() or self._checkpoint_identity() is not None:
            return
        names = [path.name for path in self.folder.iterdir()]  # a start that was killed leaves only unfinished ones
        if other := sorted(name for name in names if name != ".lock" and not name.endswith(STAGING_SUFFIX)):
            raise ValueError(
                f"run.dir: expected a new or empty folder, or one of a run, which has the file {MARK}; found "
                f"{', '.join(other[:3])} in {self.folder}; choose another folder"
            )

    def _checkpoint_identity(self) -> Identity | None:
        for folder in reversed(self._checkpoints()):
            try:
                return Identity.from_json(read_json_object(folder / STATE)["identity"])
            except (OSError, ValueError, KeyError):
                continue
        return None

    def _previous_identity(self) -> Identity | None:
        """The run that this folder holds, None for one that has not begun: refused data, for one, leaves such."""
        if not self._has_begun():
            return None
        if (found := self._checkpoint_identity()) is not None:
            return found
        try:
            return Identity.from_json(read_json_object(self.folder / MARK)["identity"])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"run.dir: {self.folder} holds a run, but neither its checkpoints nor {MARK} say which ({error}); "
                "choose another run.dir, or start anew with run.start=fresh"
            ) from None

    def _has_begun(self) -> bool:
        is_done = (self.folder / "done.json").exists() and self.final_folder.exists()
        return is_done or bool(self._checkpoints()) or _size(self.folder / METRICS) > 0

    def _refuse_other_settings(self) -> None:
        """`ValueError` for settings that differ. The number of steps may grow, which is said."""
        changed = self._identity.changed_settings(self._before) if self._before else {}
        for key in _GROWING & changed.keys():
            assert self._before is not None
            if growth := self._identity.growth(self._before, key, self.config.extend):
                print(f"run.dir: {self.folder} goes on: {growth}", flush=True)
                self._goes_on = True
                del changed[key]
        if refused := [text for key, text in changed.items() if key not in self.config.accept_changes]:
            raise ValueError(
                f"run.dir: {self.folder} holds a run with other settings: {listed(refused)}. Use those again, choose "
                "another run.dir, or start anew with run.start=fresh"
            )

    def _refuse_changed(self, changed: Mapping[str, str]) -> None:
        refused = {name: text for name, text in changed.items() if name not in self.config.accept_changes}
        if refused:
            raise ValueError(
                f"resume: {self.folder}: {listed(list(refused.values()))}. Put back what was there, go on with what is "
                f"there now by run.accept_changes=[{','.join(refused)}], or start anew with run.start=fresh"
            )

    def _write_mark(self) -> None:
        content = {"format": _FORMAT, "identity": self._identity.to_json()}
        with self.space_for(MARK):
            write_file(self.folder / MARK, json.dumps(content, indent=1).encode())

    def _refuse_lost_checkpoints(self) -> None:
        """A run that went on past its first checkpoint does not silently begin again because all of them are gone."""
        last = max((record["step"] for record in read_lines(self.folder / METRICS)), default=0)
        if last > self.config.save_every:
            raise ValueError(
                f"resume: {self.folder / METRICS} reaches step {last}, but {self.folder / 'checkpoints'} holds no "
                "checkpoint; put one back, or start anew with run.start=fresh"
            )

    def _prune(self) -> None:
        for old in self._checkpoints()[: -self.config.keep_checkpoints]:
            reach("save.prune")
            delete_written(old)
            for export in (self.folder / "exports").glob(f"{old.name}*"):  # the model, and adapters beside it
                delete_written(export)

    def _open_logs(self, step: int, counts: Mapping[str, int]) -> None:
        delete_leftovers(self.folder)
        for path in [self.folder / name for name in LOGS] + sorted(self.folder.glob("rollouts/step_??????.jsonl")):
            cut_lines(path, step or -1)  # lines from before the first step are written again
        for name, count in counts.items():
            if (found := num_lines(self.folder / name)) != count:
                print(
                    f"{self.folder / name}: expected {count} lines up to step {step}, as the checkpoint has it, found "
                    f"{found}: lines are lost, and the run goes on without them",
                    file=sys.stderr,
                )
        self._log(METRICS)
        self.presentation.start(step, read_lines(self.folder / METRICS))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
