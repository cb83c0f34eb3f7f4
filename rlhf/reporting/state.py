"""The state of a run, read off its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.json_values import JsonObject
from model.run.shown.history import is_alive, read_history


@dataclass(frozen=True)
class Session:
    """One process that worked on a run, from its start to its end."""

    begin: float  # Unix time in seconds
    end: float | None  # None: it did not say that it ended
    exit_code: int | None
    error: str
    first_step: int


@dataclass(frozen=True)
class RunState:
    """`name` is one of complete, running, stopped, failed, killed and unknown."""

    name: str
    exit_code: int | None = None  # the last process that ended said it
    error: str = ""
    sessions: tuple[Session, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Time that all processes together took, as far as both ends are known; None where none is."""
        known = [one.end - one.begin for one in self.sessions if one.end is not None]
        return sum(known) if known else None


_STOPPED = (5, 7, 130)
"""Exit codes of runs that were stopped with their state saved, and go on with the same command."""


def state_of(folder: Path, events: Sequence[JsonObject] | None = None) -> RunState:
    """The state of the run in a folder. Runs of older versions have no events; only `complete` is known of them."""
    events = read_history(folder) if events is None else events
    sessions = tuple(_sessions(events))
    is_complete = (folder / "done.json").is_file() or (folder / "summary.json").is_file()
    if not sessions:
        return RunState("complete" if is_complete else "unknown")
    last = sessions[-1]
    if last.exit_code is not None:
        name = "complete" if last.exit_code == 0 else "stopped" if last.exit_code in _STOPPED else "failed"
        return RunState(name, last.exit_code, last.error, sessions)
    begins = [event for event in events if event["event"] == "started"]
    alive = is_alive(begins[-1])
    name = "unknown" if alive is None else "running" if alive else "killed"
    return RunState(name, None, "", sessions)


def _sessions(events: Sequence[JsonObject]) -> list[Session]:
    found: list[Session] = []
    for event in events:
        if event["event"] == "started":
            step = event.get("step")
            found.append(Session(float(event["time"]), None, None, "", step if isinstance(step, int) else 0))
        elif event["event"] == "ended" and found and found[-1].end is None:
            code, begun = event.get("exit_code"), found[-1]
            found[-1] = Session(
                begun.begin,
                float(event["time"]),
                code if isinstance(code, int) else None,
                str(event.get("error", "")),
                begun.first_step,
            )
    return found
