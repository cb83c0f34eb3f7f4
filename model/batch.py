"""Packed token rows: the only place where lists of token ids become model inputs.

Shape letters of the whole repository: B sequences, T packed tokens, N scored tokens, D width, H heads, K head width,
V vocabulary, P patches (or prefix slots in attention), I image tiles, G group members, R rows, L layers, E experts,
k experts of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from model.layout import Layout, Span


class StoredImage(Protocol):
    """An image that is opened where its pixels are needed, in whatever process that is."""

    @property
    def shape(self) -> torch.Size:
        """[tiles, 3, height, width] of its pixels."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that it takes unopened."""
        ...

    def open(self) -> Tensor:
        """Its pixels. `MediaError` where it cannot be read."""
        ...


@dataclass(frozen=True)
class Row:
    """One prefix and the completions that share it: `[prefix][completion 1] ... [completion G]`."""

    prefix_ids: Sequence[int]  # expanded form: one placeholder id per visual token
    completions: Sequence[Sequence[int]]  # at least one, none empty
    images: Sequence[Tensor | StoredImage] = ()  # the row's images, pixels of each [tiles, 3, height, width]
    routes: "RowRoutes | None" = None  # the experts that a sampler of an MoE took
    scored: Sequence[np.ndarray] | None = None  # which tokens of each completion are scored, as booleans; None: all

    @property
    def num_tokens(self) -> int:
        return len(self.prefix_ids) + sum(map(len, self.completions))

    @property
    def num_scored(self) -> int:
        """Tokens that are scored."""
        if self.scored is not None:
            return sum(int(mask.sum()) for mask in self.scored)
        return sum(map(len, self.completions))


@dataclass(frozen=True)
class RowRoutes:
    """The experts of the tokens of a row, as integers [tokens, L, k]. Tokens behind the last one given are unknown."""

    prefix: np.ndarray
    completions: Sequence[np.ndarray]


@dataclass(frozen=True)
class StoredPixels:
    """Tiles of one size, of images that are still to be opened."""

    images: tuple[Tensor | StoredImage, ...]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((sum(image.shape[0] for image in self.images), *self.images[0].shape[1:]))

    def open(self) -> Tensor:
        """[I, 3, height, width]."""
        return _joined([image if isinstance(image, Tensor) else image.open() for image in self.images])


@dataclass(frozen=True)
class ModelInputs:
    """The input of the model: T tokens of R rows, and which N tokens to score."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T] restart in each row; completions restart after their prefix
    layout: Layout
    root_lengths: Tensor  # [R]
    pixels: tuple[Tensor | StoredPixels, ...]  # one [I, 3, height, width] per tile size; fixed resolution has one size
    visual_index: Tensor  # tokens that visual features replace, in the order of `pixels`
    source_index: Tensor  # [N] token whose hidden state predicts the target
    target_ids: Tensor  # [N] completion tokens, row by row, completion by completion
    routing_weights: Tensor | None = None  # [T] how much each token counts in an MoE's load balancing; None: 1 each
    routes: Tensor | None = None  # [T, L, k] experts that an MoE takes; -1: its router chooses; None: for every token
    has_filler_tile: bool = False  # `pixels` is one tile that the vision tower sees and no token shows

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_tiles(self) -> int:
        return sum(tiles.shape[0] for tiles in self.pixels)

    @property
    def tiles(self) -> tuple[Tensor, ...]:
        """The pixels, which are there after `to`."""
        assert all(isinstance(tiles, Tensor) for tiles in self.pixels)
        return self.pixels  # pyright: ignore[reportReturnType]

    @property
    def is_open(self) -> bool:
        """Whether all pixels are there."""
        return all(isinstance(tiles, Tensor) for tiles in self.pixels)

    def to(self, device: torch.device) -> "ModelInputs":
        """A copy on `device` whose images are open. `MediaError` where one cannot be read."""
        return move_batch(self, device)


class Batch(Protocol):
    """A micro-batch: what an engine may do with it, whatever its loss finds in it."""

    @property
    def inputs(self) -> ModelInputs: ...

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on `device` and every image open. `MediaError` where one cannot be read."""
        ...


