"""`trainer=trl`: an SFT stage of ours through TRL's SFTTrainer, as the baseline to compare with.

Rows, their order, micro-batches and which tokens train are ours. The forward pass over padded rows, the loss, the sum
over micro-batches, clipping, and the loop around AdamW are those of TRL and transformers.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoProcessor, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig as TrlSftConfig  # pyright: ignore[reportPrivateImportUsage]
from trl import SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from model.data.sources import DataFolders, StepContent, StepSource, input_of_tables
from model.engine.base import NonFiniteError
from model.engine.config import Normalisation
from model.engine.device import prepare_cpu
from model.engine.planning.fitting import require_room
from model.engine.source import FolderSource
from model.engine.updates import UpdateCount
from model.processing.processor import Processor
from model.run.folder import RunFolder
from model.run.guidance import after_training
from model.run.identity import Input, outside_keys
from model.run.interrupt import StopSignal
from model.run.progress import StageProgress
from model.run.state import State, restore_sections, sections_of
from model.supervised import split_rows
from model.trl.policy import build_adamw, build_schedule, load_policy, save_policy
from sft.config import SftConfig
from sft.trl.batches import padded_batch
from sft.trl.saves import PolicySaves
from sft.trl.settings import check_model, switched_off, trl_arguments


def run_with_trl(
    config: SftConfig,
    resolved: str,
    processor: Processor,
    open_rows: Callable[[DataFolders], StepSource],
    tables: Mapping[str, str],
    inputs: Mapping[str, Input],
) -> None:
    """Train and write `run.dir/final`, like `model.supervised.run_supervised`; continues where an earlier call stopped.

    `tables`: key of the config -> the table that it names. `inputs`: what the run reads beside its rows.
    """
    checkpoint = Path(config.checkpoint)
    check_model(config, processor.config)
    with RunFolder(config.run, resolved, outside_keys(config), config.report) as run:
        if run.already_complete(lambda: {**input_of_tables(tables), **inputs}):
            return after_training(run.folder)
        rows_of_step = open_rows(DataFolders(run.folder / "media", run.folder / "bad_rows.jsonl"))
        run.declare({**rows_of_step.inputs, **inputs})
        one_pass = rows_of_step.steps_per_pass
        config = replace(config, max_steps=config.steps_for(one_pass), epochs=0.0)
        passes = f"{config.max_steps / one_pass:.3g} passes over the rows of {one_pass} steps"
        steps = f"steps: {config.max_steps} ({passes}), learning rate {config.optimizer.learning_rate:g}"
        print("\n".join([*rows_of_step.described(), steps]), flush=True)
        require_room(config.engine, FolderSource(config.checkpoint).shapes(), config.adapter, torch.device("cpu"))
        prepare_cpu(config.engine.num_threads)
        policy = load_policy(checkpoint, processor, config.engine)
        total, trained = (
            sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad or not only)
            for only in (False, True)
        )
        print(f"model: {checkpoint}, {total:,} parameters, {trained:,} of them trained", flush=True)
        run.exporter = lambda folder: save_policy(folder, policy, checkpoint, config.dtype)
        with StageProgress("sft", config.max_steps) as progress, closing(rows_of_step):
            progress.say(switched_off(config))
            train_with_trl(config, policy, processor, rows_of_step, run, progress)
        with run.space_for("final"):
            save_policy(run.final_folder, policy, checkpoint, config.dtype)
        run.finish({"steps": config.max_steps})
        after_training(run.folder)


def train_with_trl(
    config: SftConfig,
    policy: Any,
    processor: Processor,
    rows_of_step: StepSource,
    run: RunFolder,
    progress: StageProgress,
) -> None:
    """Train to `config.max_steps` from the run's newest checkpoint: TRL is given the updates that are left."""
    optimizer = build_adamw(policy, config.optimizer)
    updates = UpdateCount(config.engine, config.optimizer, config.max_steps, torch.float32)
    saves, sections = PolicySaves(policy, optimizer, updates), {"rows": rows_of_step}
    state = run.restore(saves)
    if state["step"]:
        restore_sections(state, sections)
    num_left = config.max_steps - updates.step_count
    with run.saved_on_stop(saves, lambda: sections_of(updates.step_count, sections)) as stop:
        stop.check()
        if num_left <= 0:
            return
        reader = UpdateReader(config, processor, rows_of_step, run)
        theirs = AutoProcessor.from_pretrained(config.checkpoint)
        trainer = RowsTrainer(
            lambda: reader.read(updates.step_count),
            pad_id=theirs.tokenizer.pad_token_id,
            model=policy,
            args=TrlSftConfig(**trl_arguments(config, num_left)),
            train_dataset=Dataset.from_dict({"update": list(range(num_left))}),
            data_collator=lambda items: {"update": torch.tensor([item["update"] for item in items])},
            processing_class=theirs,
            optimizers=(
                optimizer,
                build_schedule(optimizer, config.optimizer, config.max_steps, updates.step_count),
            ),
        )
        trainer.remove_callback(PrinterCallback)  # our own progress speaks
        state_of = lambda step: sections_of(step, sections)  # noqa: E731
        trainer.add_callback(StepRecorder(config, trainer, saves, state_of, run, progress, stop))
        trainer.train()


