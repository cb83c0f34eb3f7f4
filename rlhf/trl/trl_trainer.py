"""`trainer=trl`: a recipe of ours through TRL's GRPOTrainer or RLOOTrainer, as the baseline to compare with."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

from datasets import Dataset
from transformers import AutoProcessor, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # pyright: ignore[reportPrivateImportUsage]

from model.checkpoint import load_processor
from model.data.media import open_image
from model.engine.device import prepare_cpu
from model.processing.processor import Processor
from model.processing.tokenizer import Tokenizer
from model.run.folder import RunFolder
from model.run.guidance import after_training
from model.run.identity import outside_keys
from model.run.manifest import Digests
from model.run.progress import StageProgress
from model.run.saving import ThreadWriting, Writing
from model.trl.policy import build_optimizer, load_policy, save_policy
from rewards.rubric import Rubric
from rlhf.algorithms.algorithm import Algorithm
from rlhf.collect import Collected
from rlhf.config import RlConfig
from rlhf.console import StepReporter
from rlhf.doctor import Doctor
from rlhf.drawing.draws import DrawOrder
from rlhf.metrics import reward_metrics, stored_rollouts
from rlhf.planning.inputs import inputs_of, known_inputs
from rlhf.planning.limits import checked, describe
from rlhf.prompts import PromptSet, Task, open_prompts
from rlhf.rewarding import score_groups
from rlhf.shown import samples_of
from rlhf.trajectory import Group
from rlhf.trl.reward import finish_reason
from rlhf.trl.settings import switched_off, trl_arguments, updates_per_step, uses_rloo
from rollouts.rollout import Rollout


def run_with_trl(config: RlConfig, resolved: str, rubric_class: type[Rubric] | None = None) -> None:
    """Train and write `run.dir/final`, like `rlhf.stage.run_stage`. A run that was cut short is not continued."""
    checkpoint = Path(config.checkpoint)
    processor = load_processor(checkpoint)
    config, algorithm = checked(config, processor)
    with (rubric_class or Rubric)(config.reward) as rubric:
        rubric.check_functions()  # before the run's folder keeps the settings
        with RunFolder(config.run, resolved, outside_keys(config), config.report) as run:
            if run.already_complete(lambda: known_inputs(config)):
                return after_training(run.folder, is_rl=True)
            _begin(run)
            prompts, _ = open_prompts(config, processor, run.folder)
            run.declare({**inputs_of(config), **prompts.inputs})
            rubric.check_datasets(row.prompt.meta for row in prompts.items)
            config = replace(config, trainer=config.trainer.complete(len(prompts)))
            print("\n".join([*prompts.described(), describe(config, len(prompts))]), flush=True)
            with StageProgress("rl", config.trainer.max_steps) as progress:
                progress.say(switched_off(config))
                prepare_cpu(config.engine.num_threads)
                rewards = StepRewards(prompts, rubric, algorithm, processor.tokenizer, config)
                reporter = StepReporter(progress, processor.tokenizer, config.trainer.show_every)
                policy = load_policy(checkpoint, processor, config.engine)
                trainer = build_trainer(config, policy, prompts, rewards, processor)
                doctor = Doctor(
                    config.trainer.warn_after,
                    algorithm.learns_from_advantages,
                    processor.tokenizer,
                    progress.say,
                    config.reward.paid_parts,
                )
                trainer.add_callback(StepRecorder(run, rewards, reporter, doctor))
                trainer.train()
                doctor.end()
            save_policy(run.final_folder, policy, checkpoint, config.dtype)
            run.finish({"updates": trainer.state.global_step})
            after_training(run.folder, is_rl=True)


def build_trainer(
    config: RlConfig, policy: Any, prompts: PromptSet, rewards: "StepRewards", processor: Processor
) -> GRPOTrainer | RLOOTrainer:
    """TRL's trainer for the config's algorithm, with our data order, rewards, optimizer settings and schedule."""
    num_draws = config.trainer.max_steps * config.trainer.groups_per_step
    arguments = trl_arguments(config, processor.barred_ids)
    trainer_class, config_class = (RLOOTrainer, RLOOConfig) if uses_rloo(config) else (GRPOTrainer, GRPOConfig)
    trainer = trainer_class(
        model=policy,
        reward_funcs=rewards.score_step,
        args=config_class(**arguments),  # pyright: ignore
        train_dataset=drawn_prompts(prompts, config.run.seed, num_draws),
        processing_class=AutoProcessor.from_pretrained(config.checkpoint),
        optimizers=build_optimizer(policy, config.optimizer, arguments["max_steps"]),
    )
    trainer.remove_callback(PrinterCallback)  # our own reporter speaks
    return trainer


def drawn_prompts(prompts: PromptSet, seed: int, count: int) -> Dataset:
    """The first `count` draws of our own trainer, as long as it drops no group. Images are opened when asked for."""
    order = DrawOrder(prompts.ids, prompts.weights, seed)
    rows: list[int] = []
    while len(rows) < count:
        row = order.next()
        task = prompts.task(row)
        if task is None:
            continue
        if any(visual.media.num_frames for visual in task.tokens.images):
            raise ValueError(
                f"prompts: row {task.prompt.id}: trainer=trl takes images, found a video; leave the row out, or use "
                "trainer=sailvl2"
            )
        rows.append(row)

    @lru_cache(maxsize=64)  # TRL asks for a row once for each of its completions
    def prompt_and_images(row: int) -> tuple[list[dict[str, Any]], list[Any]]:
        return as_trl_prompt(prompts.build(row))

    def columns(batch: dict[str, list]) -> dict[str, list]:
        pairs = [prompt_and_images(row) for row in batch["row"]]
        return {**batch, "prompt": [prompt for prompt, _ in pairs], "images": [images for _, images in pairs]}

    return Dataset.from_dict({"row": rows, "draw": list(range(count))}).with_transform(columns)


def as_trl_prompt(task: Task) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with a bare part where an image stands, and the opened images in their order.

    Every content is a list of parts: TRL would put the images into the first plain text of a user.
    """
    messages = []
    for message in task.prompt.messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        bare = [{"type": "image"} if part["type"] == "image" else part for part in parts]
        messages.append({**message, "content": bare})
    return messages, [open_image(task.root, name) for name in task.tokens.files]


