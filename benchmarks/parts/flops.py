"""Matmul FLOPs of the model from its shapes. Attention counts the (query, key) pairs that causality leaves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from model.batch import ModelInputs
from model.config import MoeLanguageConfig, SailVL2Config
from rlhf.trajectory import Group


@dataclass(frozen=True)
class Work:
    """The size of a number of forward passes, from which FLOPs follow."""

    tokens: int  # through the decoder
    pairs: int  # (query, key) pairs in its attention
    scored: int  # tokens through the head
    tiles: int  # through vision tower and adapter

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.scored + other.scored,
            self.tiles + other.tiles,
        )


NOTHING = Work(0, 0, 0, 0)


def total(parts: Iterable[Work]) -> Work:
    return sum(parts, NOTHING)


def shared_row(prefix: int, completions: Sequence[int], tiles: int) -> Work:
    """A packed row: the prefix once, each completion sees it and itself."""
    own = sum(length * prefix + _causal(length) for length in completions)
    return Work(prefix + sum(completions), _causal(prefix) + own, sum(completions), tiles)


def once_per_group(groups: Iterable[Group]) -> Work:
    """The least that groups need: prompt and images once each."""
    return total(
        shared_row(
            len(group.trajectories[0].rollout.prompt_ids),
            [len(t.rollout.completion_ids) for t in group.trajectories],
            sum(len(image) for image in group.images),
        )
        for group in groups
    )


def packed_work(inputs: ModelInputs) -> Work:
    """The work in a packed batch; a prefix that several rows repeat counts once for each of them."""
    layout, roots = inputs.layout, inputs.root_lengths
    slots = layout.slot_of_token - layout.root_tokens.numel()
    branches, longest = layout.branch_tokens.shape
    own = torch.bincount(slots[slots >= 0] // max(1, longest), minlength=branches)
    pairs = (roots * (roots + 1) // 2).sum() + (own * roots[layout.branch_root] + own * (own + 1) // 2).sum()
    return Work(inputs.num_tokens, int(pairs), len(inputs.target_ids), inputs.num_tiles)


def padded_row(length: int, completion: int, tiles: int) -> Work:
    """A row of its own, `length` tokens with prompt and padding, of which `completion` are scored."""
    return Work(length, _causal(length), completion, tiles)


def forward_flops(config: SailVL2Config, work: Work) -> float:
    """FLOPs of one forward pass; with its backward pass an update takes three times as many."""
    text = config.language
    heads = text.num_attention_heads * text.head_dim
    projections = text.hidden_size * (2 * heads + 2 * text.num_key_value_heads * text.head_dim)
    if isinstance(text, MoeLanguageConfig):
        mlp = 3 * text.hidden_size * text.moe_intermediate_size * text.num_experts_per_tok
    else:
        mlp = 3 * text.hidden_size * text.intermediate_size
    decoder = text.num_hidden_layers * 2 * (work.tokens * (projections + mlp) + 2 * work.pairs * heads)
    head = 2 * work.scored * text.hidden_size * text.vocab_size
    return decoder + head + work.tiles * tile_flops(config)


def tile_flops(config: SailVL2Config) -> float:
    """Vision tower and adapter on one tile."""
    vision, patches = config.vision, config.vision.num_patches
    patchifier = patches * vision.num_channels * vision.patch_size**2 * vision.hidden_size
    block = patches * (4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size)
    tower = 2 * (patchifier + vision.num_hidden_layers * (block + 2 * patches**2 * vision.hidden_size))
    merged, width = config.merge_side**2 * vision.hidden_size, config.language.hidden_size
    return tower + 2 * config.num_image_tokens * (merged * width + width**2)


def _causal(length: int) -> int:
    return length * (length + 1) // 2
