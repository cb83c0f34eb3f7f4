"""One run of `benchmarks.rl_step`, ours or TRL's, in a process of its own that takes turns with the other's, step by
step. Argument: an `Arm` as JSON. Writes `folder/result.json`."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as our entry points set it, for both sides

from conf.cli import load_config
from rewards.result import RewardInput, RewardResult
from rewards.rubric import Rubric
from rlhf.config import RlConfig
from rlhf.evaluation.config import EvaluateConfig

TIMED = ("collect", "prepare", "update", "sync")  # our phases that count; evaluation, logs and checkpoints do not
CURVE = ("accuracy_think", "accuracy_think_sampled")


@dataclass(frozen=True)
class Arm:
    side: str  # ours or trl
    overrides: list[str]
    folder: str
    held_out: str  # prompts of the accuracy curve; empty: time only
    every: int  # steps between its points
    turn: int  # file descriptor that tells the parent that a step is over


@dataclass
class Step:
    """Seconds and completion tokens of one step. Ours scores while it samples: its rewards are inside the sampling."""

    seconds: float
    sampling: float
    rewards: float
    update: float
    completion_tokens: float
    zero_advantage_share: float = 0.0  # share of the trained tokens, as far as a side tells


class Turns:
    """Two runs on one machine: each waits behind every step until the parent lets it go on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def pass_on(self) -> None:
        os.write(self._descriptor, b".")
        os.read(sys.stdin.fileno(), 1)


def timed_rubric(reward_seconds: list[float], turns: Turns) -> type[Rubric]:
    """A rubric that notes the seconds of each step's rewards. Our loop asks for its metrics when a step is over,
    outside everything that it times: there the turn passes."""

    class TimedRubric(Rubric):
        seconds = 0.0

        def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
            begin = time.monotonic()
            results = super().score(inputs)
            self.seconds += time.monotonic() - begin
            return results

        def take_metrics(self) -> dict[str, float]:
            if self.step > len(reward_seconds):  # else it is an evaluation that asks
                reward_seconds.append(self.seconds)
                turns.pass_on()
            self.seconds = 0.0
            return super().take_metrics()

    return TimedRubric


def run_ours(arm: Arm, turns: Turns) -> tuple[list[Step], list[dict[str, Any]], Path]:
    from rlhf.stage import run_stage

    curve = [f"evaluation.prompts={arm.held_out}", f"evaluation.every={arm.every}", "evaluation.num_samples=1"]
    config, resolved = load_config("rlhf", [*arm.overrides, *(curve if arm.held_out else [])])
    reward_seconds: list[float] = []
    run_stage(config, resolved, timed_rubric(reward_seconds, turns))
    run = Path(config.run.dir)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [
        Step(
            seconds=sum(row[f"time/{name}"] for name in TIMED),
            sampling=row["time/collect"],
            rewards=rewards,
            update=row["time/prepare"] + row["time/update"] + row["time/sync"],
            completion_tokens=row["completion_tokens"],
            zero_advantage_share=row["zero_advantage_share"],
        )
        for row, rewards in zip(rows, reward_seconds, strict=True)
    ]
    path = run / "evaluations.jsonl"
    evaluations = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return steps, [{name: row[name] for name in ("step", *CURVE)} for row in evaluations], run / "final"


def run_trl(arm: Arm, turns: Turns) -> tuple[list[Step], list[dict[str, Any]], Path]:
    """The parts of `trainer=trl`, without its logs and with evaluations between steps."""
    import torch

    from model.checkpoint import load_processor
    from rlhf.algorithms.registry import build_algorithm
    from rlhf.prompts import open_prompts
    from rlhf.trl.settings import check
    from rlhf.trl.trl_trainer import StepRewards, build_trainer, load_policy, save_policy

    config, _ = load_config("rlhf", [*arm.overrides, "trainer=trl"])
    check(config)
    checkpoint, folder = Path(config.checkpoint), Path(config.run.dir)
    processor = load_processor(checkpoint)
    algorithm = build_algorithm(config.algorithm, config.rollouts.max_completion_tokens)
    torch.set_num_threads(config.engine.num_threads)  # and no deterministic kernels: the cost of those is ours alone
    prompts, _ = open_prompts(config, processor, folder)
    curve: list[dict[str, Any]] = []
    with Rubric(config.reward) as rubric:
        rewards = StepRewards(prompts, rubric, algorithm, processor.tokenizer, config)
        policy = load_policy(checkpoint, processor, config.engine)

        def evaluate(step: int) -> None:
            if arm.held_out and (step % arm.every == 0 or step == config.trainer.max_steps):
                save_policy(folder / f"step_{step}", policy, checkpoint)
                curve.append({"step": step, **accuracy(config, folder / f"step_{step}", arm.held_out)})

        recorder = step_recorder(rewards, turns, evaluate)
        evaluate(0)
        trainer = build_trainer(config, policy, prompts, rewards, processor)
        trainer.add_callback(recorder)
        trainer.train()
        save_policy(folder / "final", policy, checkpoint)
    return recorder.steps, curve, folder / "final"


def step_recorder(rewards: Any, turns: Turns, evaluate: Callable[[int], None]) -> Any:
    """A callback that times TRL's steps from its own begin to its own end: opening the step's prompts and its logs are
    outside. `rewards` is the run's `StepRewards`, whose calls are timed too."""
    from transformers import TrainerCallback

    class StepRecorder(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[Step] = []
            self._began = self._scoring = 0.0
            self._score_step = rewards.score_step
            rewards.score_step = self.score_step

        def score_step(self, *args: Any, **kwargs: Any) -> list[float | None]:
            self._scoring = time.monotonic()
            return self._score_step(*args, **kwargs)

        score_step.__name__ = "score_step"

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._began = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.monotonic()
            tokens = sum(len(t.rollout.completion_ids) for group in rewards.groups for t in group.trajectories)
            self.steps.append(
                Step(
                    seconds=now - self._began,
                    sampling=self._scoring - self._began,
                    rewards=rewards.scored_at - self._scoring,
                    update=now - rewards.scored_at,
                    completion_tokens=tokens,
                )
            )
            turns.pass_on()
            evaluate(state.global_step)

    return StepRecorder()


def accuracy(config: RlConfig, checkpoint: Path, prompts: str) -> dict[str, float]:
    """By the code and with the draws that any checkpoint of any side is evaluated with."""
    from rlhf.evaluation.stage import evaluate_folder

    result = evaluate_folder(
        EvaluateConfig(
            checkpoint=str(checkpoint),
            prompts=prompts,
            seed=config.run.seed,
            num_threads=config.engine.num_threads,
            rollouts=replace(config.rollouts, temperature=1.0),
        )
    )
    return {name: result[name] for name in CURVE}


def main() -> None:
    arm = Arm(**json.loads(sys.argv[1]))
    steps, curve, final = {"ours": run_ours, "trl": run_trl}[arm.side](arm, Turns(arm.turn))
    config, _ = load_config("rlhf", [*arm.overrides, *(["trainer=trl"] if arm.side == "trl" else [])])
    result = {
        "steps": [asdict(step) for step in steps],
        "curve": curve,
        **(accuracy(config, final, arm.held_out) if arm.held_out else {}),
    }
    (Path(arm.folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
