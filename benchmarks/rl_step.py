"""A whole step of RL, ours against TRL's: `python -m benchmarks.rl_step [points=quickstart,visual] [seeds=0,1,2]
[steps=60] [visual_steps=10] [skip=true] [run=runs/rl_step] [data=data/digits]`.

Sampling, rewards and update of the quickstart's recipe (DAPO's loss, no KL) without dynamic sampling, which TRL lacks:
both sides sample, score and train on as many completions. Ours puts those whose advantage is 0 through no pass, as they
add nothing to the gradient (`zero_advantage_share` of the tokens); `skip=false` turns that off. The same checkpoint,
prompts in the same order, batch, learning rate and rewards; float32, two threads. The two runs of a seed are processes
that take turns step by step, so that drift of the machine meets both. Seconds are those that each spends inside steps:
start-up, evaluation, logs and checkpoints are outside. `quickstart` also compares accuracies.
Finished runs are kept in `run` and not made again. The last line is one JSON object.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.parts.arguments import arguments
from benchmarks.parts.measure import environment
from benchmarks.parts.rl_step_arm import Arm
from conf.cli import assign, load_config

THREADS, BAR, POINTS_OF_ACCURACY, MARGIN = 2, 4.0, 4, 3.0
COMPLETION_TOKENS = 48  # the quickstart's limit
FEWEST_STEPS = 4  # the first warms up, quartiles need some
SIDES = ("ours", "trl")
MICRO_BATCHES = (8, 32, 128)  # sizes tried for TRL, whose step has 128 rows
PHASES = ("seconds", "sampling", "rewards", "update", "completion_tokens", "zero_advantage_share")
COMMON = [
    "recipe=quickstart",
    "algorithm.group_filter=none",
    f"engine.num_threads={THREADS}",
    "run.save_every=1000000",
    "engine.device=cpu",
]
VISUAL = [
    "rollouts.max_prompt_tokens=384",
    "reward.functions=[examples/brevity_reward.py:brevity]",  # random text is never right: this gives advantages
    "optimizer.learning_rate=1e-6",  # lengths stay as they are
]


def module(name: str, arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", name, *arguments], check=True, stdout=sys.stderr)


def longcot_checkpoint(folder: Path, data: Path, seed: int) -> Path:
    """Made by the first two stages of the quickstart's pipeline, if it is not there."""
    from rlhf.planning.stages import plan

    checkpoint = folder / "longcot_sft" / "final"
    if not checkpoint.exists():
        settings = [assign("run.dir", folder), f"run.seed={seed}", assign("data", data), f"num_threads={THREADS}"]
        stages, _ = plan(load_config("pipeline", ["recipe=quickstart", *settings])[0])
        for stage in stages[:2]:
            module(stage.module, stage.overrides)
    return checkpoint


def visual_checkpoint(folder: Path) -> Path:
    """Random weights of the quickstart's size whose tower sees 1,024 patches, which make 256 visual tokens; its turns
    end as in `benchmarks.sampling`."""
    from benchmarks.parts.sampling_models import SIZES, planted_model
    from benchmarks.sampling import LIMIT_OVER_MEAN
    from model.checkpoint import save_model

    if not folder.exists():
        size = replace(SIZES["T"], vision_width=128, vision_layers=3)
        save_model(folder, *planted_model(size, 256, LIMIT_OVER_MEAN / COMPLETION_TOKENS))
    return folder


def fastest_micro_batch(folder: Path, overrides: list[str]) -> int:
    """Rows of a forward and backward pass that suit TRL best on these prompts, from two steps of each."""
    path = folder / "micro_batch.json"
    if not path.exists():
        seconds = {}
        for size in MICRO_BATCHES:
            kept = [item for item in overrides if not item.startswith("trainer.max_steps=")]
            own = [*kept, f"trainer.micro_batch_size={size}", "trainer.max_steps=3"]
            shutil.rmtree(folder / str(size), ignore_errors=True)
            child = Child("trl", folder / str(size), own, "", 1)
            child.wait()
            while child.is_running:
                child.go_on()
            result = json.loads((folder / str(size) / "result.json").read_text())
            seconds[size] = statistics.mean(step["seconds"] for step in result["steps"][1:])
            print(f"  TRL, {size} rows a pass: {seconds[size]:.2f} s a step", file=sys.stderr, flush=True)
        path.write_text(json.dumps(seconds))
    seconds = json.loads(path.read_text())
    return int(min(seconds, key=seconds.__getitem__))


def run_pair(
    folder: Path, overrides: list[str], own: dict[str, list[str]], held_out: str, every: int
) -> dict[str, Any]:
    """Results of both sides, each with overrides of its own, from turns of one step each."""
    results = {side: folder / side / "result.json" for side in SIDES}
    if not all(path.exists() for path in results.values()):
        shutil.rmtree(folder, ignore_errors=True)
        children = []
        for side in SIDES:  # one after the other: each comes to the end of its first step before the next one starts
            children.append(Child(side, folder / side, [*overrides, *own[side]], held_out, every))
            children[-1].wait()
        while any(child.is_running for child in children):
            for child in children:
                child.go_on()
    return {side: json.loads(path.read_text()) for side, path in results.items()}


