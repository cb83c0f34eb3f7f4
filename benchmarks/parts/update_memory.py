"""Peak memory of an update: `python -m benchmarks.parts.update_memory WAY SIZE RATIO BUDGET [ROWS]`.

WAY is `shared`, the project's own path with BUDGET tokens in a micro-batch, or `padded`, rows that repeat the prompt,
ROWS in a pass. Memory is the peak of the process in the largest forward and backward pass beyond its peak before;
weights, gradients and the optimizer's moments are part of the level before. The last line is one JSON object.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import measure  # noqa: F401  (before torch: it sets how long idle threads spin)
from benchmarks.parts.arguments import arguments
from benchmarks.parts.padded_rows import PaddedUpdate
from benchmarks.parts.update_cases import SIZES, SharedUpdate, build_group, build_model, case_groups


def peak_memory(size: str, ratio: str, budget: int) -> dict[str, Any]:
    """Padded over shared, with as many completions in a pass on both sides (the mean of (c)'s micro-batches)."""
    shared = _in_fresh_process("shared", size, ratio, str(budget))
    rows = str(shared["completions_per_pass"])
    padded = _in_fresh_process("padded", size, ratio, str(budget), rows)
    return {
        "peak_memory_ratio": round(padded["bytes"] / shared["bytes"], 3),
        "peak_memory_mebibytes": {"padded": padded["bytes"] >> 20, "shared": shared["bytes"] >> 20},
        "completions_per_pass_for_memory": shared["completions_per_pass"],
    }


def _in_fresh_process(*arguments: str) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.parts.update_memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(way: str, size: str, ratio: str, budget: int, rows: int) -> dict[str, int]:
    model, groups = build_model(SIZES[size]), case_groups(size, ratio)
    shared = SharedUpdate(model, groups, budget)
    completions = sum(len(group.trajectories) for group in groups)
    per_pass = rows or -(-completions // len(shared.batches()))
    side = shared if way == "shared" else PaddedUpdate(shared.engine, groups, per_pass, one_vision=False)
    _touch(shared)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now
    before = peak_bytes()
    side.largest_pass()
    return {"bytes": peak_bytes() - before, "completions_per_pass": per_pass}


def peak_bytes() -> int:
    """Peak memory of this process since the peak was last reset. ru_maxrss will not do: it begins with the peak of the
    process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status: expected a line VmHWM, found none")


def _touch(shared: SharedUpdate) -> None:
    """Bring gradients, moments, thread pools and kernels into memory, by a group without an image."""
    model = shared.engine.model
    SharedUpdate(model, [build_group(model.config, 0, [2, 2], num_images=0)], 64).accumulate()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.ones_like(parameter)
    shared.engine.step()


def main() -> None:
    way, size, ratio, budget, *rows = arguments(__doc__)
    print(json.dumps(measure_here(way, size, ratio, int(budget), int(rows[0]) if rows else 0)))


if __name__ == "__main__":
    main()