class StepRewards:
    """The reward that TRL calls once a step: our rubric and the algorithm's shaping. Keeps the step's groups."""

    def __init__(
        self, prompts: PromptSet, rubric: Rubric, algorithm: Algorithm, tokenizer: Tokenizer, config: RlConfig
    ) -> None:
        self.rubric, self.tokenizer = rubric, tokenizer
        self.updates_per_step = updates_per_step(config)
        self.kl_name = "trl/kl_k1" if uses_rloo(config) else "kl/reference"  # ours is always k3
        self.groups: list[Group] = []
        self.scored_at = 0.0
        rubric.max_steps = config.trainer.max_steps
        self._prompts, self._algorithm = prompts, algorithm

    def score_step(
        self, completion_ids: Sequence[list[int]], row: Sequence[int], draw: Sequence[int], trainer_state: Any, **_: Any
    ) -> list[float | None]:
        """None for an unscorable completion: TRL leaves it out of its group's baseline and gives it advantage 0."""
        self.rubric.step = trainer_state.global_step // self.updates_per_step + 1
        tasks: list[Task] = []
        rollouts: list[list[Rollout]] = []
        for ids, index, ordinal in zip(completion_ids, row, draw, strict=True):
            if not rollouts or rollouts[-1][0].group_index != ordinal:
                tasks.append(self._prompts.build(index))
                rollouts.append([])
            rollouts[-1].append(self._rollout(tasks[-1], ordinal, len(rollouts[-1]), ids, trainer_state.global_step))
        self.groups = score_groups(tasks, rollouts, self.rubric, self.tokenizer, self._algorithm)
        self.scored_at = time.monotonic()
        trajectories = [t for group in self.groups for t in group.trajectories]
        return [t.shaped_reward if t.is_scored else None for t in trajectories]

    def _rollout(self, task: Task, group_index: int, index: int, ids: list[int], version: int) -> Rollout:
        """Without the sampler's log-probs, which TRL does not keep."""
        mask, reason = [1] * len(ids), finish_reason(ids, self.tokenizer)
        prompt_ids, versions = task.tokens.ids, ((0, version),)
        return Rollout(group_index, task.prompt.id, index, prompt_ids, ids, mask, [], versions, reason)


