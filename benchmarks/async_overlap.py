"""How much of the overlap that sampling ahead could give does it give? `python -m benchmarks.async_overlap [steps=30]
[ratio=1.0] [run=runs/async_overlap]`.

The project's own loop, engine and rewards with the tiny model, and a sampler that takes a fixed time for each step
without using the processor, as samplers on other devices do: `ratio` times what the trainer needs for the rest of a
step. At best a step that samples ahead takes as long as the longer of the two. The last line is one JSON object.
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.arguments import arguments

from benchmarks.parts.measure import environment, spread  # isort: skip  (before torch)

import rollouts.build
from benchmarks.parts.scripted_sampler import ScriptedSampler
from conf.cli import load_config
from examples.digits.write import write
from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.run.folder import RunFolder
from rlhf.stage import run_stage

LENGTH, GROUPS, THREADS, BAR = 24, 16, 2, 0.9


def run(folder: Path, name: str, steps: int, seconds: float, staleness: int) -> list[dict[str, Any]]:
    """Metrics of each step, with its wall-clock seconds."""
    ends: list[float] = []
    log = RunFolder.log

    def noted(self: RunFolder, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        ends.append(time.monotonic())

    def build(model: Any, processor: Any, config: Any, run_seed: int) -> ScriptedSampler:
        allowed = set(range(processor.tokenizer.num_entries)) - set(processor.barred_ids)
        end = processor.tokenizer.end_id
        return ScriptedSampler(sorted(allowed - {end}), end, LENGTH, seconds, run_seed)

    rollouts.build.build_worker = build
    overrides = [
        "recipe=quickstart",
        f"checkpoint={folder / 'model'}",
        f"prompts={folder / 'data' / 'train.jsonl'}",
        f"run.dir={folder / name}",
        "algorithm=grpo",
        "algorithm.correction.rule=token_truncate",
        "trainer.max_sampler_gap=1000",
        f"trainer.max_steps={steps}",
        f"trainer.groups_per_step={GROUPS}",
        f"trainer.max_draws={GROUPS}",
        "run.save_every=100000",
        f"engine.num_threads={THREADS}",
        f"rollouts.max_staleness={staleness}",
    ]
    RunFolder.log = noted  # pyright: ignore
    try:
        run_stage(*load_config("rlhf", overrides))
    finally:
        RunFolder.log = log
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    walls = [after - before for before, after in zip([ends[0], *ends], ends, strict=False)]
    return [{**line, "wall": wall} for line, wall in zip(lines, walls, strict=True)]


def main() -> None:
    options = dict(argument.split("=", 1) for argument in arguments(__doc__))
    steps, ratio = int(options.get("steps", 30)), float(options.get("ratio", 1.0))
    folder = Path(options.get("run", "runs/async_overlap"))
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / "data", seed=0, share=0.1)
    save_model(folder / "model", *build_flavour(Flavour.tiny, 0))
    first = run(folder, "no_latency", 8, 0.0, 0)
    training = statistics.median(line["wall"] for line in first[2:])
    seconds = ratio * training
    alone = run(folder, "in_turn", steps, seconds, 0)
    ahead = run(folder, "ahead", steps, seconds, 1)
    # The first step cannot overlap with anything, and the last has nothing to run ahead for.
    waits = [line["time/collect"] for line in alone[2:-1]]
    rest = [line["wall"] - line["time/collect"] for line in alone[2:-1]]
    in_turn = [line["wall"] for line in alone[2:-1]]
    overlapped = [line["wall"] for line in ahead[2:-1]]
    ideal = max(statistics.median(waits), statistics.median(rest))
    result = {
        "share_of_ideal_overlap": round(ideal / statistics.median(overlapped), 3),
        "bar": BAR,
        "seconds_sampling": round(statistics.median(waits), 4),
        "seconds_training": round(statistics.median(rest), 4),
        "seconds_in_turn": round(statistics.median(in_turn), 4),
        "seconds_ahead": round(statistics.median(overlapped), 4),
        "seconds_ahead_spread": spread(overlapped),
        "speedup": round(statistics.median(in_turn) / statistics.median(overlapped), 3),
        "staleness_max": max(line["staleness/max"] for line in ahead),
        "trainer_idle_share": round(statistics.median(line["idle/trainer_share"] for line in ahead[2:-1]), 3),
        "sampler_idle_share": round(statistics.median(line["idle/sampler_share"] for line in ahead[2:-1]), 3),
        "steps": steps,
        "environment": environment(THREADS),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
