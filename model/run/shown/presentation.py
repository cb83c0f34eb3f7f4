"""Everything that shows a run to people beside its own logs: its trackers, its events, and its report."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import yaml

from model.run.config import ReportConfig, TrackerName
from model.run.durable import OutOfSpace
from model.run.ends import exit_code_of
from model.run.guidance import IN_PIPELINE, REPORT
from model.run.interrupt import Interrupted
from model.run.ownership import METRICS
from model.run.parent import die_with_parent
from model.run.printable import override, printable, without_passwords
from model.run.shown.history import History
from model.run.shown.trackers import Sample, trackers_of
from model.run.state import State

NO_REPORT = "SAILVL2_REPORT"
"""Environment variable: 0 keeps every run that is started with it from writing a report."""
_PATIENCE_SECONDS = 600.0
"""Seconds that the end of a run waits for its report."""
_MODULE = "rlhf.report"  # another room's command, which runs in a process of its own


class Presentation:
    """Tells trackers, RUN/events.jsonl and the report what a run does."""

    def __init__(
        self, folder: Path, trackers: Sequence[TrackerName], resolved_config: str, report: ReportConfig | None
    ) -> None:
        """`report`: None where the run writes no report."""
        self.history = History(folder)
        self.trackers = trackers_of(trackers, folder, _settings(resolved_config), self.history.say)
        self._folder = folder
        self._report = ReportProcess(folder, report or ReportConfig(enabled=False), self.history)

    def start(self, step: int, lines: Sequence[State] = ()) -> None:
        """The run begins, or goes back to `step`, up to which it has these lines of metrics."""
        if self.history.has_started:
            self.history.say("went_back", step=step)
        self.history.start(step)
        self.trackers.write_anew(lines)

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """A step was logged."""
        self.trackers.write(step, metrics)
        self._report.look(step)

    def show(self, step: int, samples: Callable[[], Sequence[Sample]]) -> None:
        """Show some completions of a step, where a tracker takes them."""
        self.trackers.show(step, samples)

    def look(self, step: int, stage: str) -> None:
        """A stage of a pipeline has come to a step."""
        self._report.look(step, stage)

    @property
    def _has_figures(self) -> bool:
        """Whether the run, or a stage of the pipeline, has come past its first step."""
        found = [self._folder / METRICS, *self._folder.glob(f"*/{METRICS}")]
        return any(path.is_file() and path.stat().st_size for path in found)

    def end(self) -> None:
        """All is done: close the trackers, say so, and write the report."""
        self.trackers.close()
        self.history.end(0)
        self._report.finish()

    def leave(self, error: object) -> None:
        """The process lets go of the run; `error` is what ended it, None where nothing did. A run that failed has a
        report as well, but not one that was asked to stop soon, or that found the disk full."""
        if not self.history.has_started or self.history.has_ended:
            return
        with suppress(OSError):
            self.trackers.close()
        with suppress(OSError):
            self.history.end(exit_code_of(error), printable(str(error), 1000) if error else "")
            if self._has_figures and isinstance(error, Exception) and not isinstance(error, Interrupted | OutOfSpace):
                self._report.finish()


class ReportProcess:
    """Has `python -m rlhf.report` write RUN/report.html: now and then beside the run, and when it ends.

    It is a process of its own, so that no failure of it, and no memory that it takes, is the run's.
    """

    def __init__(self, folder: Path, config: ReportConfig, history: History) -> None:
        is_stage = bool(os.environ.get(IN_PIPELINE)) and not config.every  # the pipeline's report holds it
        self._is_wanted = config.enabled and not is_stage and os.environ.get(NO_REPORT) != "0"
        self._folder, self._every, self._history = folder, config.every, history
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._looked: tuple[str, int] | None = None
        self._has_failed = False

    def look(self, step: int, stage: str = "") -> None:
        """Begin a report where `report.every` steps have passed, and the one before is written."""
        if not self._is_wanted or not self._every:
            return
        turn = (stage, step // self._every)
        if turn == self._looked or not turn[1] or not self._is_over(0.0):
            return
        self._looked = turn
        self._begin()

    def finish(self) -> None:
        """Write the report of the run as it is now, and wait for it."""
        if not self._is_wanted:
            return
        self._is_over(_PATIENCE_SECONDS)
        self._begin()
        self._is_over(_PATIENCE_SECONDS)

    def _begin(self) -> None:
        command = [sys.executable, "-P", "-m", _MODULE, override("run", self._folder)]
        paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the process is over)
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C at the terminal is for the run
                preexec_fn=_begin_politely,
            )
        except OSError as error:
            self._fail(str(error))

    def _is_over(self, patience: float) -> bool:
        """Whether no report is being written, after waiting for so many seconds. One that failed is said once."""
        if self._process is None:
            return True
        try:
            code = self._process.wait(patience) if patience else self._process.poll()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = -9
        if code is None:
            return False
        self._process = None
        if code and self._said is not None:
            self._said.seek(0)
            self._fail(self._said.read()[-2000:].decode("utf-8", "replace").strip().split("\n")[-1] or f"code {code}")
        if self._said is not None:
            self._said.close()
        return True

    def _fail(self, why: str) -> None:
        said = printable(why)
        if not self._has_failed:
            print(
                f"report: {self._folder / REPORT} could not be written, and the run goes on as it would ({said}); "
                f"python -m {_MODULE} {shlex.quote(f'run={self._folder}')} writes it",
                file=sys.stderr,
                flush=True,
            )
        self._has_failed = True
        with suppress(OSError):
            self._history.say("report_failed", error=said)


def _begin_politely() -> None:
    """Run in the new process: it ends with the run, and takes the processor only where the run leaves it."""
    die_with_parent()
    os.nice(10)


def _settings(resolved: str) -> dict[str, object]:
    try:
        found = yaml.safe_load(without_passwords(resolved))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
