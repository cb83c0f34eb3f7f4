"""Multimodal pre-training as a stage: a fresh model, its documents, the supervised loop."""

from model.checkpoint import build_flavour
from model.config import Flavour
from model.pretrain.config import PretrainConfig
from model.pretrain.documents import open_documents
from model.supervised import run_supervised


def run_stage(config: PretrainConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    assert isinstance(config.model, Flavour)  # the config refuses another
    model, processor = build_flavour(config.model, config.run.seed)
    run_supervised(
        config,
        resolved,
        "pretrain",
        model,
        processor,
        lambda folders: open_documents(config.data, processor, config.run.seed, folders),
        {"data.path": config.data.path},
    )