@dataclass(frozen=True)
class TrainBatch:
    """Supervised micro-batch: log-probabilities of the scored tokens are weighted by `loss_weights`."""

    inputs: ModelInputs
    loss_weights: Tensor  # [N]
    sources: Tensor | None = None  # [N] number of the source that each token's row is from; None: there is one

    def to(self, device: torch.device) -> "TrainBatch":
        return move_batch(self, device)


def pack_rows(rows: Sequence[Row], placeholder_id: int, pixels_per_token: int) -> ModelInputs:
    """Concatenate rows without padding. Raises `ValueError` when placeholders and visual tokens disagree.

    `pixels_per_token` is the side of the square behind one visual token.
    """
    packer = _Packer()
    for row in rows:
        packer.add(row)
    token_ids = np.concatenate(packer.ids)
    pixels, visual_index = _place_images(rows, np.flatnonzero(token_ids == placeholder_id), pixels_per_token)
    return ModelInputs(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(np.concatenate(packer.positions)),
        layout=packer.layout(),
        root_lengths=torch.tensor([length for _, length in packer.roots]),
        pixels=pixels,
        visual_index=visual_index,
        source_index=torch.from_numpy(np.concatenate(packer.sources)),
        target_ids=torch.from_numpy(np.concatenate(packer.targets)),
        routes=_pack_routes(rows),
    )


def _pack_routes(rows: Sequence[Row]) -> Tensor | None:
    """[T, L, k] int16, -1 where a token's experts are unknown; None if they are unknown for all tokens."""
    shape = next((row.routes.prefix.shape[1:] for row in rows if row.routes), None)
    if shape is None:
        return None
    packed = np.full((sum(row.num_tokens for row in rows), *shape), -1, np.int16)
    start = 0
    for row in rows:
        spans = [row.prefix_ids, *row.completions]
        given = [row.routes.prefix, *row.routes.completions] if row.routes else [packed[:0]] * len(spans)
        for ids, routes in zip(spans, given, strict=True):
            if len(routes) > len(ids):
                raise ValueError(f"routes: expected at most one for each of {len(ids)} tokens, found {len(routes)}")
            packed[start : start + len(routes)] = routes
            start += len(ids)
    return torch.from_numpy(packed)


