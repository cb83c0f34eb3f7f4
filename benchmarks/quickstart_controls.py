"""Two controls of the quickstart's RL stage: `python -m benchmarks.quickstart_controls [runs/quickstart]`.

From the LongCoT checkpoint of a finished quickstart run: (a) the same RL with rewards shuffled over the rollouts of
each call, so that they say nothing about their completions; (b) the RL stage's seconds spent on more LongCoT SFT of the
same demonstrations, with the recipe's own schedule. Both are evaluated like the stages. The last line is one JSON
object.
"""

import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from benchmarks.parts.arguments import arguments
from conf.cli import load_config
from rewards.result import RewardInput, RewardResult
from rewards.rubric import Rubric
from rlhf import stage as rl_stage
from rlhf.evaluation import stage as evaluation_stage
from rlhf.evaluation.config import EvaluateConfig
from sft import stage as sft_stage


class ShuffledRubric(Rubric):
    """Gives every completion another completion's reward."""

    def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
        results = super().score(inputs)
        random.Random(f"{inputs[0].prompt_id} {len(inputs)}").shuffle(results)
        return results


def shuffled_rewards(run: Path, overrides: list[str]) -> Path:
    """RL without information in the reward; returns the trained checkpoint."""
    folder = run / "control_shuffled"
    config, resolved = load_config("rlhf", [*overrides, f"run.dir={folder}", "run.start=fresh"])
    rl_stage.run_stage(config, resolved, ShuffledRubric)
    return folder / "final"


def more_sft(run: Path, overrides: list[str], updates: int) -> tuple[Path, float]:
    """`updates` more updates of LongCoT SFT; returns the checkpoint and the seconds they took."""
    folder = run / "control_sft"
    config, resolved = load_config("sft", [*overrides, f"run.dir={folder}", "run.start=fresh", f"max_steps={updates}"])
    begin = time.monotonic()
    sft_stage.run_stage(config, resolved)
    return folder / "final", time.monotonic() - begin


def sft_updates(run: Path, seconds: float) -> int:
    """How many LongCoT updates fit in `seconds`, by the pace at which the run made them."""
    lines = (run / "longcot_sft" / "metrics.jsonl").read_text().splitlines()
    pace = [json.loads(line) for line in lines]
    return round(seconds * len(pace) / sum(line["time/data"] + line["time/update"] for line in pace))


def measure(checkpoint: Path, prompts: Path, seed: int) -> dict[str, Any]:
    return evaluation_stage.evaluate_folder(EvaluateConfig(str(checkpoint), str(prompts), seed=seed))


def main() -> None:
    run = Path([*arguments(__doc__), "runs/quickstart"][0])
    summary = json.loads((run / "summary.json").read_text())
    stages = {stage["name"]: stage for stage in summary["stages"]}
    pipeline, _ = load_config("pipeline", ["recipe=quickstart"])
    data, seed = Path(pipeline.data), f"run.seed={summary['seed']}"
    start = f"checkpoint={run / 'longcot_sft' / 'final'}"
    rl = ["recipe=quickstart", start, f"prompts={data / 'train.jsonl'}", seed]
    sft = ["recipe=quickstart_longcot", start, f"data.demonstrations={data / 'demonstrations.jsonl'}", seed]
    test = data / "test.jsonl"
    shuffled = measure(shuffled_rewards(run, rl), test, summary["seed"])
    updates = sft_updates(run, stages["rl"]["seconds"])
    checkpoint, seconds = more_sft(run, sft, updates)
    result = {
        "seed": summary["seed"],
        "longcot_sft": stages["longcot_sft"],
        "rl": stages["rl"],
        "shuffled_rewards": shuffled,
        "more_sft": {"updates": updates, "seconds": seconds, **measure(checkpoint, test, summary["seed"])},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
