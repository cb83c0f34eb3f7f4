"""Everything that the report draws and counts of a run: curves, falls, the funnel of draws, phases, differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.json_values import JsonObject
from rlhf.reporting.run_data import RunData

MOST_POINTS = 1000
"""Steps of a curve that are drawn. Of a longer run every n-th step is, and the last one."""
MOST_FALLS = 5
FALL_WINDOW = 3
"""Steps before a step, with whose mean its accuracy is compared."""

_NO_CURVES = ("step",)

CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Reward and accuracy", ("reward", "accuracy", "reward/shaped", "answer_share")),
    ("Parts of the reward", ("reward/*",)),
    ("Held-out accuracy", ("eval/accuracy_*", "eval/pass_at_*", "eval/score_*")),
    ("Held-out loss", ("eval/nll_per_token", "held_out/*")),
    ("Dead groups by reason, share", ("groups/dead_share", "dead_share/*")),
    ("Length of completions, tokens", ("length/mean", "length/max")),
    ("Shares of completions", ("overlong_share", "unscorable_share", "zero_advantage_share")),
    ("Gap between sampler and trainer, nats", ("sampler_gap/mean", "sampler_gap/max")),
    ("Divergence", ("kl/old", "kl/sampler", "kl/reference")),
    ("Entropy, nats", ("entropy",)),
    ("Clipped tokens, share", ("clip/low_share", "clip/high_share", "clip/dual_share")),
    ("Loss", ("loss", "nll_per_token")),
    ("Norm of the gradient", ("grad_norm",)),
    ("Learning rate", ("learning_rate",)),
    ("Seconds of a step", ("time/collect", "time/prepare", "time/update", "time/sync", "time/evaluate", "time/data")),
)
"""Title -> metrics that share an axis. `*` stands for the rest of a name. What is in none gets a chart of its own."""


@dataclass(frozen=True)
class Fall:
    """A step at which a metric is below its mean over the steps before."""

    step: int
    metric: str
    before: float
    after: float

    @property
    def size(self) -> float:
        return self.before - self.after


@dataclass(frozen=True)
class Difference:
    key: str
    here: str
    there: str


def names_of(metrics: Sequence[JsonObject]) -> list[str]:
    """The metrics that are a number in some line, in the order in which they appear."""
    found: dict[str, None] = {}
    for row in metrics:
        found |= {name: None for name, value in row.items() if name not in _NO_CURVES and is_number(value)}
    return list(found)


def charts_of(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(title, metrics) of the charts that a run with these metrics has, in their order."""
    charts: list[tuple[str, list[str]]] = []
    left = dict.fromkeys(names)
    for title, patterns in CHARTS:
        own = [name for pattern in patterns for name in names if name in left and _matches(name, pattern)]
        own = list(dict.fromkeys(own))
        for name in own:
            del left[name]
        if own:
            charts.append((title, own))
    return charts + [(name, [name]) for name in left]


def num_named_charts(names: Sequence[str]) -> int:
    """How many of `charts_of` have a title of their own; the others are named after their metric."""
    return sum(title in dict(CHARTS) for title, _ in charts_of(names))


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def curves(metrics: Sequence[JsonObject]) -> tuple[list[int], dict[str, list[float | None]], int]:
    """(steps, metric -> its values at them, n where every n-th step is drawn). A gap is None."""
    every = max(1, math.ceil(len(metrics) / MOST_POINTS))
    rows = list(metrics[::every])
    if metrics and rows[-1] is not metrics[-1]:
        rows.append(metrics[-1])
    values = {name: [rounded(row.get(name)) for row in rows] for name in names_of(rows)}
    return [int(row["step"]) for row in rows], values, every


def largest_falls(metrics: Sequence[JsonObject], most: int = MOST_FALLS) -> list[Fall]:
    """The steps at which accuracy is furthest below its mean over the three steps before, the largest fall first.

    The reward is looked at where no answer was judged. Steps beside a larger fall are left out, because they are the
    same event.
    """
    metric = next((name for name in ("accuracy", "reward") if any(is_number(row.get(name)) for row in metrics)), "")
    known = [(int(row["step"]), float(row[metric])) for row in metrics if metric and is_number(row.get(metric))]
    falls: list[Fall] = []
    for number in range(1, len(known)):
        before = [value for _, value in known[max(0, number - FALL_WINDOW) : number]]
        step, after = known[number]
        fall = Fall(step, metric, sum(before) / len(before), after)
        if fall.size > 0:
            falls.append(fall)
    chosen: list[Fall] = []
    for fall in sorted(falls, key=lambda one: (-one.size, one.step)):
        if len(chosen) < most and all(abs(fall.step - other.step) >= FALL_WINDOW for other in chosen):
            chosen.append(fall)
    return chosen


def funnel(run: RunData) -> list[tuple[str, int]]:
    """(end, draws) of the ledger: `drawn` first, then `trained`, the reasons of drops, and `in flight`. Empty without a
    ledger."""
    if not run.ends:
        return []
    last = next((row for row in reversed(run.metrics) if is_number(row.get("ledger/draws"))), {})
    in_flight = int(last.get("ledger/in_flight") or 0)
    closed = sum(run.ends.values())
    lines = [("drawn", closed + in_flight), ("trained", run.ends.get("trained", 0))]
    lines += [(reason, count) for reason, count in run.ends.items() if reason != "trained"]
    return lines + ([("in flight", in_flight)] if in_flight else [])


def phases(metrics: Sequence[JsonObject]) -> list[tuple[str, float]]:
    """(phase, seconds in all) of the timed phases of a run's steps, the longest first."""
    totals: dict[str, float] = {}
    for name in ("collect", "prepare", "update", "sync", "evaluate", "data"):
        values = [row[f"time/{name}"] for row in metrics if is_number(row.get(f"time/{name}"))]
        if total := float(sum(values)):
            totals[name] = total
    return sorted(totals.items(), key=lambda pair: -pair[1])


def differences(here: Mapping[str, object], there: Mapping[str, object]) -> list[Difference]:
    """The settings that differ, by key. Where a folder lies is none."""
    keys = sorted((here.keys() | there.keys()) - {"run.dir"})
    absent = object()
    return [
        Difference(key, _shown(here, key), _shown(there, key))
        for key in keys
        if here.get(key, absent) != there.get(key, absent)
    ]


def _shown(settings: Mapping[str, object], key: str) -> str:
    return str(settings[key])[:300] if key in settings else "(absent)"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded(value: object) -> float | None:
    """A number with five significant digits, None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
