"""Two controls of the quickstart's RL stage: `python -m benchmarks.quickstart_controls [runs/quickstart]`.

From the LongCoT checkpoint of a finished quickstart run: (a) the same RL with rewards shuffled over the rollouts of
each call, so that they say nothing about their completions; (b) the RL stage's seconds spent on more LongCoT SFT of the
same demonstrations. Both are evaluated like the stages. The last line is one JSON object.
"""

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from conf.cli import load_config
from model.batch import split_by_tokens
from model.checkpoint import load_model, save_model
from model.engine.local import LocalEngine
from model.engine.supervised import cross_entropy, make_train_batch
from rewards.rubric import RewardInput, RewardResult, Rubric
from rlhf import evaluate, train
from rlhf.config import EvaluateConfig
from sft.data import build_samples


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
    train.run_stage(config, resolved, ShuffledRubric)
    return folder / "final"


def more_sft(run: Path, overrides: list[str], seconds: float) -> tuple[Path, int]:
    """LongCoT SFT for `seconds`, at the recipe's constant peak learning rate; returns checkpoint and updates."""
    config, _ = load_config("sft", [*overrides, f"run.dir={run / 'control_sft'}", "optimizer.schedule=constant"])
    model, processor = load_model(Path(config.checkpoint))
    samples = build_samples(config, processor)
    engine = LocalEngine(model, config.engine, config.optimizer, 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rows = samples(engine.step_count)
        num_tokens = sum(len(completion) for row in rows for completion in row.completions)
        for part in split_by_tokens(rows, config.engine.micro_batch_tokens):
            engine.forward_backward(make_train_batch(rows[part], processor), cross_entropy, num_tokens)
        engine.step()
    save_model(run / "control_sft" / "final", model, processor)
    return run / "control_sft" / "final", engine.step_count


def measure(checkpoint: Path, prompts: Path) -> dict[str, Any]:
    rollouts = load_config("rlhf", ["checkpoint=-", "prompts=-", "recipe=quickstart"])[0].rollouts
    return evaluate.evaluate_folder(EvaluateConfig(str(checkpoint), str(prompts), rollouts=rollouts))


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    summary = json.loads((run / "summary.json").read_text())
    stages = {stage["name"]: stage for stage in summary["stages"]}
    pipeline, _ = load_config("pipeline", ["recipe=quickstart"])
    data, seed = Path(pipeline.data), f"run.seed={summary['seed']}"
    start = f"checkpoint={run / 'longcot_sft' / 'final'}"
    rl = [*pipeline.stages.rl, start, f"prompts={data / 'train.jsonl'}", seed]
    sft = [*pipeline.stages.longcot_sft, start, f"data.demonstrations={data / 'demonstrations.jsonl'}", seed]
    shuffled = measure(shuffled_rewards(run, rl), data / "test.jsonl")
    checkpoint, updates = more_sft(run, sft, stages["rl"]["seconds"])
    result = {
        "seed": summary["seed"],
        "longcot_sft": stages["longcot_sft"],
        "rl": stages["rl"],
        "shuffled_rewards": shuffled,
        "more_sft": {"updates": updates, **measure(checkpoint, data / "test.jsonl")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