def split_by_tokens(
    lengths: Sequence[int], budget: int, num_parts: int = 1, costs: Sequence[float] | None = None
) -> list[list[int]]:
    """Deal rows of these lengths into micro-batches of at most `budget` tokens; a longer row stands alone.

    Returns the numbers of the rows of each micro-batch. For one part rows stay in order. For several the number of
    micro-batches is a multiple of `num_parts` where there are rows enough, and they cost alike: the dearest rows are
    dealt first, each to the cheapest micro-batch, because processes that work side by side wait for the slowest.
    `costs` of the rows are their lengths unless given.
    """
    if num_parts == 1:
        return _in_order(lengths, budget)
    costs = lengths if costs is None else costs
    rounds = max(1, -(-sum(lengths) // (budget * num_parts)))
    while True:
        count = min(len(lengths), rounds * num_parts)
        bins = _dearest_first(costs, count)
        fits = all(len(rows) == 1 or sum(lengths[row] for row in rows) <= budget for rows in bins)
        if fits or count == len(lengths):
            return bins
        rounds += 1


def _in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    bins: list[list[int]] = []
    used = 0
    for row, length in enumerate(lengths):
        if not bins or used + length > budget:
            bins.append([])
            used = 0
        bins[-1].append(row)
        used += length
    return bins


def _dearest_first(costs: Sequence[float], count: int) -> list[list[int]]:
    """`count` bins; rows keep their order within one."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        cheapest = loads.index(min(loads))
        bins[cheapest].append(row)
        loads[cheapest] += costs[row]
    return [sorted(rows) for rows in bins]


def _place_images(
    rows: Sequence[Row], placeholders: np.ndarray, pixels_per_token: int
) -> tuple[tuple[Tensor | StoredPixels, ...], Tensor]:
    """(pixels by tile size, the placeholder tokens they fill in the same order)."""
    images = [image for row in rows for image in row.images]
    lengths = [i.shape[0] * (i.shape[2] // pixels_per_token) * (i.shape[3] // pixels_per_token) for i in images]
    _check_placeholders(rows, placeholders, lengths)
    by_size: dict[tuple[int, ...], tuple[list[Tensor | StoredImage], list[np.ndarray]]] = {}
    pieces = np.split(placeholders, np.cumsum(lengths)[:-1]) if images else []
    for image, piece in zip(images, pieces, strict=True):
        tiles, index = by_size.setdefault(tuple(image.shape[2:]), ([], []))
        tiles.append(image)
        index.append(piece)
    pixels = tuple(_pixels(tiles) for tiles, _ in by_size.values())
    index = [piece for _, pieces in by_size.values() for piece in pieces]
    return pixels, torch.from_numpy(np.concatenate(index) if index else placeholders)


def _pixels(images: Sequence[Tensor | StoredImage]) -> Tensor | StoredPixels:
    opened = [image for image in images if isinstance(image, Tensor)]
    return _joined(opened) if len(opened) == len(images) else StoredPixels(tuple(images))


def _joined(images: Sequence[Tensor]) -> Tensor:
    tiles = torch.cat(list(images))
    if not torch.isfinite(tiles).all():
        raise ValueError("pixels: expected finite numbers, found NaN or infinity in an image; check how it was made")
    return tiles


def _check_placeholders(rows: Sequence[Row], placeholders: np.ndarray, lengths: list[int]) -> None:
    """`ValueError` unless every row has as many placeholders as its own images have visual tokens."""
    ends = np.cumsum([row.num_tokens for row in rows])
    found = np.diff(np.searchsorted(placeholders, ends), prepend=0)
    wanted = iter(lengths)
    for number, row in enumerate(rows):
        expected = sum(next(wanted) for _ in row.images)
        if expected != found[number]:
            raise ValueError(
                f"image placeholders: row {number}: expected {expected} tokens for {len(row.images)} images of "
                f"{sum(image.shape[0] for image in row.images)} tiles, found {found[number]}; "
                "expand each image once, and never train on a sampled placeholder"
            )


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
        for number, completion in enumerate(row.completions):
            first = self.total
            self._append(completion, prefix)
            sources = np.concatenate(([start + prefix - 1], np.arange(first, self.total - 1)))
            scored = slice(None) if row.scored is None else row.scored[number]
            self.sources.append(sources[scored])
            self.targets.append(self.ids[-1][scored])
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
        return Layout(
            root_tokens=torch.from_numpy(roots),
            branch_tokens=torch.from_numpy(branches),
            branch_root=torch.from_numpy(branch_root),
            slot_of_token=torch.from_numpy(slot_of_token),
            token_of_slot=torch.from_numpy(np.where(real, tokens, self.total)),
            is_plain=bool(root_real.all()) and not self.branches,
            spans=self._runs(),
        )

    def _runs(self) -> tuple[Span, ...]:
        stops: list[list[int]] = [[] for _ in self.roots]
        for root, (first, length) in zip(self.branch_root, self.branches, strict=True):
            stops[root].append(first + length)
        return tuple(
            Span(start, start + length, tuple(own)) for (start, length), own in zip(self.roots, stops, strict=True)
        )


def _slots(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(token of each slot, 0 in padding; True where the slot is real), both [runs, longest]."""
    longest = max((length for _, length in spans), default=0)
    column = np.arange(longest)
    starts = np.asarray([start for start, _ in spans], np.int64).reshape(-1, 1)
    real = column < np.asarray([length for _, length in spans], np.int64).reshape(-1, 1)
    return np.where(real, starts + column, 0), real


Moved = TypeVar("Moved")


def move_batch(batch: Moved, device: torch.device) -> Moved:
    """A copy of a batch, which is a dataclass, with every tensor on `device` and every image open."""
    if device.type == "cpu" and _is_open(batch):
        return batch
    moved: dict[str, object] = {}
    for f in fields(batch):  # pyright: ignore[reportArgumentType]
        value = getattr(batch, f.name)
        if isinstance(value, Tensor):
            moved[f.name] = value.to(device, non_blocking=True)
        elif isinstance(value, tuple):
            opened = (one.open() if isinstance(one, StoredPixels) else one for one in value)
            moved[f.name] = tuple(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in opened)
        elif isinstance(value, ModelInputs | Layout):
            moved[f.name] = move_batch(value, device)
        else:
            moved[f.name] = value
    return type(batch)(**moved)


def _is_open(batch: object) -> bool:
    inputs = batch if isinstance(batch, ModelInputs) else getattr(batch, "inputs", None)
    return not isinstance(inputs, ModelInputs) or inputs.is_open
