"""Supervised fine-tuning as a stage: a checkpoint, its samples, the supervised loop."""

from pathlib import Path

from model.checkpoint import load_processor
from model.data.sources import input_of_tables
from model.engine.build import run_on_ranks
from model.engine.source import FolderSource
from model.run.identity import input_of
from model.supervised import run_supervised
from sft.config import SftConfig
from sft.data import Demonstrations, open_samples


def run_stage(config: SftConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    processor = load_processor(Path(config.checkpoint))
    start = {"checkpoint": input_of(Path(config.checkpoint))}
    tables = {"data.demonstrations": config.data.demonstrations, "data.prompts": config.data.prompts}
    run_on_ranks(
        config.engine,
        resolved,
        lambda: {**start, **input_of_tables(tables)},
        lambda lead: run_supervised(
            config,
            resolved,
            "sft",
            lead,
            FolderSource(config.checkpoint),
            processor,
            lambda folders, own: open_samples(config, own, folders),
            lambda folders, own: Demonstrations(config.evaluation.data, config.data, own, folders, "evaluation.data"),
            tables,
            start,
        ),
    )
