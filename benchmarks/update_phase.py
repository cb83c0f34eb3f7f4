"""One policy update, four ways: `python -m benchmarks.update_phase [sizes=T,M,L] [ratios=4:1,2:1,1:1,1:4] [rounds=N]
[budget=8192]`.

Groups of 8 about one image of 256 visual tokens with ragged completions; `ratios` are prompt : mean completion length.
An update is forward, policy loss on completion tokens, backward, clipping and fused AdamW, in float32 on 2 threads, by
(a) padded rows, (b) the same with the vision tower once per group, (c) this project's own path with `budget` tokens in
a micro-batch, its packing included, (d) TRL's loss on the same rollouts and weights. Loss and gradients of all four are
compared before anything is timed. How many rows a pass of (a), (b) and (d) has is measured for each case.

Ratios are medians over interleaved rounds. `ideal_ratio` is the FLOPs of (a) at its padded length over those of each
group taken once, prompt and image too; `share_of_ideal` is how much of it (a) / (c) in seconds reaches.
`padded_efficiency` is the FLOP/s of (a) over those of passes whose rows are of one length. The last line is one JSON
object; `cases` has the worst size for each figure.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.parts.arguments import arguments

from benchmarks.parts.measure import environment, median_ratio, spread, take_turns  # isort: skip  (before torch)

import torch
from torch import Tensor

from benchmarks.parts.flops import forward_flops, once_per_group, packed_work, total
from benchmarks.parts.padded_rows import PaddedUpdate
from benchmarks.parts.trl_update import TrlUpdate, build_optimizer, build_trainer, trl_name, twin_of
from benchmarks.parts.update_cases import (
    RATIOS,
    SIZES,
    SharedUpdate,
    build_group,
    build_model,
    case_groups,
    prompt_length,
)
from benchmarks.parts.update_memory import peak_memory
from model.config import SailVL2Config
from model.sail_vl2 import SailVL2
from rlhf.trajectory import Group

THREADS, BUDGET = 2, 8192
ROUNDS, SECONDS = (2, 5), 30
"""As many rounds as fit in the seconds, within these bounds."""
ROWS_PER_PASS, MAX_PASS_TOKENS = (1, 2, 4, 8, 16), 8192
BARS = {"share_of_ideal": 0.7, "speedup_over_trl at 4:1 and 2:1": 4.0, "padded_efficiency": 0.8}
LOW_IS_BAD = ("share_of_ideal", "padded_efficiency", "speedup_over_trl", "peak_memory_ratio", "ideal_ratio")
HIGH_IS_BAD = ("padded_seconds", "padded_one_vision_seconds", "shared_seconds", "trl_seconds")
TOLERANCE = 1e-3  # as a share of a parameter's largest gradient: float32 sums over thousands of tokens


@dataclass(frozen=True)
class Sides:
    """One case's contenders."""

    padded: PaddedUpdate
    padded_one_vision: PaddedUpdate
    shared: SharedUpdate
    trl: TrlUpdate
    equal_rows: PaddedUpdate
    """rows of the mean padded length, to see what the blocks do without padding"""
    chosen: dict[str, Any]
    """for each side that had a choice: rows in a pass -> seconds a row"""


def fastest_rows(build: Callable[[int], Any], row_tokens: float, num_rows: int) -> tuple[Any, dict[str, float]]:
    """The side with the rows per pass that take the least time each, and that time of all that were tried.

    Rows that are long by themselves gain nothing by company.
    """
    build(1).one_pass()
    seconds: dict[int, float] = {}
    for rows in ROWS_PER_PASS:
        if rows > num_rows or (rows > 1 and rows * row_tokens > MAX_PASS_TOKENS):
            break
        side = build(rows)
        seconds[rows] = min(timed(side.one_pass) for _ in range(2)) / rows
    best = min(seconds, key=lambda rows: seconds[rows])
    return build(best), {str(rows): round(value, 4) for rows, value in seconds.items()}


def timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def equal_rows(padded: PaddedUpdate, rows_per_pass: int, config: SailVL2Config) -> PaddedUpdate:
    """A quarter of the passes of (a), every row of the mean padded length."""
    length = round(padded.work.tokens / sum(len(batch.completions) for batch in padded.batches))
    lengths = [length - prompt_length(config)] * rows_per_pass
    groups = [build_group(config, i, lengths) for i in range(max(1, len(padded.batches) // 4))]
    return PaddedUpdate(padded.engine, groups, rows_per_pass, one_vision=False)


def build_sides(model: SailVL2, trl: tuple[Any, Any], groups: Sequence[Group], budget: int) -> Sides:
    shared = SharedUpdate(model, groups, budget, THREADS)
    lengths = [len(t.rollout.completion_ids) for group in groups for t in group.trajectories]
    many = prompt_length(model.config) + statistics.mean(lengths), len(lengths)
    engine = shared.engine
    padded, padded_rows = fastest_rows(lambda rows: PaddedUpdate(engine, groups, rows, one_vision=False), *many)
    one_vision, one_vision_rows = fastest_rows(lambda rows: PaddedUpdate(engine, groups, rows, one_vision=True), *many)
    theirs, trl_rows = fastest_rows(lambda rows: TrlUpdate(*trl, groups, rows), *many)
    rows_per_pass = len(padded.batches[0].completions)
    chosen = {"padded": padded_rows, "padded_one_vision": one_vision_rows, "trl": trl_rows}
    equal = equal_rows(padded, rows_per_pass, model.config)
    return Sides(padded, one_vision, shared, theirs, equal, chosen)


def check_same(sides: Sides) -> float:
    """Largest difference of any gradient from (c)'s, relative to the parameter's largest. Leaves every side warm.

    `RuntimeError` where loss or gradients differ. With old log-probs that are the policy's own the loss is the mean
    advantage whatever the model says: the gradients are the comparison.
    """
    loss = sides.shared.accumulate()
    expected = {name: gradient.clone() for name, gradient in sides.shared.gradients().items()}
    scale = max(abs(t.advantage) for group in sides.shared.groups for t in group.trajectories)
    sides.shared.engine.step()
    worst = 0.0
    for name, side in (("padded", sides.padded), ("padded, one vision pass", sides.padded_one_vision)):
        worst = max(worst, _difference(name, side.accumulate() - loss, side.gradients(), expected, scale))
        side.engine.step()
    renamed = {trl_name(name): gradient for name, gradient in expected.items()}
    worst = max(worst, _difference("TRL", sides.trl.accumulate() - loss, sides.trl.gradients(), renamed, scale))
    sides.trl.step()
    sides.equal_rows.update()
    return worst


def _difference(
    name: str, loss: float, found: dict[str, Tensor], expected: dict[str, Tensor], advantage: float
) -> float:
    if abs(loss) > 1e-5 * advantage:
        raise RuntimeError(f"{name}: its loss differs from ours by {loss}; the comparison would be void")
    worst, parameter = max(
        (float((found[key] - ours).abs().max() / ours.abs().max()), key) for key, ours in expected.items()
    )
    if not worst <= TOLERANCE:
        raise RuntimeError(f"{name}: gradients of {parameter} differ by {worst}; the comparison would be void")
    return worst


def measure(sides: Sides, groups: Sequence[Group], config: SailVL2Config, rounds: int) -> dict[str, Any]:
    seconds = take_turns(
        {
            "padded": sides.padded.update,
            "padded_one_vision": sides.padded_one_vision.update,
            "shared": sides.shared.update,
            "trl": sides.trl.update,
            "equal_rows": sides.equal_rows.update,
        },
        rounds,
        warm_up=0,
    )
    packed = total(packed_work(batch.inputs) for batch in sides.shared.batches())
    padded, ideal, as_packed, equal = (
        3 * forward_flops(config, work)
        for work in (sides.padded.work, once_per_group(groups), packed, sides.equal_rows.work)
    )
    real = sum(
        len(batch.completions) * prompt_length(config) + sum(batch.completions) for batch in sides.padded.batches
    )
    gain = median_ratio(seconds["padded"], seconds["shared"])
    efficiency = median_ratio([s / equal for s in seconds["equal_rows"]], [s / padded for s in seconds["padded"]])
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}_seconds": round(middle[name], 4) for name in ("padded", "padded_one_vision", "shared", "trl")},
        "ideal_ratio": round(padded / ideal, 3),
        "share_of_ideal": round(gain / (padded / ideal), 3),
        "padded_efficiency": round(efficiency, 3),
        "speedup": round(gain, 3),
        "speedup_over_one_vision": round(median_ratio(seconds["padded_one_vision"], seconds["shared"]), 3),
        "speedup_over_trl": round(median_ratio(seconds["trl"], seconds["shared"]), 3),
        "flops_as_packed_over_ideal": round(as_packed / ideal, 3),
        "padding_share": round(1 - real / sides.padded.work.tokens, 4),
        "gflops_per_second": {
            "padded": round(padded / middle["padded"] / 1e9, 1),
            "shared_ideal": round(ideal / middle["shared"] / 1e9, 1),
        },
        "micro_batches": len(sides.shared.batches()),
        "rows_per_pass": sides.chosen,
        "a_a_spread": {name: spread(values) for name, values in seconds.items()},
    }


def worst_sizes(by_size: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Each figure by the size where it is worst."""
    figures = {name: min(size[name] for size in by_size.values()) for name in LOW_IS_BAD}
    return {**figures, **{name: max(size[name] for size in by_size.values()) for name in HIGH_IS_BAD}}


def main() -> None:
    options = dict(argument.split("=", 1) for argument in arguments(__doc__))
    sizes = options.get("sizes", "T,M,L").split(",")
    ratios = options.get("ratios", ",".join(RATIOS)).split(",")
    budget = int(options.get("budget", BUDGET))
    torch.set_num_threads(THREADS)
    found: dict[str, dict[str, dict[str, Any]]] = {ratio: {} for ratio in ratios}
    difference = 0.0
    for size in sizes:
        model = build_model(SIZES[size])
        policy = twin_of(model)
        trl = build_trainer(policy), build_optimizer(policy)
        for ratio in ratios:
            groups = case_groups(size, ratio)
            sides = build_sides(model, trl, groups, budget)
            begin = time.perf_counter()
            worst = check_same(sides)
            fitting = round(SECONDS / (time.perf_counter() - begin))
            rounds = int(options.get("rounds", min(max(fitting, ROUNDS[0]), ROUNDS[1])))
            difference = max(difference, worst)
            figures = measure(sides, groups, model.config, rounds)
            found[ratio][size] = {
                **figures,
                **peak_memory(size, ratio, budget),
                "max_relative_gradient_difference": worst,
                "rounds": rounds,
            }
            print(f"{size} {ratio}: {json.dumps(found[ratio][size])}", flush=True)
    result = {
        "cases": {ratio: worst_sizes(by_size) for ratio, by_size in found.items()},
        "bars": BARS,
        "max_relative_gradient_difference": difference,
        "sizes": found,
        "budget": budget,
        "environment": environment(torch.get_num_threads()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
