"""Who failed, when one of several processes of an engine dies, raises, stops or is stuck.

Processes that train together wait for each other inside collectives, where a missing one shows as a hang or as a reset
connection without a name. So every process reports beside them, through a store of its own: a beat and the place where
it is. A thread of rank 0 reads the reports, names the rank that failed, and ends the run; the others end when rank 0
says so or is gone.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from model.run.interrupt import CONTINUES, ask_to_stop

dist: Any = torch.distributed
EXIT_CODE = 10
_BEAT_S = 0.5
_DONE = 2**62
_TIMED = ("accumulate", "logprobs", "step", "weights", "embeddings")
"""Verbs in which all ranks make the same marks, many times a second. Others may take long between two marks."""
_SLOW, _UNCLEAR = 20, 4
"""Times of `patience_s` that ranks may stand still in other verbs, and where none is behind another."""
_GRACE_S = 2.0
"""Seconds in which what one rank reports may still come to the others on the ordinary way."""


class RankFailure(RuntimeError):
    """A process of the engine failed; the run ends, and the same command continues from the newest checkpoint."""

    exit_code = EXIT_CODE


@dataclass(frozen=True)
class Report:
    """The report of a rank on itself."""

    host: str
    process: int
    beats: int  # grows while its threads run
    command: int  # number of the verb that rank 0 asked for last
    marks: int  # grows while the work on it goes on
    verb: str  # its name; empty between two verbs
    place: str  # how far it is in that


@dataclass
class _Seen:
    """The newest report of a rank, and since when its beats and its marks stand still."""

    report: Report
    beat_at: float
    mark_at: float


class Marks:
    """Counts how far the work of this process is. A mark costs a microsecond."""

    def __init__(self) -> None:
        self.command = self.count = 0
        self.verb = self.place = ""

    def begin(self, verb: str) -> None:
        """A new verb begins."""
        self.command += 1
        self.count = 0
        self.verb, self.place = verb, ""

    def end(self) -> None:
        """The verb is done: no rank is further in it."""
        self.verb = self.place = ""
        self.count = _DONE

    def at(self, place: str) -> None:
        """The work came to a place that is worth naming."""
        self.place = place
        self.count += 1

    def one(self) -> None:
        """The work went on."""
        self.count += 1

    def wait(self) -> None:
        """This rank has done its part, and waits for the others."""
        self.place = "waiting for the others"
        self.count = _DONE


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory was left, of a device or of the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class Watch:
    """Reports for this rank; rank 0 also reads the reports of all.

    `close` ends it in good order. A rank that was killed, raised an error, gave no beat for `patience_s`, or made no
    progress for so long while another one went further, ends the run with exit code 10.
    """

    def __init__(self, rank: int, num_ranks: int, address: str, port: int, patience_s: float) -> None:
        """`address` is that of rank 0's host; `port` is that of its store, 0 on rank 0, which opens one."""
        self.marks = Marks()
        self._rank, self._num_ranks, self._patience = rank, num_ranks, patience_s
        self._host = socket.gethostname()
        timeout = timedelta(seconds=max(patience_s, 5.0))
        if rank == 0:
            # Bound to this address alone: by itself the store would listen on every network of the host.
            self._socket = socket.create_server((address, 0))
            port = self._socket.getsockname()[1]
            self._server = dist.TCPStore(
                address,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timeout,
                master_listen_fd=self._socket.detach(),
            )
        self.port = port
        self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
        self._beats = 0
        self._ends = threading.Event()
        self._given_up = -1
        self._stop_seen: dict[int, float] = {}
        self._failed_at: dict[int, float] = {}
        self._report()

    def start(self) -> None:
        """Begin to watch. All ranks have opened their watch."""
        work = self._supervise if self._rank == 0 else self._follow
        self._thread = threading.Thread(target=work, name="watch", daemon=True)
        self._thread.start()

    def failed(self, error: BaseException) -> None:
        """Say that this rank raised an error while others may wait for it."""
        kind = "lost" if is_lost_connection(error) else "raised"
        text = f"{type(error).__name__}: {error}"
        with suppress(RuntimeError):
            self._store_of_thread().set(f"failed/{self._rank}", json.dumps([kind, text[:2000]]))

    def withdraw(self, rank: int) -> None:
        """Take back what a rank reported as failed: its error came to rank 0 on the ordinary way."""
        with suppress(RuntimeError):
            self._store_of_thread().delete_key(f"failed/{rank}")

    def ask_to_stop(self) -> None:
        """Tell rank 0 that this rank was sent SIGTERM."""
        with suppress(RuntimeError):
            self._store_of_thread().set(f"stop/{self._rank}", "SIGTERM")

    def give_up(self) -> None:
        """Rank 0: nobody waits for the verb that is under way."""
        with suppress(RuntimeError):
            self._store_of_thread().set("give_up", str(self.marks.command))

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the verb that this rank works on; known half a second later."""
        return self._given_up >= self.marks.command

    def verdict(self, error: BaseException) -> "RankFailure":
        """Wait until it is known which rank failed, and end the process; an error where that stays unknown."""
        self._ends.wait(self._patience + 2 * _GRACE_S)
        return RankFailure(f"a rank of the engine was lost ({error}); {CONTINUES}")

    def abandon(self) -> None:
        """Rank 0 ends for a reason of its own in the middle of a verb: end the other ranks."""
        with suppress(RuntimeError):
            self._store_of_thread().set("end", "rank 0 has ended")
        self._ends.set()  # the others end because they are told to

    def close(self) -> None:
        """Stop watching: the run ends in good order."""
        with suppress(RuntimeError):
            if self._rank == 0:
                self._store_of_thread().set("end", "")
        self._ends.set()
        self._thread.join(timeout=2 * _BEAT_S)

    def _store_of_thread(self) -> Any:
        """A connection of the calling thread: one that waits would hold up another's."""
        own = threading.current_thread().name == "watch"
        if own:
            return self._store
        if not hasattr(self, "_other_store"):
            self._other_store = self._store.clone()
        return self._other_store

    def _report(self) -> None:
        self._beats += 1
        marks = self.marks
        place = marks.command, marks.count, marks.verb, marks.place
        report = Report(self._host, os.getpid(), self._beats, *place)
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(report)))

    def _follow(self) -> None:
        """Report, and end this process when rank 0 says so or is gone."""
        while not self._ends.wait(_BEAT_S):
            try:
                self._report()
                if self._store.check(["give_up"]):
                    self._given_up = int(self._store.get("give_up"))
                if not self._store.check(["end"]):
                    continue
                message = self._store.get("end").decode()
            except RuntimeError:
                message = "rank 0 is gone"
            if self._ends.wait(_GRACE_S):
                return
            self._end("" if message != "rank 0 is gone" else f"rank {self._rank}: {message}")

    def _supervise(self) -> None:
        seen: dict[int, _Seen] = {}
        while not self._ends.wait(_BEAT_S / 2):
            with suppress(RuntimeError):
                self._report()
                now = time.monotonic()
                for rank in range(self._num_ranks):
                    report = Report(**json.loads(self._store.get(f"beat/{rank}")))
                    old = seen.get(rank)
                    same_beat = old is not None and old.report.beats == report.beats
                    same_mark = old is not None and _how_far(old.report) == _how_far(report)
                    seen[rank] = _Seen(
                        report, old.beat_at if old and same_beat else now, old.mark_at if old and same_mark else now
                    )
                self._pass_on_stop()
                if cause := self._cause(seen, now):
                    self._condemn(cause, seen)

    def _pass_on_stop(self) -> None:
        """Ask the loop to save and stop where another rank was sent SIGTERM, and rank 0 was not within a second."""
        for rank in range(1, self._num_ranks):
            if self._store.check([f"stop/{rank}"]):
                since = self._stop_seen.setdefault(rank, time.monotonic())
                if time.monotonic() - since > 1.0 and since != float("inf"):
                    self._stop_seen = dict.fromkeys(range(self._num_ranks), float("inf"))
                    ask_to_stop(f"SIGTERM to rank {rank}")

    def _cause(self, seen: dict[int, _Seen], now: float) -> str:
        """Say which rank failed and how; empty while none has."""
        for rank, one in seen.items():
            state = _process_state(one.report, self._host)
            if rank and state in ("gone", "Z"):
                return f"{_named(rank, one.report)} was killed or ended without a word"
        for rank, one in seen.items():
            if rank and now - one.beat_at > self._patience:
                stopped = _process_state(one.report, self._host) == "T"
                what = "was stopped by a signal" if stopped else "gives no sign of life"
                return f"{_named(rank, one.report)} {what} (engine.patience_s = {self._patience:g})"
        raised: list[str] = []
        for rank, one in seen.items():
            key = f"failed/{rank}"
            if self._store.check([key]):
                kind, text = json.loads(self._store.get(key))
                wait = _GRACE_S if kind == "raised" else _GRACE_S + self._patience
                if now - self._failed_at.setdefault(rank, now) > wait:
                    raised.append(f"{_named(rank, one.report)} raised {text}")
            else:
                self._failed_at.pop(rank, None)
        if raised:
            return "; ".join(raised)
        return self._stuck(seen, now)

    def _stuck(self, seen: dict[int, _Seen], now: float) -> str:
        """Ranks that are behind in the same verb, when no rank has gone on for as long as patience lasts."""
        verb = seen[0].report.verb
        patience = self._patience if verb in _TIMED else _SLOW * self._patience
        still = min(now - one.mark_at for one in seen.values())
        if not verb or still <= patience:
            return ""
        furthest = max(_how_far(one.report) for one in seen.values())
        behind = [rank for rank, one in seen.items() if _how_far(one.report) < furthest]
        if not behind:
            whole = still > _UNCLEAR * patience
            return f"no rank went on for {still:.0f} s, and none is behind another" if whole else ""
        slowest = min(behind, key=lambda rank: _how_far(seen[rank].report))
        return (
            f"{_named(slowest, seen[slowest].report)} is stuck: no rank went on for {patience:g} s "
            "(engine.patience_s), and this one is the furthest behind"
        )

    def _condemn(self, cause: str, seen: dict[int, _Seen]) -> None:
        places = "; ".join(f"rank {rank}: {_place(one.report)}" for rank, one in seen.items())
        with suppress(RuntimeError):
            self._store.set("end", cause)
        for rank, one in seen.items():  # a stopped process does not end by itself
            if rank and one.report.host == self._host:
                with suppress(ProcessLookupError):
                    os.kill(one.report.process, signal.SIGKILL)
        self._end(f"{cause}. Where the ranks were: {places}. {CONTINUES[0].upper()}{CONTINUES[1:]}")

    def _end(self, message: str) -> None:
        """End this process from a thread: the main thread may be inside a collective that never ends."""
        if message:
            print(f"error: {message}", file=sys.stderr)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(EXIT_CODE)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another process could not be reached, so that it is no cause by itself."""
    lost = ("onnection reset", "onnection closed", "onnection refused", "roken pipe", "Timed out", "imeout")
    name = type(error).__name__
    return name in ("DistNetworkError", "DistBackendError") or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in lost)
    )


def _how_far(report: Report) -> tuple[int, int]:
    return report.command, report.marks


def _named(rank: int, report: Report) -> str:
    return f"rank {rank} (host {report.host}, process {report.process}), in {_place(report)},"


def _place(report: Report) -> str:
    return f"{report.verb or 'no verb'}{f', {report.place}' if report.place else ''}"


def _process_state(report: Report, host: str) -> str:
    """The kernel's letter for a process of this host; `gone` where there is none, empty where it cannot be known."""
    if report.host != host:
        return ""
    try:
        return Path(f"/proc/{report.process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone" if Path("/proc/self").exists() else ""
