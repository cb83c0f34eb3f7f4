"""Measure how the cost of an update grows: `python -m benchmarks.scaling [size=M] [rounds=3] [budget=8192]
[plot=runs/update_scaling.png]`.

Seconds of one policy update by the project's own path (packing and optimizer step included; float32, 2 threads) against
group size, text tokens of the prompt, mean completion length and number of images, each varied alone. All points take
turns. Beside a table and a plot: the line fitted to seconds against packed tokens, its R^2, and how much more a token
costs at the far end of the axis than at the near end, by lines through the first and the last three points. The last
line is one JSON object.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.parts.arguments import arguments

from benchmarks.parts.measure import environment, spread, take_turns  # isort: skip  (before torch)

import torch

from benchmarks.parts.update_cases import SIZES, SharedUpdate, build_group, build_model, ragged
from model.sail_vl2 import SailVL2

THREADS = 2


@dataclass(frozen=True)
class Point:
    """One group."""

    group_size: int = 8
    prompt_text: int = 16
    completion: int = 128
    images: int = 1


AXES: dict[str, tuple[int, ...]] = {
    "group_size": (1, 2, 4, 8, 16, 32),
    "prompt_text": (16, 128, 256, 512, 1024),
    "completion": (32, 64, 128, 256, 512),
    "images": (0, 1, 2, 3, 4),
}


def update_of(model: SailVL2, point: Point, budget: int) -> SharedUpdate:
    lengths = ragged(point.completion, point.group_size, "scaling")
    group = build_group(model.config, 0, lengths, point.prompt_text, point.images)
    return SharedUpdate(model, [group], budget, THREADS)


def line(tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """(intercept, slope, R^2) of the least-squares line."""
    slope, intercept = statistics.linear_regression(tokens, seconds)
    return intercept, slope, statistics.correlation(tokens, seconds) ** 2


def fit(tokens: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    intercept, slope, r_squared = line(tokens, seconds)
    near, far = line(tokens[:3], seconds[:3])[1], line(tokens[-3:], seconds[-3:])[1]
    return {
        "milliseconds_per_token": round(1000 * slope, 4),
        "milliseconds_without_tokens": round(1000 * intercept, 2),
        "r_squared": round(r_squared, 5),
        "far_over_near_cost_per_token": round(far / near, 3),
    }


def measure(model: SailVL2, budget: int, rounds: int) -> dict[str, dict[str, Any]]:
    points = {axis: [replace(Point(), **{axis: value}) for value in values] for axis, values in AXES.items()}
    updates = {point: update_of(model, point, budget) for values in points.values() for point in values}
    seconds = take_turns({str(point): update.update for point, update in updates.items()}, rounds)
    found: dict[str, dict[str, Any]] = {}
    for axis, values in points.items():
        tokens = [sum(batch.inputs.num_tokens for batch in updates[point].batches()) for point in values]
        medians = [statistics.median(seconds[str(point)]) for point in values]
        found[axis] = {
            "values": list(AXES[axis]),
            "packed_tokens": tokens,
            "micro_batches": [len(updates[point].batches()) for point in values],
            "seconds": [round(value, 4) for value in medians],
            "spread": [spread(seconds[str(point)]) for point in values],
            **fit(tokens, medians),
        }
    return found


def print_table(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'axis':12} {'value':>6} {'tokens':>7} {'passes':>6} {'seconds':>8} {'ms/token':>9}")
    for axis, figures in found.items():
        rows = zip(*(figures[k] for k in ("values", "packed_tokens", "micro_batches", "seconds")), strict=True)
        for value, tokens, passes, seconds in rows:
            print(f"{axis:12} {value:6} {tokens:7} {passes:6} {seconds:8.3f} {1000 * seconds / tokens:9.3f}")
        print(
            f"{'':12} {figures['milliseconds_per_token']} ms a token added, R^2 {figures['r_squared']}, far / near "
            f"{figures['far_over_near_cost_per_token']}"
        )


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (axis, figures) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        tokens, slope = figures["packed_tokens"], figures["milliseconds_per_token"] / 1000
        start = figures["milliseconds_without_tokens"] / 1000
        axes.plot(tokens, [start + slope * value for value in tokens], color="0.7", linewidth=1)
        axes.plot(tokens, figures["seconds"], "o", color="C0", markersize=4)
        for x, y, value in zip(tokens, figures["seconds"], figures["values"], strict=True):
            axes.annotate(str(value), (x, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7)
        axes.set(title=axis.replace("_", " "), xlabel="packed tokens", xlim=(0, 1.1 * max(tokens)))
    longest = max(value for figures in found.values() for value in figures["seconds"])
    figure.axes[0].set(ylabel="seconds of an update", ylim=(0, 1.1 * longest))
    figure.savefig(path, dpi=150)


def main() -> None:
    options = dict(argument.split("=", 1) for argument in arguments(__doc__))
    size, budget, rounds = options.get("size", "M"), int(options.get("budget", 8192)), int(options.get("rounds", 3))
    path = Path(options.get("plot", "runs/update_scaling.png"))
    torch.set_num_threads(THREADS)
    found = measure(build_model(SIZES[size]), budget, rounds)
    print_table(found)
    plot(found, path)
    result = {
        "axes": found,
        "size": size,
        "budget": budget,
        "rounds": rounds,
        "plot": str(path),
        "environment": environment(torch.get_num_threads()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