class Child:
    """A process that runs one arm, a step at a time."""

    def __init__(self, side: str, folder: Path, overrides: list[str], held_out: str, every: int) -> None:
        folder.mkdir(parents=True)
        self.is_running = True
        self._turns, descriptor = os.pipe()
        own = [*overrides, assign("run.dir", folder / "run")]
        arm = Arm(side, own, str(folder), held_out, every, descriptor)
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.parts.rl_step_arm", json.dumps(asdict(arm))],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[descriptor],
            )
        os.close(descriptor)

    def wait(self) -> None:
        """Until its step is over, or all of it."""
        if os.read(self._turns, 1):
            return
        self.is_running = False
        if self._process.wait():
            raise RuntimeError(f"exit code {self._process.returncode}: {self._log.read_text()[-2000:]}")

    def go_on(self) -> None:
        if self.is_running and self._process.stdin:
            self._process.stdin.write(b".")
            self._process.stdin.flush()
            self.wait()


def speed(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of steps that stood next to each other; the first step of a run warms up."""
    steps = {side: [step for pair in pairs for step in pair[side]["steps"][1:]] for side in SIDES}
    seconds = {side: [step["seconds"] for step in steps[side]] for side in SIDES}
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["trl"], strict=True)]
    neighbours = [a / b for a, b in zip(seconds["ours"], seconds["ours"][1:], strict=False)]
    return {
        "speedup": round(statistics.median(ratios), 3),
        "ratio_quartiles": quartiles(ratios),
        "a_a_quartiles": quartiles(neighbours),
        "steps": len(ratios),
        **{
            side: {name: round(statistics.median(step[name] for step in steps[side]), 4) for name in PHASES}
            for side in SIDES
        },
    }


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(values, n=4)[::2]]


def accuracies(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per seed, greedy and sampled, in per cent of the held-out prompts; and the curves."""
    found: dict[str, Any] = {}
    for side in SIDES:
        for name, key in (("accuracy_think", "accuracy"), ("accuracy_think_sampled", "accuracy_sampled")):
            found[f"{key}_{side}"] = [round(100 * pair[side][name], 1) for pair in pairs]
        found[f"curves_{side}"] = [pair[side]["curve"] for pair in pairs]
    means = {side: statistics.mean(found[f"accuracy_{side}"]) for side in SIDES}
    found["accuracy_kept"] = means["ours"] >= means["trl"] - MARGIN
    return found


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in arguments(__doc__))
    root, data = Path(settings.get("run", "runs/rl_step")), Path(settings.get("data", "data/digits"))
    seeds = [int(seed) for seed in settings.get("seeds", "0,1,2").split(",")]
    skip = settings.get("skip", "true")
    steps, visual_steps = int(settings.get("steps", "60")), int(settings.get("visual_steps", "10"))
    if min(steps, visual_steps) < FEWEST_STEPS:
        raise SystemExit(f"steps, visual_steps: expected at least {FEWEST_STEPS}, found {steps} and {visual_steps}")
    module("examples.digits.write", [f"out={data}"])
    prompts = [*COMMON, assign("prompts", data / "train.jsonl")]
    points: dict[str, Any] = {}
    for point in settings.get("points", "quickstart,visual").split(","):
        pairs = []
        for seed in seeds if point == "quickstart" else seeds[:1]:
            if point == "quickstart":
                start, kind = longcot_checkpoint(root / f"seed_{seed}", data, seed), [f"trainer.max_steps={steps}"]
            else:
                start, kind = visual_checkpoint(root / "visual"), [f"trainer.max_steps={visual_steps}", *VISUAL]
            overrides = [*prompts, *kind, assign("checkpoint", start), f"run.seed={seed}"]
            held_out = str(data / "test.jsonl") if point == "quickstart" else ""
            folder = root / f"{point}_{seed}_{steps if held_out else visual_steps}_{skip}"
            rows = fastest_micro_batch(root / f"{point}_rows_of_trl", overrides)
            own = {"ours": [f"trainer.skip_zero_advantage={skip}"], "trl": [f"trainer.micro_batch_size={rows}"]}
            pairs.append(run_pair(folder, overrides, own, held_out, max(1, steps // POINTS_OF_ACCURACY)))
            print(f"{point}, seed {seed}: {speed(pairs[-1:])['speedup']}", flush=True)
        points[point] = {**speed(pairs), **(accuracies(pairs) if point == "quickstart" else {})}
    result = {
        "speedup_over_trl": min(point["speedup"] for point in points.values()),
        "bar": BAR,
        "points": points,
        "environment": environment(THREADS),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
