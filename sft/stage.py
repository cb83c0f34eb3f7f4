"""Supervised fine-tuning as a stage: a checkpoint, its samples, the supervised loop."""

from pathlib import Path

from model.checkpoint import load_model
from model.run.identity import input_of
from model.supervised import run_supervised
from sft.config import SftConfig
from sft.data import Demonstrations, open_samples


def run_stage(config: SftConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    model, processor = load_model(Path(config.checkpoint))
    run_supervised(
        config,
        resolved,
        "sft",
        model,
        processor,
        lambda folders: open_samples(config, processor, folders),
        lambda folders: Demonstrations(config.evaluation.data, config.data, processor, folders, "evaluation.data"),
        {"data.demonstrations": config.data.demonstrations, "data.prompts": config.data.prompts},
        {"checkpoint": input_of(Path(config.checkpoint))},
    )
