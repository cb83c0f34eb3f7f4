"""Multimodal pre-training as a stage: a fresh model or a checkpoint, its documents, the supervised loop."""

from pathlib import Path

from model.checkpoint import build_flavour, load_model
from model.config import Flavour
from model.lora.config import LoraConfig
from model.pretrain.config import PretrainConfig
from model.pretrain.documents import Documents, open_documents
from model.run.identity import input_of
from model.supervised import run_supervised


def run_stage(config: PretrainConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    if config.checkpoint:
        model, processor = load_model(Path(config.checkpoint))
    else:
        if isinstance(config.adapter, LoraConfig):
            raise ValueError(
                "adapter: lora leaves the model's weights as they are, which are random without a checkpoint; set "
                "model=null checkpoint=DIR to train adapters of a trained model, or adapter=none"
            )
        assert isinstance(config.model, Flavour)  # the config refuses another
        model, processor = build_flavour(config.model, config.run.seed)
    run_supervised(
        config,
        resolved,
        "pretrain",
        model,
        processor,
        lambda folders: open_documents(config.data, processor, config.run.seed, folders),
        lambda folders: Documents(config.data, processor, folders, config.evaluation.data, "evaluation.data"),
        {"data.path": config.data.path},
        {"checkpoint": input_of(Path(config.checkpoint))} if config.checkpoint else {},
    )
