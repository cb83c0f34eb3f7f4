"""How a run came to its end, as lines of RUN/events.jsonl: started, continued, ended, and what failed beside it.

Lines are only ever appended. A restart cuts none of them, because what happened has happened.
"""

import json
import os
import socket
import time
from pathlib import Path

from model.json_values import JsonObject, parse_json

EVENTS = "events.jsonl"


class History:
    """The file that one process appends to."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self.has_started = False
        self.has_ended = False

    def start(self, step: int) -> None:
        """Say that this process begins to train, or to run stages, behind so many steps. The first call counts."""
        if not self.has_started:
            self.has_started = True
            self.say("started", step=step, host=socket.gethostname(), pid=os.getpid())

    def end(self, exit_code: int, error: str = "") -> None:
        """Say how this process ends. The first call counts, and none where it never started."""
        if self.has_started and not self.has_ended:
            self.has_ended = True
            self.say("ended", exit_code=exit_code, **({"error": error} if error else {}))

    def say(self, event: str, **more: object) -> None:
        """Append a line. `OSError` where the disk does not take it."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **more}) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


def read_history(folder: Path) -> list[JsonObject]:
    """The events of a run, in order; none where there is no file. Lines that are torn or no events are passed over."""
    try:
        lines = (folder / EVENTS).read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return []
    found: list[JsonObject] = []
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str) and _is_number(event.get("time")):
            found.append(event)
    return found


def is_alive(started: JsonObject) -> bool | None:
    """Whether the process of a line `started` still runs. None where it ran on another machine.

    A process that began later than the line was written is another one that got the same number.
    """
    if started.get("host") != socket.gethostname():
        return None
    stat = Path(f"/proc/{started.get('pid')}/stat")
    try:
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return False
    began = time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return began <= started["time"] + 1.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
