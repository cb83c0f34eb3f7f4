"""The tools of every side-by-side benchmark: turns, medians, an A/A spread, and the environment for the JSON."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Idle threads that spin for long slow a shared machine down; our entry points set the same. Import this before torch.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as our entry points set it; the same for all sides

PACKAGES = ("torch", "transformers", "trl", "numpy")


def take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each contender in each of `rounds` rounds; the order turns round by round, so that drift of the
    machine meets all of them alike."""
    for run in contenders.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            begin = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def spread(seconds: Sequence[float]) -> list[float]:
    """[lowest, highest] over the median: how far the same work differs from itself."""
    middle = statistics.median(seconds)
    return [round(min(seconds) / middle, 3), round(max(seconds) / middle, 3)]


def environment(threads: int) -> dict[str, Any]:
    """Hardware, versions and load, for the JSON of a benchmark."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "spin_count": os.environ["GOMP_SPINCOUNT"],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
