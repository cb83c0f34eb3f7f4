"""Every algorithm on the quickstart's task: `python -m benchmarks.algorithms SFT [SFT ...] [arms=dapo,trl] [jobs=2]`.

Each SFT is the LongCoT checkpoint of a quickstart run (RUN/longcot_sft/final) and stands for a seed, by its place. All
arms start from it and take the quickstart recipe's steps and learning rate; what an arm sets otherwise stands in ARMS.
The arm `trl` is TRL's trainer with GRPO, without dynamic sampling. All are evaluated on the test questions. Runs are
kept beside the checkpoint's run and continue where they stopped. The last line is one JSON object.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.parts.arguments import arguments
from conf.cli import assign
from rlhf.algorithms.config import ALGORITHM_CONFIGS

ARMS: dict[str, list[str]] = {
    **{name: [f"algorithm={name}"] for name in ALGORITHM_CONFIGS},
    "dr_grpo_filtered": ["algorithm=dr_grpo", "algorithm.group_filter=correctness_spread"],
    "gspo_filtered": ["algorithm=gspo", "algorithm.group_filter=correctness_spread"],
    "trl": ["trainer=trl", "algorithm=grpo"],
}
FIGURES = ("accuracy_think", "accuracy_think_sampled", "accuracy_direct", "mean_length")


def run(module: str, overrides: list[str]) -> None:
    """One process, one thread: several arms go side by side."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", module, *overrides], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(overrides)}: exit code {done.returncode}: {done.stderr[-2000:]}")


def evaluate(checkpoint: Path, data: Path, output: Path, seed: int) -> dict[str, Any]:
    if not output.exists():
        paths = [assign("checkpoint", checkpoint), assign("prompts", data / "test.jsonl"), assign("output", output)]
        run("rlhf.evaluate", [*paths, f"seed={seed}", "num_threads=1"])
    result = json.loads(output.read_text())
    return {name: result[name] for name in FIGURES}


def train(arm: str, checkpoint: Path, data: Path, seed: int) -> dict[str, Any]:
    """Figures of one arm from one checkpoint."""
    folder = checkpoint.parents[1] / "algorithms" / arm
    begin = time.monotonic()
    paths = [assign("checkpoint", checkpoint), assign("prompts", data / "train.jsonl"), assign("run.dir", folder)]
    fresh = not (folder / "done.json").exists()
    run("rlhf.train", ["recipe=quickstart", *ARMS[arm], *paths, f"run.seed={seed}", "engine.num_threads=1"])
    seconds = {"seconds": round(time.monotonic() - begin, 1)} if fresh else {}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    completions = sum(row["completion_tokens"] for row in rows)
    figures = evaluate(folder / "final", data, folder / "evaluation.json", seed)
    return {**figures, "steps": len(rows), "completion_tokens": completions, **seconds}


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in arguments(__doc__) if "=" in argument)
    checkpoints = [Path(argument) for argument in arguments(__doc__) if "=" not in argument]
    if not checkpoints:
        raise SystemExit(f"expected at least one LongCoT checkpoint\n{__doc__}")
    arms = settings.get("arms", ",".join(ARMS)).split(",")
    data, jobs = Path(settings.get("data", "data/digits")), int(settings.get("jobs", "2"))
    with ThreadPoolExecutor(jobs) as pool:
        starts = [
            pool.submit(evaluate, path, data, path.parents[1] / "algorithms_start.json", seed)
            for seed, path in enumerate(checkpoints)
        ]
        runs = {
            (arm, seed): pool.submit(train, arm, path, data, seed)
            for arm in arms
            for seed, path in enumerate(checkpoints)
        }
        begun = [start.result() for start in starts]
        results = {key: future.result() for key, future in runs.items()}
    table: dict[str, Any] = {}
    for arm in arms:
        seeds = [results[arm, seed] for seed in range(len(checkpoints))]
        gains = [
            [round(100 * (after[name] - before[name]), 1) for name in FIGURES[:2]]
            for before, after in zip(begun, seeds, strict=True)
        ]
        table[arm] = {"overrides": ARMS[arm], "seeds": seeds, "gain_greedy_sampled_points": gains}
        print(f"{arm:14} {gains}", flush=True)
    print(json.dumps({"start": begun, "arms": table}))


if __name__ == "__main__":
    main()
