"""A pool of two workers under 10,000 hostile answers: `python -m benchmarks.reward_pool [ANSWERS]`.

Every answer goes to a worker as a `math` task with a deadline of 0.25 s and a memory limit of 256 MB beyond the size of
the process; the fast path is left out, so that nothing is kept from the workers. An answer counts as run into a limit
only where the pool killed its worker (`timeout`) or the worker met its memory limit (`memory`). `worst_overrun_seconds`
is the longest time from handing an answer to a worker until its process was gone, less the deadline. Throughput: the
same ordinary answers in alternating windows through the pool that has been through all this and through one that has
not, both idle and warm before. Memory of the parent: resident size at the end of any batch over that at the start. The
last line is one JSON object.
"""

import gc
import itertools
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import Any

from benchmarks.parts.arguments import arguments
from benchmarks.parts.hostile_answers import FAMILIES, hostile_answers
from benchmarks.parts.ordinary_answers import SYMBOLIC, ordinary_answers
from rewards.result import Claim, Outcome
from rewards.sandbox.pool import REASON_KINDS, ScoringPool
from rewards.sandbox.tasks import Verify

ANSWERS, BATCH, SEED = 10_000, 250, 20261124
DEADLINE, MEMORY_MB, WORKERS = 0.25, 256, 2
WINDOWS, WINDOW_ANSWERS = 5, 600
MOST = {
    "worst_overrun_seconds": 0.25,
    "parent_memory_growth_mb": 50,
    "uncaught_exceptions": 0,
    "respawn_seconds": 0.3,
}
LEAST = {"timeouts": 300, "memory_failures": 100, "throughput_after_over_before": 0.9}

Tasks = list[Verify]


def task(answer: str, reference: str) -> Verify:
    return Verify("math", Claim(f"\\boxed{{{answer}}}", answer, reference))


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def kind_of(outcome: Outcome) -> str:
    if outcome.value is not None:
        return "right" if outcome.value >= 1.0 else "wrong"
    return next(kind for kind in REASON_KINDS if outcome.reason.startswith(kind))


class Storm:
    """Counts of what became of the hostile answers."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.worst_seconds, self.growth_mb, self.exceptions = 0.0, 0.0, 0

    def run(self, pool: ScoringPool, num_answers: int) -> None:
        answers = hostile_answers(num_answers, SEED)
        gc.collect()
        start_mb, begin = resident_mb(), time.monotonic()
        while batch := list(itertools.islice(answers, BATCH)):
            try:
                outcomes = pool.run([task(*pair) for _, pair in batch])
            except Exception as error:
                print(f"uncaught: {error!r}", file=sys.stderr)
                self.exceptions += 1
                continue
            for (family, pair), outcome in zip(batch, outcomes, strict=True):
                self.counts[family][kind_of(outcome)] += 1
                self.worst_seconds = max(self.worst_seconds, outcome.seconds)
                if kind_of(outcome) in ("died", "error"):
                    print(f"{family}: {pair[0][:70]!r} {outcome.value} {outcome.reason[:150]}", file=sys.stderr)
            self.growth_mb = max(self.growth_mb, resident_mb() - start_mb)
            done = sum(counter.total() for counter in self.counts.values())
            print(f"{done} answers, {time.monotonic() - begin:.0f} s", file=sys.stderr)


def throughput(harmed: ScoringPool, fresh: ScoringPool, tasks: Tasks) -> tuple[float, dict[str, list[float]]]:
    """Answers per second of the harmed pool over those of the fresh one: median of windows that take turns."""
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    pools = [("before", fresh), ("after", harmed)]
    for window in range(-1, WINDOWS):  # the first warms both
        for name, pool in pools if window % 2 else reversed(pools):
            begin = time.perf_counter()
            pool.run(tasks)
            if window >= 0:
                seconds[name].append(time.perf_counter() - begin)
    rates = {name: [round(len(tasks) / value, 1) for value in values] for name, values in seconds.items()}
    ratios = [after / before for after, before in zip(rates["after"], rates["before"], strict=True)]
    return statistics.median(ratios), rates


def respawn_seconds(quick: Verify, repeats: int = 10) -> list[float]:
    """From the outcome of a killed task to that of the next one, which needs a new process."""
    found = []
    with ScoringPool(1, DEADLINE, MEMORY_MB) as pool:
        pool.run([quick])
        for number in range(repeats):
            (killed,) = pool.run([task(f"\\prod_{{k=1}}^{{10^{{12}}}}(k^{{{number + 50}}}+1)", "3")])
            begin = time.perf_counter()
            (answered,) = pool.run([quick])
            if killed.reason.startswith("timeout") and answered.value == 1.0:
                found.append(time.perf_counter() - begin)
    return found


def measure(num_answers: int) -> dict[str, Any]:
    in_threads: list[threading.ExceptHookArgs] = []
    threading.excepthook = in_threads.append
    storm = Storm()
    ordinary = [task(*pair) for _, pair in ordinary_answers(SYMBOLIC, WINDOW_ANSWERS, SEED, set())]
    with ScoringPool(WORKERS, DEADLINE, MEMORY_MB) as harmed:
        harmed.run(ordinary[:50])
        storm.run(harmed, num_answers)
        with ScoringPool(WORKERS, DEADLINE, MEMORY_MB) as fresh:
            ratio, rates = throughput(harmed, fresh, ordinary)
    respawns = respawn_seconds(task("\\sqrt{9}", "3"))
    total = sum(storm.counts.values(), Counter())
    return {
        "answers": total.total(),
        "families": len(FAMILIES),
        "deadline_seconds": DEADLINE,
        "memory_limit_mb": MEMORY_MB,
        "worst_overrun_seconds": round(max(0.0, storm.worst_seconds - DEADLINE), 3),
        "parent_memory_growth_mb": round(storm.growth_mb, 1),
        "uncaught_exceptions": storm.exceptions + len(in_threads),
        "respawn_seconds": round(max(respawns), 3) if respawns else None,
        "respawn_seconds_median": round(statistics.median(respawns), 3) if respawns else None,
        "throughput_after_over_before": round(ratio, 3),
        "throughput_windows": rates,
        "timeouts": total["timeout"],
        "memory_failures": total["memory"],
        "counts": dict(total),
        "counts_by_family": {family: dict(storm.counts[family]) for family in FAMILIES},
        "bars": {"at_most": MOST, "at_least": LEAST},
    }


def main() -> None:
    begin = time.monotonic()
    result = measure(int([*arguments(__doc__), ANSWERS][0]))
    print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr)
    print(json.dumps(result))
    too_much = any(result[name] is None or result[name] > bar for name, bar in MOST.items())
    if too_much or any(result[name] < bar for name, bar in LEAST.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
