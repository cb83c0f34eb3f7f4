"""A checkpoint of ours as a transformers model that TRL's trainers train, and the way back. It does not import TRL."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

import model.hf  # noqa: F401  (registers the classes)
from model.checkpoint import StoredTensors, load_model, save_model
from model.config import StoredDtype, Tower
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.schedule import learning_rate_at
from model.processing.processor import Processor


def load_policy(checkpoint: Path, processor: Processor, engine: EngineConfig) -> Any:
    """The checkpoint as a transformers model in fp32. The end of the turn, and nothing else, ends its completions."""
    StoredTensors(checkpoint)  # refuses files that are not what the folder's manifest says
    policy = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    policy.generation_config.eos_token_id = processor.tokenizer.end_id
    for tower in engine.freeze:
        getattr(policy.model, tower.value).requires_grad_(False)
        if tower is Tower.language:
            policy.lm_head.requires_grad_(False)
    return policy


def save_policy(folder: Path, policy: Any, checkpoint: Path, dtype: StoredDtype = StoredDtype.keep) -> None:
    """Write the trained weights as our own checkpoints are, beside the processor that they started with."""
    trained, processor = load_model(checkpoint)
    renamed = {}
    for name, weight in policy.state_dict().items():
        inner = name.removeprefix("model.")
        inner = inner.replace("language_model.", "language_model.model.", 1)
        renamed["language_model.lm_head.weight" if name == "lm_head.weight" else inner] = weight
    trained.load_state_dict(renamed)
    save_model(folder, trained, processor, dtype=dtype)


def build_optimizer(policy: Any, config: OptimizerConfig, total_steps: int) -> tuple[Any, Any]:
    """AdamW and the schedule of `LocalEngine`: matrices decay, vectors do not."""
    optimizer = build_adamw(policy, config)
    return optimizer, build_schedule(optimizer, config, total_steps)


def build_adamw(policy: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW of `LocalEngine` for what trains in the policy."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    return torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
        fused=True,
    )


def build_schedule(optimizer: Any, config: OptimizerConfig, total_steps: int, first: int = 0) -> Any:
    """Our learning rates of a run of `total_steps` updates, from its update `first` (counted from 0) on."""
    shares = [learning_rate_at(step, total_steps, config) / config.learning_rate for step in range(total_steps + 1)]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shares[min(first + step, total_steps)])
