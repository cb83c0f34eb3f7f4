"""How an image becomes square tiles, or one tile of its own size: arithmetic on sizes, and PIL images. Torch-free.

Dynamic tiling as published with SAIL-VL2 (image_processing_sailvl.py of the release, and the authors' evaluation code
for MSAC). Grids are (columns, rows); sizes are (width, height), as in PIL; shapes are (tiles, height, width).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image

Size = tuple[int, int]
Grid = tuple[int, int]
Shape = tuple[int, int, int]

_SIZES_AT_ONCE = 1 << 16
MAX_TILES = 1024
"""Largest cap: far above the 24 of the authors' evaluations, low enough that the list of grids stays short."""


class Cutter(Protocol):
    """One way to cut an image; equal sizes give equal shapes."""

    @property
    def fixed_shape(self) -> Shape | None:
        """The shape of every image, when it does not depend on the image's size."""
        ...

    def shape(self, size: Size) -> Shape:
        """The shape that `cut` gives an image of this size."""
        ...

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """Tiles of an RGB image."""
        ...

    def shapes(self, sizes: np.ndarray) -> np.ndarray:
        """[N, 3] `shape` of every one of the sizes [N, 2]."""
        ...


@dataclass(frozen=True)
class Tiling:
    """Dynamic tiling into squares of `tile_size` pixels."""

    tile_size: int
    max_tiles: int
    min_tiles: int = 1
    thumbnail: bool = True  # the whole image as one more tile, last, when there is more than one
    msac: bool = False  # multi-scale: a second grid of another shape, between the first grid and the thumbnail
    upscale: int = 1  # bilinear enlargement before everything else

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles <= MAX_TILES:
            raise ValueError(
                f"tiles of an image: expected 1 <= min <= max <= {MAX_TILES}, found min {self.min_tiles} and "
                f"max {self.max_tiles}; correct min_dynamic_patch, max_dynamic_patch or max_tiles"
            )

    @property
    def fixed_shape(self) -> Shape | None:
        # With a cap of one tile the second grid of MSAC has no candidates and is the same (1, 1).
        return (1 + self.msac, self.tile_size, self.tile_size) if self.max_tiles == 1 else None

    def grids(self, size: Size) -> tuple[Grid, Grid | None]:
        """(first grid, second grid of MSAC) of an image of this size."""
        width, height = self._enlarged(size)
        candidates = candidate_grids(self.min_tiles, self.max_tiles)
        first = closest_grid(width, height, candidates, self.tile_size)
        if not self.msac:
            return first, None
        others = [grid for grid in candidates if first[0] % grid[0] or first[1] % grid[1]]
        return first, closest_grid(width, height, others, self.tile_size)

    def shape(self, size: Size) -> Shape:
        (columns, rows), second = self.grids(size)
        tiles = columns * rows
        tiles += self.thumbnail and tiles > 1
        tiles += second[0] * second[1] if second else 0
        return tiles, self.tile_size, self.tile_size

    def shapes(self, sizes: np.ndarray) -> np.ndarray:
        enlarged = sizes.astype(np.int64) * self.upscale
        candidates = np.array(candidate_grids(self.min_tiles, self.max_tiles))
        first = closest_grids(enlarged, candidates, self.tile_size)
        tiles = candidates[first].prod(1)
        tiles += (tiles > 1) & self.thumbnail
        if self.msac:
            for number in np.unique(first):
                mine = first == number
                others = candidates[(candidates[number] % candidates != 0).any(1)]
                if len(others):
                    tiles[mine] += others[closest_grids(enlarged[mine], others, self.tile_size)].prod(1)
                else:  # the scalar way then takes one tile
                    tiles[mine] += 1
        sides = np.full_like(tiles, self.tile_size)
        return np.stack([tiles, sides, sides], axis=1)

    def cut(self, image: Image.Image) -> list[Image.Image]:
        first, second = self.grids(image.size)
        if self.upscale > 1:
            image = image.resize(self._enlarged(image.size), Image.Resampling.BILINEAR)
        tiles = cut_grid(image, first, self.tile_size)
        if self.thumbnail and len(tiles) > 1:
            tiles.append(image.resize((self.tile_size, self.tile_size)))
        if second is None:
            return tiles
        # Also when the first grid is one tile, without a thumbnail: that tile then stands last.
        return [*tiles[:-1], *cut_grid(image, second, self.tile_size), *tiles[-1:]]

    def _enlarged(self, size: Size) -> Size:
        return size[0] * self.upscale, size[1] * self.upscale


