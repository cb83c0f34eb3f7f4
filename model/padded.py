"""Conversations padded to one length, for code that knows no packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import move_batch


@dataclass(frozen=True)
class PaddedBatch:
    """B conversations padded to the longest, L tokens: for code that knows no packed rows."""

    token_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] 1 at tokens, 0 at padding
    loss_weights: Tensor  # [B, L]
    pixels: tuple[Tensor, ...]  # one [tiles, 3, height, width] per image or frame, conversation by conversation
    tiles_per_image: tuple[int, ...]
    images_per_row: tuple[int, ...]  # how many of `pixels` belong to each conversation

    def to(self, device: torch.device) -> "PaddedBatch":
        return move_batch(self, device)


def pad_rows(
    ids: Sequence[Sequence[int]],
    loss_weights: Sequence[Sequence[float]],
    images: Sequence[Sequence[Tensor]],
    pad_id: int,
    padding_side: str,
) -> PaddedBatch:
    """Pad conversations on their "left" or "right"."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side: expected left or right, found {padding_side!r}")
    if not ids:
        raise ValueError("batch: expected at least one conversation, found none")
    length = max(map(len, ids))
    token_ids = torch.full((len(ids), length), pad_id)
    mask = torch.zeros_like(token_ids)
    weights = torch.zeros(token_ids.shape)
    for row, (own_ids, own_weights) in enumerate(zip(ids, loss_weights, strict=True)):
        start = length - len(own_ids) if padding_side == "left" else 0
        cut = slice(start, start + len(own_ids))
        token_ids[row, cut] = torch.tensor(own_ids)
        mask[row, cut] = 1
        weights[row, cut] = torch.tensor(own_weights)
    pixels = tuple(image for own in images for image in own)
    return PaddedBatch(token_ids, mask, weights, pixels, tuple(map(len, pixels)), tuple(map(len, images)))
