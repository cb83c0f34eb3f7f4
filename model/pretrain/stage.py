"""Multimodal pre-training as a stage: a fresh model or a checkpoint, its documents, the supervised loop."""

from pathlib import Path

from model.batch import Row
from model.checkpoint import load_processor
from model.config import Flavour
from model.corpus.open import inputs_of_sources, open_held_out, open_stream
from model.data.sources import DataFolders, RowSource, StepSource, input_of_tables
from model.engine.build import run_on_ranks
from model.engine.source import FolderSource, FreshSource
from model.lora.config import LoraConfig
from model.pretrain.config import PretrainConfig
from model.pretrain.documents import Documents, open_documents
from model.processing.processor import Processor
from model.run.identity import input_of
from model.supervised import run_supervised


def run_stage(config: PretrainConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    if config.checkpoint:
        source = FolderSource(config.checkpoint)
        processor = load_processor(Path(config.checkpoint))
        start = {"checkpoint": input_of(Path(config.checkpoint))}
    else:
        if isinstance(config.adapter, LoraConfig):
            raise ValueError(
                "adapter: lora leaves the model's weights as they are, which are random without a checkpoint; set "
                "model=null checkpoint=DIR to train adapters of a trained model, or adapter=none"
            )
        assert isinstance(config.model, Flavour)  # the config refuses another
        source, start = FreshSource(config.model, config.run.seed), {}
        processor = source.processor()
    tables = {"data.path": config.data.path}
    sources = inputs_of_sources(config.data)
    run_on_ranks(
        config.engine,
        resolved,
        lambda: {**start, **sources, **input_of_tables(tables)},
        lambda lead: run_supervised(
            config,
            resolved,
            "pretrain",
            lead,
            source,
            processor,
            lambda folders, own: _open_rows(config, own, folders),
            lambda folders, own: _open_held_out(config, own, folders),
            tables,
            {**start, **sources},
        ),
    )


def _open_rows(config: PretrainConfig, processor: Processor, folders: DataFolders) -> StepSource:
    data = config.data
    if data.sources:
        return open_stream(data, data, config.engine.micro_batch_tokens, processor, config.run.seed, folders)
    return open_documents(data, processor, config.run.seed, folders)


def _open_held_out(config: PretrainConfig, processor: Processor, folders: DataFolders) -> RowSource[Row]:
    data = config.data
    if data.sources:
        source = data.held_out(config.evaluation.data, config.evaluation.source)
        return open_held_out(source, data, data, processor, folders)
    return Documents(data, processor, folders, config.evaluation.data, "evaluation.data")