class StepRecorder(TrainerCallback):
    """Writes each step to the run's files, in our names where the quantity is ours, once its last update is done."""

    def __init__(self, run: RunFolder, rewards: StepRewards, reporter: StepReporter, doctor: Doctor) -> None:
        self._run, self._rewards, self._reporter, self._doctor = run, rewards, reporter, doctor
        self._began = 0.0
        self._updates: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._rewards.updates_per_step == 0:
            self._began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:  # the summary of the whole training
            return
        self._updates.append(dict(logs))
        if state.global_step % self._rewards.updates_per_step == 0:
            self._write(state.global_step // self._rewards.updates_per_step)
            self._updates = []

    def _write(self, step: int) -> None:
        rewards, now = self._rewards, time.monotonic()
        collected = Collected(rewards.groups, [], [], len(rewards.groups))
        metrics = {
            **reward_metrics(rewards.groups),
            "groups/drawn": float(len(rewards.groups)),
            "groups/trained": float(len(rewards.groups)),
            "groups/dead_share": 0.0,  # no group is dropped here
            **update_metrics(self._updates, rewards.kl_name),
            **rewards.rubric.take_metrics(),
            "time/collect": round(rewards.scored_at - self._began, 4),
            "time/update": round(now - rewards.scored_at, 4),
        }
        stored = stored_rollouts(collected, rewards.tokenizer, self._run.folder)
        self._run.append(f"rollouts/step_{step:06d}.jsonl", step, stored)
        metrics |= self._doctor.look(step, metrics, collected)
        self._reporter.show(step, metrics, collected, now - self._began)
        if self._reporter.shows(step):
            self._run.show(step, lambda: samples_of(stored, self._run.folder))
        self._run.log(step, metrics)


_MEANS = {
    "loss": "loss",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip/low_share",
    "clip_ratio/high_mean": "clip/high_share",
    "frac_reward_zero_std": "trl/equal_rewards_share",
}
"""TRL's name of a number -> ours, where a step's value is the mean over its updates."""


def update_metrics(updates: Sequence[dict[str, float]], kl_name: str) -> dict[str, float]:
    """One step's metrics, from those that TRL logged at each update of the step."""
    metrics = {}
    for theirs, ours in {**_MEANS, "kl": kl_name}.items():
        values = [update[theirs] for update in updates if update.get(theirs) is not None]
        if values:
            metrics[ours] = mean(values)
    return {
        **metrics,
        "grad_norm": max(float(update["grad_norm"]) for update in updates),
        "learning_rate": updates[-1]["learning_rate"],
        "updates": float(len(updates)),
    }


class _NoCheckpoints:
    """Stands for an engine in `RunFolder` where nothing is saved."""

    def save(self, folder: Path) -> Digests:
        return {}

    def save_in_background(self, folder: Path) -> Writing:
        return ThreadWriting(dict)

    def load(self, folder: Path) -> None:
        raise ValueError(f"resume: trainer=trl continues no checkpoint, found {folder}; set run.start=fresh")


def _begin(run: RunFolder) -> None:
    """Open the run's logs. `ValueError` for a run that has begun."""
    log = run.folder / "metrics.jsonl"
    if log.exists() and log.stat().st_size:
        raise ValueError(
            f"resume: {run.folder} holds a run of trainer=trl, which keeps no checkpoints: it cannot go on from where "
            "it ended; start anew with run.start=fresh"
        )
    run.restore(_NoCheckpoints())
