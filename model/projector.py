"""2x2 pixel-shuffle (version v2) and the LayerNorm-MLP adapter `mlp1`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pixel_shuffle(features: Tensor, columns: int, merge: int) -> Tensor:
    """[I, P, D], a grid of P patches with `columns` in each row -> [I, P/merge^2, merge^2 * D].

    Output tokens are row-major; channel blocks are ordered (0,0), (0,1), (1,0), (1,1) within each merged square.
    """
    num_images, num_patches, width = features.shape
    rows = num_patches // columns
    squares = features.reshape(num_images, rows // merge, merge, columns // merge, merge, width)
    return squares.permute(0, 1, 3, 2, 4, 5).reshape(num_images, num_patches // merge**2, merge**2 * width)


def visual_tokens(
    tower: nn.Module, adapter: nn.Module, pixels: Sequence[Tensor], patch_size: int, merge: int
) -> list[Tensor]:
    """Tiles, one [I, 3, height, width] per size -> [I, tokens per tile, D] of each size.

    Tower and adapter are called once for all of them.
    """
    features = tower(pixels)
    merged, shapes = [], []
    for tiles, own in zip(pixels, features, strict=True):
        squares = pixel_shuffle(own, tiles.shape[3] // patch_size, merge)
        shapes.append(squares.shape[:2])
        merged.append(squares.flatten(0, 1))
    tokens = adapter(merged[0] if len(merged) == 1 else torch.cat(merged))
    parts = tokens.split([count * length for count, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def build_adapter(vision_width: int, language_width: int, merge: int) -> nn.Sequential:
    """`mlp1`: LayerNorm, Linear, GELU (exact), Linear; indices 0, 1, 3 hold weights."""
    merged = vision_width * merge**2
    return nn.Sequential(
        nn.LayerNorm(merged),
        nn.Linear(merged, language_width),
        nn.GELU(),
        nn.Linear(language_width, language_width),
    )
