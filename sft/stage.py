"""Supervised fine-tuning as a stage: a checkpoint, its samples, the supervised loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model.batch import Row
from model.checkpoint import load_processor
from model.corpus.open import inputs_of_sources, open_held_out, open_stream
from model.data.sources import DataFolders, RowSource, StepSource, input_of_tables
from model.engine.build import run_on_ranks
from model.engine.source import FolderSource
from model.processing.processor import Processor
from model.run.identity import Input, input_of
from model.supervised import run_supervised
from sft.config import SftConfig, TrlSftTrainerConfig
from sft.data import Demonstrations, open_samples

if TYPE_CHECKING:
    from model.engine.lead import Lead


def run_stage(config: SftConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    if isinstance(config.trainer, TrlSftTrainerConfig):
        from sft.trl.settings import check

        check(config)
    processor = load_processor(Path(config.checkpoint))
    start = {"checkpoint": input_of(Path(config.checkpoint))}
    tables = {"data.demonstrations": config.data.demonstrations, "data.prompts": config.data.prompts}
    sources = inputs_of_sources(config.data)
    run_on_ranks(
        config.engine,
        resolved,
        lambda: {**start, **sources, **input_of_tables(tables)},
        lambda lead: _run(config, resolved, lead, processor, tables, {**start, **sources}),
    )


def _run(
    config: SftConfig,
    resolved: str,
    lead: "Lead | None",
    processor: Processor,
    tables: Mapping[str, str],
    inputs: Mapping[str, Input],
) -> None:
    if isinstance(config.trainer, TrlSftTrainerConfig):
        from sft.trl.trl_trainer import run_with_trl

        return run_with_trl(
            config, resolved, processor, lambda folders: _open_rows(config, processor, folders), tables, inputs
        )
    run_supervised(
        config,
        resolved,
        "sft",
        lead,
        FolderSource(config.checkpoint),
        processor,
        lambda folders, own: _open_rows(config, own, folders),
        lambda folders, own: _open_held_out(config, own, folders),
        tables,
        inputs,
    )


def _open_rows(config: SftConfig, processor: Processor, folders: DataFolders) -> StepSource:
    data = config.data
    if data.sources:
        return open_stream(data, data, config.engine.micro_batch_tokens, processor, config.run.seed, folders)
    return open_samples(config, processor, folders)


def _open_held_out(config: SftConfig, processor: Processor, folders: DataFolders) -> RowSource[Row]:
    data = config.data
    if data.sources:
        source = data.held_out(config.evaluation.data, config.evaluation.source)
        return open_held_out(source, data, data, processor, folders)
    return Demonstrations(config.evaluation.data, data, processor, folders, "evaluation.data")