@dataclass(frozen=True)
class Update:
    """The rows of one optimizer update, and how they are cut into micro-batches."""

    content: StepContent
    parts: list[list[int]]
    denominator: int  # number that divides the summed loss
    seconds: float  # time that reading the rows took

    @property
    def num_scored(self) -> int:
        return sum(row.num_scored for row in self.content.rows)


class UpdateReader:
    """Reads the updates that our own loop would train."""

    def __init__(self, config: SftConfig, processor: Processor, rows_of_step: StepSource, run: RunFolder) -> None:
        self._config, self._processor, self._rows, self._run = config, processor, rows_of_step, run

    def read(self, step: int) -> Update:
        """The update behind `step` finished ones."""
        began = time.monotonic()
        with self._run.timed("data"):
            content = self._rows.content(step)
            parts = split_rows(content, self._config, self._processor)
        if self._config.normalisation is Normalisation.tokens:
            denominator = sum(row.num_scored for row in content.rows)
        else:
            denominator = sum(len(row.completions) for row in content.rows)
        return Update(content, parts, denominator, time.monotonic() - began)


class RowsTrainer(SFTTrainer):
    """TRL's trainer, where a training step is an update of ours: TRL trains each micro-batch of it.

    TRL itself would cut updates into micro-batches of one number of rows, and divides by what it counts in them. Here
    it is told the number that divides, so that both weightings of ours are possible.
    """

    def __init__(self, read: Callable[[], Update], pad_id: int, **arguments: Any) -> None:
        """`read` gives the next update, `pad_id` fills shorter rows; `arguments` are TRL's."""
        self._read, self._pad_id = read, pad_id
        self.update: Update | None = None  # the one that was trained last
        self.loss = math.nan  # its loss, summed over its micro-batches
        self.began = 0.0
        super().__init__(**arguments)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add up the gradients of all micro-batches; returns the update's loss. `NonFiniteError` where it is not
        finite, with the weights as they were."""
        update = self._read()
        self.began = time.monotonic()
        denominator = torch.tensor(update.denominator)
        total = torch.zeros(())
        for part in update.parts:
            rows = [row for row in (update.content.rows[number] for number in part) if row.completions]
            if rows:
                total += super().training_step(model, padded_batch(rows, self._pad_id), denominator)
        self.update, self.loss = update, total.item()
        if not math.isfinite(self.loss):
            raise NonFiniteError(
                f"the loss of an update is {self.loss}, and trainer=trl skips none; the weights are those before it: "
                "lower optimizer.learning_rate or look at the data of this step"
            )
        return total


class StepRecorder(TrainerCallback):
    """Writes each update to the run's files in the names of our own loop, saves checkpoints, and stops when asked."""

    def __init__(
        self,
        config: SftConfig,
        trainer: RowsTrainer,
        saves: PolicySaves,
        state_of: Callable[[int], State],
        run: RunFolder,
        progress: StageProgress,
        stop: StopSignal,
    ) -> None:
        """`state_of(step)` is what a checkpoint after `step` updates keeps beside the weights."""
        self._config, self._trainer, self._saves, self._state_of = config, trainer, saves, state_of
        self._run, self._progress, self._stop = run, progress, stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:  # the summary of the whole training
            return
        trainer, updates, last = self._trainer, self._saves.updates, self._config.max_steps
        update = trainer.update
        assert update is not None
        if not math.isfinite(logs["grad_norm"]):
            raise NonFiniteError(
                f"step {updates.step_count + 1}: the norm of the gradient is {logs['grad_norm']}, and trainer=trl has "
                "applied it; the newest checkpoint is from before: lower optimizer.learning_rate or look at the data "
                "of this step"
            )
        updates.add(True, logs["grad_norm"])
        step, seconds = updates.step_count, time.monotonic() - trainer.began
        tokens = float(sum(row.num_tokens for row in update.content.rows))
        nll = trainer.loss * update.denominator / update.num_scored
        self._run.log(
            step,
            {
                "loss": trainer.loss,
                "nll_per_token": nll,
                "tokens": tokens,
                "time/update": round(seconds, 4),
                "time/tokens_per_s": tokens / (seconds + update.seconds),
                **update.content.metrics,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "trl/entropy": logs["entropy"],
                "trl/token_accuracy": logs["mean_token_accuracy"],
            },
        )
        self._progress.advance(step, f"loss {nll:.3f}")
        if self._run.is_due(step, last):
            self._run.save(self._saves, self._state_of(step))
        self._stop.check()
