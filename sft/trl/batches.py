"""Rows of an update as the padded batches that a transformers model trains on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.batch import Row
from model.padded import pad_rows


def padded_batch(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Every completion of the rows behind its own copy of the prompt, padded on the right.

    `input_ids`, `attention_mask` and `labels` [B, L], where B counts completions; a label is -100 wherever our own loss
    scores nothing: in the prompt, in the padding, and in what a row says is not scored. `pixel_values` are the tiles
    [I, 3, height, width] of all images, or a list of them where sizes differ; absent without images.
    """
    ids: list[list[int]] = []
    weights: list[list[float]] = []
    images: list[list[Tensor]] = []
    for row in rows:
        opened = [image if isinstance(image, Tensor) else image.open() for image in row.images]
        for number, completion in enumerate(row.completions):
            scored = np.ones(len(completion)) if row.scored is None else row.scored[number].astype(float)
            ids.append([*row.prefix_ids, *completion])
            weights.append([0.0] * len(row.prefix_ids) + scored.tolist())
            images.append(opened)
    padded = pad_rows(ids, weights, images, pad_id, "right")
    batch: dict[str, Any] = {
        "input_ids": padded.token_ids,
        "attention_mask": padded.attention_mask,
        "labels": padded.token_ids.masked_fill(padded.loss_weights == 0, -100),
    }
    if padded.pixels:
        is_even = len({image.shape[1:] for image in padded.pixels}) == 1
        batch["pixel_values"] = torch.cat(padded.pixels) if is_even else list(padded.pixels)
    return batch
