"""TRL's side: `GRPOTrainer._compute_loss` on the same stored groups and weights, backward, clipping, AdamW.

Of TRL 1.16 with our transformers class. Micro-batches are what its trainer makes of a step: completions padded to the
longest of the step, cut into passes of `per_device_train_batch_size` rows; every row has its own pixels. Attention is
SDPA (the class has no other), gradient checkpointing is off, and there is no reference model.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoProcessor
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.trainer.utils import split_tensor_dict

from benchmarks.parts.update_cases import fast_kernels, placeholder_id, policy_loss
from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.hf import SailVLForConditionalGeneration
from model.hf_configuration import SailVLConfig
from model.sail_vl2 import SailVL2
from rlhf.trajectory import Group

MAX_GRAD_NORM = 1.0


def twin_of(model: SailVL2) -> SailVLForConditionalGeneration:
    """Our transformers class with the model's weights."""
    config = SailVLConfig(**model.config.to_published(), image_token_id=placeholder_id(model.config))
    twin = SailVLForConditionalGeneration(config)
    twin.load_state_dict({trl_name(name): weight for name, weight in model.state_dict().items()})
    twin.tie_weights()
    return twin.train()


def trl_name(name: str) -> str:
    """Our parameter's name in the transformers class."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def build_trainer(policy: Any) -> Any:
    """With the settings that decide the loss. Prompts and rewards are not used: the rollouts are given."""
    clips = policy_loss().config
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), *build_flavour(Flavour.tiny, 0))
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            loss_type="dapo",
            epsilon=clips.clip_low,
            epsilon_high=clips.clip_high,
            beta=0.0,
            num_generations=8,
            per_device_train_batch_size=8,
            max_grad_norm=MAX_GRAD_NORM,
            save_strategy="no",
            report_to=[],
        )
        return GRPOTrainer(
            model=policy,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["none"]}),
            processing_class=AutoProcessor.from_pretrained(folder),
        )


class TrlUpdate:
    """One update of stored groups by TRL's loss, `rows_per_pass` rows at a time."""

    def __init__(self, trainer: Any, optimizer: Any, groups: Sequence[Group], rows_per_pass: int) -> None:
        self.trainer, self.optimizer = trainer, optimizer
        batch = stored_batch(groups)
        self._passes = len(batch["advantages"]) // rows_per_pass
        self._batches = split_tensor_dict(batch, self._passes)

    def accumulate(self) -> float:
        """Gradients of one update; returns its loss."""
        with fast_kernels():
            return sum(self._backward(batch) for batch in self._batches)

    def update(self) -> None:
        self.accumulate()
        self.step()

    def step(self) -> None:
        policy = self.trainer.model
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def one_pass(self) -> None:
        """Forward and backward of one pass, for choosing how many rows it should have."""
        with fast_kernels():
            self._backward(self._batches[0])
        self.optimizer.zero_grad()

    def gradients(self) -> dict[str, Tensor]:
        """Under their names in the transformers class: see `trl_name`."""
        return {name: parameter.grad for name, parameter in self.trainer.model.named_parameters()}

    def _backward(self, batch: dict[str, Any]) -> float:
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = self._passes
        loss = trainer._compute_loss(trainer.model, batch)
        trainer.accelerator.backward(loss)
        return loss.item()


def build_optimizer(policy: Any) -> torch.optim.Optimizer:
    """Fused AdamW whose learning rate is too small to change a float32 weight."""
    return torch.optim.AdamW(policy.parameters(), lr=1e-30, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


def stored_batch(groups: Sequence[Group]) -> dict[str, Any]:
    """The result of `_generate_and_score_completions` for these groups, as far as the loss reads it."""
    rows = [(group, t) for group in groups for t in group.trajectories]
    lengths = torch.tensor([len(t.rollout.completion_ids) for _, t in rows])
    completions = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, (_, t) in zip(completions, rows, strict=True):
        row[: len(t.rollout.completion_ids)] = torch.tensor(t.rollout.completion_ids)
    prompts = torch.tensor([list(t.rollout.prompt_ids) for _, t in rows])  # all have one length
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": (torch.arange(completions.shape[1]) < lengths[:, None]).long(),
        "advantages": torch.tensor([t.advantage for _, t in rows]),
        "num_items_in_batch": lengths.sum(),
        "pixel_values": torch.cat([image for group, _ in rows for image in group.images]),
        "num_images": [len(group.images) for group, _ in rows],
    }
