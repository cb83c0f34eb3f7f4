"""Updates and sampling that benchmarks/RESULTS.md records, as the estimator takes them."""

from dataclasses import dataclass
from statistics import median

from benchmarks.parts.update_cases import GROUP_SIZE, NUM_GROUPS, RATIOS, SIZES, prompt_length
from model.config import Flavour, SailVL2Config, flavour_config
from model.engine.planning.estimate import MicroBatch
from model.engine.planning.machines import GIB, MACHINES, Gpu, Machine, cpu_machine

TWO_CORES = cpu_machine(24 * GIB, 160e9)
"""The two cores of 2026-11-26 with two threads: RESULTS has products at 80 GFLOP/s a core in the same days."""


@dataclass(frozen=True)
class Recorded:
    """An update: its micro-batches, and what was seen."""

    name: str
    date: str
    machine: Machine
    config: SailVL2Config
    batches: tuple[MicroBatch, ...]
    seconds: float
    peak_gib: float | None = None
    has_gated_kernel: bool = True


@dataclass(frozen=True)
class RecordedSampling:
    """Completion tokens a second of groups of 8, completions of 512 tokens after 1,088, on an H200."""

    name: str
    date: str
    groups: int
    rate: float


def on_h200() -> list[Recorded]:
    """The 2B model's updates with the present code, the gated product joined or not; older code is left out."""
    config, row = flavour_config(Flavour.sailvl2_2b), MicroBatch(1088, 8, 512, 4)
    four, own = MicroBatch(1088, 8, 512, 4, 4), MicroBatch(1088, 1, 512, 4, 8)
    rows: list[tuple[str, MicroBatch, float, float, bool]] = [
        ("1 group", row, median([0.223, 0.235, 0.248, 0.225, 0.237]), 47.1, True),
        ("1 group, products apart", row, 0.2295, 49.5, False),
        ("4 groups, loan C", four, 0.711, 90.4, True),
        ("4 groups, loan B", four, 0.725, 100.1, False),
        ("1 group as 8 rows, loan B", own, 0.628, 104.9, False),
    ]
    machine = MACHINES[Gpu.h200_141]
    return [
        Recorded(f"2B, {name}", "2026-11-27", machine, config, (batch,), seconds, peak, fused)
        for name, batch, seconds, peak, fused in rows
    ]


SAMPLING = [
    RecordedSampling("2B, recorded decoding, 1 group", "2026-11-27", 1, 3309),
    RecordedSampling("2B, recorded decoding, 16 groups", "2026-11-27", 16, 25701),
    RecordedSampling("2B, whole sampler, 1 group", "2026-11-27", 1, 3199),
    RecordedSampling("2B, whole sampler, 16 groups", "2026-11-27", 16, 22931),
]

_UPDATE_PHASE = {"T": (0.50, 0.59, 1.02, 3.75), "M": (1.16, 1.54, 2.87, 10.28), "L": (1.65, 2.38, 3.67, 15.45)}
_SCALING = {
    "group size": ((1, 2, 4, 8, 16, 32), (0.44, 0.50, 0.59, 0.81, 1.27, 2.15)),
    "text tokens": ((16, 128, 256, 512, 1024), (0.81, 0.87, 1.02, 1.15, 1.49)),
    "completion": ((32, 64, 128, 256, 512), (0.54, 0.64, 0.81, 1.19, 2.33)),
    "images": ((0, 1, 2, 3, 4), (0.39, 0.81, 1.23, 1.63, 2.18)),
}


def on_two_cores() -> list[Recorded]:
    """The updates of `update_phase` and `scaling`, with completions of their mean length."""
    found = []
    for size, seconds in _UPDATE_PHASE.items():
        for (ratio, share), one in zip(RATIOS.items(), seconds, strict=True):
            batches = _packed(size, round(prompt_length(SIZES[size]) * share))
            found.append(Recorded(f"{size} {ratio}", "2026-11-26", TWO_CORES, SIZES[size], batches, one))
    for axis, (values, seconds) in _SCALING.items():
        for value, one in zip(values, seconds, strict=True):
            batch = _varied(axis, value)
            found.append(Recorded(f"M, {axis} {value}", "2026-11-26", TWO_CORES, SIZES["M"], (batch,), one))
    return found


def _packed(size: str, completion: int, budget: int = 8192) -> tuple[MicroBatch, ...]:
    prompt, groups = prompt_length(SIZES[size]), NUM_GROUPS[size]
    length = prompt + GROUP_SIZE * completion
    if length > budget:
        most = (budget - prompt) // completion
        sizes = [min(most, GROUP_SIZE - start) for start in range(0, GROUP_SIZE, most)]
        return tuple(MicroBatch(prompt, count, completion, 1) for count in sizes) * groups
    most = budget // length
    rows = [min(most, groups - start) for start in range(0, groups, most)]
    return tuple(MicroBatch(prompt, GROUP_SIZE, completion, 1, count) for count in rows)


def _varied(axis: str, value: int) -> MicroBatch:
    match axis:
        case "group size":
            return MicroBatch(272, value, 128, 1)
        case "text tokens":
            return MicroBatch(256 + value, 8, 128, 1)
        case "completion":
            return MicroBatch(272, 8, value, 1)
        case _:
            return MicroBatch(16 + 256 * value, 8, 128, value)
