"""Multimodal pre-training as a stage: a fresh model, its documents, the supervised loop."""

from pathlib import Path

from model.checkpoint import build_flavour
from model.pretrain.config import PretrainConfig
from model.pretrain.documents import DocumentMixture
from model.supervised import run_supervised


def run_stage(config: PretrainConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    model, processor = build_flavour(config.model, config.run.seed)
    documents = DocumentMixture(Path(config.data.path), config.data.mixture, processor, config.run.seed)
    run_supervised(config, resolved, "pretrain", model, processor, documents)