@dataclass(frozen=True)
class OwnSize:
    """AnyRes: one tile that keeps the image's aspect; each side a multiple of `step`, at most `max_steps` squares."""

    step: int
    max_steps: int
    upscale: int = 1

    @property
    def fixed_shape(self) -> Shape | None:
        return None

    def shape(self, size: Size) -> Shape:
        columns, rows = own_size(size[0] * self.upscale, size[1] * self.upscale, self.step, self.max_steps)
        return 1, rows * self.step, columns * self.step

    def shapes(self, sizes: np.ndarray) -> np.ndarray:
        shapes = [self.shape((int(width), int(height))) for width, height in sizes]
        return np.array(shapes, np.int64).reshape(-1, 3)

    def cut(self, image: Image.Image) -> list[Image.Image]:
        _, height, width = self.shape(image.size)
        if self.upscale > 1:
            enlarged = (image.width * self.upscale, image.height * self.upscale)
            image = image.resize(enlarged, Image.Resampling.BILINEAR)
        return [image.resize((width, height), Image.Resampling.BICUBIC)]


@cache
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Grids of `min_tiles` to `max_tiles` tiles by area; within one area in the published order, which decides ties.

    That order is the iteration order of a Python set filled by these loops, so a set it must be.
    """
    grids: set[Grid] = set()
    for n in range(min_tiles, max_tiles + 1):
        for columns in range(1, n + 1):
            # The published inner loop runs to n and discards what exceeds the cap; stopping there adds the same grids.
            for rows in range(-(-min_tiles // columns), min(n, max_tiles // columns) + 1):
                grids.add((columns, rows))
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def closest_grid(width: int, height: int, grids: Iterable[Grid], tile_size: int) -> Grid:
    """The grid whose aspect is nearest; on an exact tie a later one, if the image fills half of its tiles."""
    aspect, area = width / height, width * height
    best, best_difference = (1, 1), math.inf
    for columns, rows in grids:
        difference = abs(aspect - columns / rows)
        fills_half = area > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and fills_half):
            best, best_difference = (columns, rows), difference
    return best


def closest_grids(sizes: np.ndarray, grids: np.ndarray, tile_size: int) -> np.ndarray:
    """[N] numbers of the grids [C, 2] that `closest_grid` takes for the sizes [N, 2], by the same arithmetic."""
    found = np.empty(len(sizes), np.int64)
    for start in range(0, len(sizes), _SIZES_AT_ONCE):
        width, height = sizes[start : start + _SIZES_AT_ONCE].T
        differences = np.abs((width / height)[:, None] - grids[:, 0] / grids[:, 1])
        is_best = differences == differences.min(1, keepdims=True)
        fills_half = (width * height)[:, None] > 0.5 * tile_size * tile_size * grids[:, 0] * grids[:, 1]
        first, later = is_best.argmax(1), is_best & fills_half
        last = len(grids) - 1 - later[:, ::-1].argmax(1)
        found[start : start + len(width)] = np.where(later.any(1), np.maximum(first, last), first)
    return found


def cut_grid(image: Image.Image, grid: Grid, tile_size: int) -> list[Image.Image]:
    """Resize (PIL's default filter, bicubic) to fill the grid and cut it row by row."""
    columns, rows = grid
    size = (columns * tile_size, rows * tile_size)
    resized = image if image.size == size else image.resize(size)
    if grid == (1, 1):
        return [resized]
    corners = [(column * tile_size, row * tile_size) for row in range(rows) for column in range(columns)]
    return [resized.crop((x, y, x + tile_size, y + tile_size)) for x, y in corners]


def own_size(width: int, height: int, step: int, max_steps: int) -> Grid:
    """(columns, rows) of `step`-pixel squares nearest to an image's size, scaled down to at most `max_steps` squares.

    All in integers, so that the bound holds exactly at any aspect.
    """
    columns, rows = max(1, (2 * width + step) // (2 * step)), max(1, (2 * height + step) // (2 * step))
    if columns * rows <= max_steps:
        return columns, rows
    # The largest rectangle of this aspect has sqrt(max_steps * aspect) columns; rounding down never exceeds the bound.
    columns = max(1, math.isqrt(max_steps * width // height))
    rows = max(1, math.isqrt(max_steps * height // width))
    # Where one side had to be raised to one square, the other alone fills the bound.
    return min(columns, max_steps), min(rows, max_steps)


def stacked(tiles: Iterable[Image.Image]) -> np.ndarray:
    """[tiles, 3, height, width] bytes of equally large RGB tiles."""
    return np.ascontiguousarray(np.stack([np.asarray(tile, np.uint8) for tile in tiles]).transpose(0, 3, 1, 2))


def normalised(tiles: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """[tiles, 3, height, width] float32 of tiles of bytes: (value / 255 - mean) / std, all in float32."""
    values = np.arange(256, dtype=np.float32)[None] / np.float32(255)
    of_byte = (values - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]  # [3, 256]
    found = np.empty(tiles.shape, np.float32)
    for own, pixels in zip(tiles, found, strict=True):
        for channel, plane in enumerate(own):
            np.take(of_byte[channel], plane, out=pixels[channel], mode="clip")  # other modes make a copy first
    return found
