"""Common parts of the benchmarks of the update phase: models of four sizes, stored groups, the project's own update."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import LanguageConfig, SailVL2Config, VisionConfig
from model.engine.config import Device, EngineConfig, OptimizerConfig, Schedule
from model.engine.local import LocalEngine
from model.sail_vl2 import SailVL2
from rewards.result import RewardResult
from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.config import ALGORITHM_CONFIGS
from rlhf.algorithms.registry import build_algorithm
from rlhf.trajectory import Group, Packing, PolicyBatch, Trajectory
from rollouts.rollout import FinishReason, Prompt, Rollout

MAX_POSITIONS = 16384
BEFORE_IMAGE = 4
"""Text tokens of a prompt in front of its images."""


@dataclass(frozen=True)
class Tower:
    width: int
    inner: int
    layers: int
    heads: int


def _model(vision: Tower, text: Tower, vocabulary: int) -> SailVL2Config:
    """1,024 patches in, 256 visual tokens out, as at 448 pixels and patch 14; half as many key-value heads."""
    return SailVL2Config(
        VisionConfig(vision.width, vision.inner, vision.layers, vision.heads, patch_size=4, image_size=128),
        LanguageConfig(
            hidden_size=text.width,
            intermediate_size=text.inner,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.heads // 2,
            head_dim=text.width // text.heads,
            vocab_size=vocabulary,
            max_position_embeddings=MAX_POSITIONS,
            rope_theta=1e4,
        ),
        max_dynamic_patch=1,
        use_thumbnail=False,
    )


SIZES = {
    "T": _model(Tower(128, 384, 3, 4), Tower(128, 384, 3, 4), 512),  # 1.5 M parameters, vision 0.8 M
    # A visual token costs P's tower 1.3 times what it costs its decoder: 2.2 for SAIL-VL2-2B, 1.1 for A3B, 0.4 for 8B,
    # and 10, 4 and 3 for T, M and L.
    "P": _model(Tower(128, 384, 2, 4), Tower(256, 768, 4, 8), 4096),  # 5 M parameters, vision 0.6 M
    "M": _model(Tower(256, 896, 4, 8), Tower(256, 768, 7, 8), 4096),  # 11 M, vision 4.1 M
    "L": _model(Tower(512, 1408, 4, 8), Tower(512, 1536, 8, 8), 4096),  # 42 M, vision 13 M
    "W": _model(Tower(768, 2112, 4, 12), Tower(768, 2304, 8, 12), 4096),  # 91 M, vision 30 M: for the rate alone
}
NUM_GROUPS = {"T": 4, "M": 2, "L": 1, "W": 1}
GROUP_SIZE = 8
RATIOS = {"4:1": 1 / 4, "2:1": 1 / 2, "1:1": 1.0, "1:4": 4.0}
"""Prompt : mean completion -> the mean as a share of the prompt."""


def build_model(config: SailVL2Config) -> SailVL2:
    model = SailVL2(config)
    model.initialise(0)
    return model


def placeholder_id(config: SailVL2Config) -> int:
    return config.language.vocab_size - 1


def prompt_length(config: SailVL2Config, text: int = 16, num_images: int = 1) -> int:
    return text + num_images * config.num_image_tokens


def ragged(mean: int, count: int, key: str) -> list[int]:
    """Completion lengths from 0.5 to 1.5 of the mean, keyed. They come in pairs around it: the mean is exact, whatever
    the draw."""
    draws = random.Random(f"{key} {mean}")
    offsets = [draws.uniform(-0.5, 0.5) for _ in range(count // 2)]
    lengths = [round(mean * (1 + sign * offset)) for offset in offsets for sign in (1, -1)]
    return [max(1, length) for length in [*lengths, *[mean] * (count % 2)]]


def build_group(
    config: SailVL2Config, number: int, lengths: Sequence[int], text: int = 16, num_images: int = 1
) -> Group:
    """A prompt of `text` tokens and its images, with completions of these lengths and centred advantages; keyed."""
    generator = torch.Generator().manual_seed(number)
    placeholder, side = placeholder_id(config), config.vision.image_size

    def tokens(count: int) -> list[int]:
        return torch.randint(0, placeholder, (count,), generator=generator).tolist()

    visual = [placeholder] * (num_images * config.num_image_tokens)
    prompt_ids = [*tokens(BEFORE_IMAGE), *visual, *tokens(text - BEFORE_IMAGE)]
    images = [torch.randn(1, 3, side, side, generator=generator) for _ in range(num_images)]
    advantages = torch.randn(len(lengths), generator=generator)
    if len(lengths) > 1:
        advantages -= advantages.mean()
    trajectories = []
    for index, (length, advantage) in enumerate(zip(lengths, advantages.tolist(), strict=True)):
        rollout = Rollout(
            group_index=number,
            prompt_id=f"p{number}",
            sample_index=index,
            prompt_ids=prompt_ids,
            completion_ids=tokens(length),
            completion_mask=[1] * length,
            rollout_logprobs=[-1.0] * length,
            policy_versions=((0, 0),),
            finish_reason=FinishReason.stop,
        )
        trajectories.append(Trajectory(rollout, RewardResult(0.0, {}), 0.0, advantage))
    return Group(number, Prompt(f"p{number}", [], ""), images, tuple(trajectories))


def case_groups(size: str, ratio: str) -> list[Group]:
    """The groups of one update."""
    config = SIZES[size]
    mean = round(prompt_length(config) * RATIOS[ratio])
    return [build_group(config, i, ragged(mean, GROUP_SIZE, f"group {i}")) for i in range(NUM_GROUPS[size])]


def policy_loss() -> Algorithm:
    """DAPO: clip-higher, every token of the update weighs the same, no KL, no entropy bonus."""
    return build_algorithm(ALGORITHM_CONFIGS["dapo"](), max_completion_tokens=MAX_POSITIONS)


class SharedUpdate:
    """The project's own update of stored groups: pack, forward and backward of every micro-batch, optimizer step.

    The learning rate is too small to change a float32 weight: every update is the same work on the same numbers.
    """

    def __init__(self, model: SailVL2, groups: Sequence[Group], micro_batch_tokens: int, threads: int = 2) -> None:
        optimizer = OptimizerConfig(learning_rate=1e-30, warmup_steps=0, schedule=Schedule.constant)
        config = EngineConfig(device=Device.cpu, num_threads=threads, micro_batch_tokens=micro_batch_tokens)
        self.engine = LocalEngine(model, config, optimizer, total_steps=10**9)
        self.groups, self._budget, self._algorithm = groups, micro_batch_tokens, policy_loss()

    def batches(self) -> list[PolicyBatch]:
        config = self.engine.model.config
        return Packing(self._budget, placeholder_id(config), config.pixels_per_token).pack(self.groups)

    def accumulate(self) -> float:
        """Gradients of one update; returns its loss."""
        denominator = self._algorithm.denominator(self.groups)
        loss = self._algorithm.loss
        return self.engine.accumulate(self.batches(), loss, denominator).total()["loss"]

    def largest_pass(self) -> None:
        """Forward and backward of the micro-batch with most tokens, which decides the peak of memory."""
        batch = max(self.batches(), key=lambda batch: batch.inputs.num_tokens)
        self.engine.accumulate([batch], self._algorithm.loss, 1.0)

    def update(self) -> None:
        self.accumulate()
        self.engine.step()

    def gradients(self) -> dict[str, Tensor]:
        return gradients(self.engine.model)


def gradients(model: SailVL2) -> dict[str, Tensor]:
    """Name -> gradient, 0 where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


@contextmanager
def fast_kernels() -> Iterator[None]:
    """Rivals need not pay for kernels that repeat to the last bit; the project's engine asks for them."""
    repeatable = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(repeatable)
