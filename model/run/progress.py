"""The progress of a stage for a person: a bar with ETA on a terminal, sparse plain lines elsewhere."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StageProgress:
    """Context manager around a loop of `total` steps; `advance` is called once per step."""

    seconds_between_lines = 10.0

    def __init__(self, title: str, total: int, file: TextIO | None = None) -> None:
        """`file` is stdout unless another is given."""
        self.title, self.total = title, total
        self.console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, line="")
        self._last_line = time.monotonic()

    def __enter__(self) -> "StageProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int, line: str) -> None:
        """Show that `step` is done; `line` is a compact status."""
        self._bar.update(self._task, completed=step, line=line)
        late = time.monotonic() - self._last_line > self.seconds_between_lines
        if not self.console.is_terminal and (late or step == self.total):
            self._last_line = time.monotonic()
            self.say(f"{self.title} {step}/{self.total} {line}")

    def status(self, line: str) -> None:
        """Show how far the present step is; callable from any thread."""
        self._bar.update(self._task, line=line)
        if not self.console.is_terminal and time.monotonic() - self._last_line > self.seconds_between_lines:
            self._last_line = time.monotonic()
            self.say(f"{self.title} {line}")

    def say(self, text: str) -> None:
        """Print above the bar; the text is data, not markup."""
        self.console.print(text, markup=False)
