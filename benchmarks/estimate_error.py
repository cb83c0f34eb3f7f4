"""How far is the estimator from what was measured? `python -m benchmarks.estimate_error [fresh=true] [rounds=3]`.

The estimates of `model.engine.planning.estimate` beside every update and every sampling rate of
benchmarks/RESULTS.md that it speaks of, and, with fresh=true, beside updates that are measured now: peak memory
beyond what the process held before, in one process and in two, and the processor's seconds of an update in one. The
last line is one JSON object.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.parts.arguments import arguments

from benchmarks.parts.measure import environment  # isort: skip  (before torch)

from benchmarks.parts.measured_update import Case, measure
from benchmarks.parts.recorded_updates import SAMPLING, Recorded, on_h200, on_two_cores
from benchmarks.parts.update_cases import SIZES
from model.config import Flavour, flavour_config
from model.engine.planning.estimate import Job, MicroBatch, Spread, memory, update_seconds
from model.engine.planning.machines import GIB, MACHINES, Gpu, cpu_machine
from rlhf.planning.step import sampling_seconds

MEMORY_BAR, TIME_BAR = 0.10, 0.25
FRESH = (
    Case("T", 16, 136, 8),
    Case("M", 16, 136, 8),
    Case("L", 16, 64, 8),
    Case("L", 256, 256, 8),
    Case("W", 16, 64, 4),
    Case("W", 256, 128, 4, checkpointing=True),
    Case("W", 16, 64, 4, adapter_rank=16),
    Case("L", 16, 64, 8, ranks=2),
    Case("W", 16, 64, 4, ranks=2),
    Case("W", 256, 128, 4, checkpointing=True, ranks=2),
)

Row = tuple[str, str, float, float, float]
"""(case, what: GiB, MiB or s, measured, estimated, error)."""


def row(name: str, what: str, measured: float, estimated: float) -> Row:
    return name, what, measured, estimated, estimated / measured - 1


def of_recorded(one: Recorded) -> Iterator[Row]:
    jobs = [
        Job(one.config, batch, on_gpu=one.machine.is_gpu, has_gated_kernel=one.has_gated_kernel)
        for batch in one.batches
    ]
    times = [update_seconds(job, one.machine) for job in jobs]
    yield row(one.name, "s", one.seconds, sum(time.compute for time in times) + times[0].step)
    if one.peak_gib is not None:
        yield row(one.name, "GiB", one.peak_gib, max(memory(job).total for job in jobs) / GIB)


def of_sampling() -> Iterator[Row]:
    job = Job(flavour_config(Flavour.sailvl2_2b), MicroBatch(1088, 8, 512, 4))
    for one in SAMPLING:
        tokens = 8 * one.groups * 512
        taken = sampling_seconds(job, MACHINES[Gpu.h200_141], 8 * one.groups, 8, 1088, 512)
        yield row(one.name, "s", tokens / one.rate, taken)


def of_fresh(case: Case) -> Iterator[Row]:
    found = measure(case)
    job = Job(
        SIZES[case.size],
        MicroBatch(256 + case.text, case.group, case.completion, 1),
        spread=Spread(case.ranks > 1, case.ranks),
        checkpointing=case.checkpointing,
        on_gpu=False,
        adapter=case.adapter,
    )
    kinds = [f"{case.ranks} processes"] if case.ranks > 1 else []
    kinds += ["recomputed"] if case.checkpointing else []
    kinds += [f"adapters of rank {case.adapter_rank}"] if case.adapter_rank else []
    name = ", ".join([f"{case.size} {256 + case.text} + {case.group} x {case.completion}", *kinds])
    yield row(name, "MiB", found["bytes"] / 2**20, memory(job).total / 2**20)
    if case.ranks == 1:
        yield row(name, "s", found["seconds"], update_seconds(job, cpu_machine(24 * GIB, found["flops"])).total)


def main() -> None:
    options = dict(argument.split("=", 1) for argument in arguments(__doc__))
    rows: list[Row] = []

    def add(found: Iterator[Row]) -> None:
        for one in found:
            rows.append(one)
            name, what, measured, estimated, error = one
            print(f"{name:48} {what:4} measured {measured:10.3f} estimated {estimated:10.3f} {error:+8.1%}", flush=True)

    for recorded in [*on_h200(), *on_two_cores()]:
        add(of_recorded(recorded))
    add(of_sampling())
    if options.get("fresh", "true") == "true":
        for case in FRESH:
            add(of_fresh(replace(case, rounds=int(options.get("rounds", 3)))))
    errors = {kind: [abs(one[4]) for one in rows if (one[1] == "s") is (kind == "time")] for kind in ("memory", "time")}
    bars = {"memory": MEMORY_BAR, "time": TIME_BAR}
    result = {
        kind: {
            "cases": len(found),
            "worst": round(max(found), 3),
            "bar": bars[kind],
            "beyond_bar": [one[0] for one in rows if (one[1] == "s") is (kind == "time") and abs(one[4]) > bars[kind]],
        }
        for kind, found in errors.items()
    }
    print(json.dumps({**result, "environment": environment(1)}))


if __name__ == "__main__":
    main()
