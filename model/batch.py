"""Packed token rows: the only place where lists of token ids become model inputs.

Shape letters of the whole repository: B sequences, T packed tokens, N scored tokens, D width, H heads, K head width,
V vocabulary, P patches (or prefix slots in attention), I image tiles, G group members, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.attention import Layout


@dataclass(frozen=True)
class Row:
    """One prefix and the completions that share it: `[prefix][completion 1] ... [completion G]`."""

    prefix_ids: Sequence[int]  # expanded form: one placeholder id per visual token
    completions: Sequence[Sequence[int]]  # at least one, none empty; every token of them is scored
    tiles: Tensor | None = None  # [I, 3, S, S] pixels of the prefix's images

    @property
    def num_tokens(self) -> int:
        return len(self.prefix_ids) + sum(map(len, self.completions))


@dataclass(frozen=True)
class ModelInputs:
    """What the model reads: T tokens of R rows, and which N tokens to score."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T] restart in each row; completions restart after their prefix
    layout: Layout
    root_lengths: Tensor  # [R]
    pixels: Tensor  # [I, 3, S, S]
    visual_index: Tensor  # [I * tokens per tile] tokens that visual features replace
    source_index: Tensor  # [N] token whose hidden state predicts the target
    target_ids: Tensor  # [N] completion tokens, row by row, completion by completion

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_tiles(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device) -> "ModelInputs":
        return move_batch(self, device)


@dataclass(frozen=True)
class TrainBatch:
    """Supervised micro-batch: log-probabilities of the scored tokens are weighted by `loss_weights`."""

    inputs: ModelInputs
    loss_weights: Tensor  # [N]

    def to(self, device: torch.device) -> "TrainBatch":
        return move_batch(self, device)


def pack_rows(rows: Sequence[Row], placeholder_id: int, tokens_per_tile: int) -> ModelInputs:
    """Concatenate rows without padding. Raises `ValueError` when placeholders and visual tokens disagree."""
    packer = _Packer()
    for row in rows:
        packer.add(row)
    token_ids = np.concatenate(packer.ids)
    visual_index = np.flatnonzero(token_ids == placeholder_id)
    tiles = [row.tiles for row in rows if row.tiles is not None]
    pixels = torch.cat(tiles) if tiles else torch.zeros(0, 3, 1, 1)
    if len(visual_index) != pixels.shape[0] * tokens_per_tile:
        raise ValueError(
            f"image placeholders: expected {pixels.shape[0]} tiles x {tokens_per_tile} = "
            f"{pixels.shape[0] * tokens_per_tile} tokens, found {len(visual_index)}; "
            "expand each image once, and never train on a sampled placeholder"
        )
    return ModelInputs(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(np.concatenate(packer.positions)),
        layout=packer.layout(),
        root_lengths=torch.tensor([length for _, length in packer.roots]),
        pixels=pixels,
        visual_index=torch.from_numpy(visual_index),
        source_index=torch.from_numpy(np.concatenate(packer.sources)),
        target_ids=torch.from_numpy(np.concatenate(packer.targets)),
    )


def split_by_tokens(rows: Sequence[Row], budget: int) -> list[slice]:
    """Cut rows, in order, into micro-batches of at most `budget` tokens (a longer row stands alone)."""
    slices, start, used = [], 0, 0
    for index, row in enumerate(rows):
        if index > start and used + row.num_tokens > budget:
            slices.append(slice(start, index))
            start, used = index, 0
        used += row.num_tokens
    return [*slices, slice(start, len(rows))] if rows else []


class _Packer:
    """Accumulates rows; roots and branches are (first token, length) runs of the packed sequence."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.sources: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.roots: list[tuple[int, int]] = []
        self.branches: list[tuple[int, int]] = []
        self.branch_root: list[int] = []
        self.total = 0

    def add(self, row: Row) -> None:
        if not row.prefix_ids:
            raise ValueError("row: expected at least one prefix token to predict the first completion token from")
        if any(len(completion) == 0 for completion in row.completions):
            raise ValueError("row: expected completions of at least one token, found an empty one")
        prefix = len(row.prefix_ids)
        start = self.total
        self._append(row.prefix_ids, 0)
        # A lone completion needs no branch: prefix and completion are one causal sequence.
        alone = len(row.completions) == 1
        for completion in row.completions:
            first = self.total
            self._append(completion, prefix)
            self.sources.append(np.concatenate(([start + prefix - 1], np.arange(first, self.total - 1))))
            self.targets.append(self.ids[-1])
            if not alone:
                self.branches.append((first, len(completion)))
                self.branch_root.append(len(self.roots))
        self.roots.append((start, self.total - start if alone else prefix))
        if not row.completions:
            self.sources.append(np.zeros(0, np.int64))
            self.targets.append(np.zeros(0, np.int64))

    def _append(self, ids: Sequence[int], first_position: int) -> None:
        self.ids.append(np.asarray(ids, np.int64))
        self.positions.append(np.arange(first_position, first_position + len(ids)))
        self.total += len(ids)

    def layout(self) -> Layout:
        roots, root_real = _slots(self.roots)
        branches, branch_real = _slots(self.branches)
        tokens = np.concatenate((roots.ravel(), branches.ravel()))
        real = np.concatenate((root_real.ravel(), branch_real.ravel()))
        slot_of_token = np.empty(self.total, np.int64)
        slot_of_token[tokens[real]] = np.flatnonzero(real)
        branch_root = np.asarray(self.branch_root, np.int64)
        length = branches.shape[1]
        causal = np.tril(np.ones((length, length), bool))
        to_prefix = np.broadcast_to(root_real[branch_root][:, None], (len(branch_root), length, roots.shape[1]))
        to_own = np.broadcast_to(causal, (len(branch_root), length, length))
        return Layout(
            root_tokens=torch.from_numpy(roots),
            branch_tokens=torch.from_numpy(branches),
            branch_root=torch.from_numpy(branch_root),
            branch_mask=torch.from_numpy(np.concatenate((to_prefix, to_own), axis=2)[:, None]),
            slot_of_token=torch.from_numpy(slot_of_token),
            token_of_slot=torch.from_numpy(np.where(real, tokens, self.total)),
        )


def _slots(runs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(token of each slot, 0 in padding; True where the slot is real), both [runs, longest]."""
    longest = max((length for _, length in runs), default=0)
    column = np.arange(longest)
    starts = np.asarray([start for start, _ in runs], np.int64).reshape(-1, 1)
    real = column < np.asarray([length for _, length in runs], np.int64).reshape(-1, 1)
    return np.where(real, starts + column, 0), real


def move_batch(batch: Any, device: torch.device) -> Any:
    """A copy of a batch dataclass with every tensor on `device`."""
    if device.type == "cpu":
        return batch
    moved = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, Tensor):
            moved[f.name] = value.to(device, non_blocking=True)
        elif isinstance(value, ModelInputs | Layout):
            moved[f.name] = move_batch(value, device)
        else:
            moved[f.name] = value
    return type(batch)(**moved)
