"""Tiles, counted and cut: against a brute force written from the published description, and plain PIL and numpy."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.processing.settings import IMAGENET_MEAN, IMAGENET_STD
from model.processing.tiling import OwnSize, Tiling, candidate_grids, normalised, own_size, stacked


def grids_in_order(low: int, high: int) -> list[tuple[int, int]]:
    """The published loops, word for word: the set's own order within an area matters."""
    found = set()
    for n in range(low, high + 1):
        for i in range(1, n + 1):
            for j in range(1, n + 1):
                if low <= i * j <= high:
                    found.add((i, j))
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def nearest(width: int, height: int, grids: list[tuple[int, int]], side: int) -> tuple[int, int]:
    """All grids at the least distance, in order: each later one wins if the image covers more than half of it."""
    if not grids:
        return (1, 1)
    distances = [abs(width / height - i / j) for i, j in grids]
    tied = [grid for grid, distance in zip(grids, distances, strict=True) if distance == min(distances)]
    winner = tied[0]
    for i, j in tied[1:]:
        if width * height > 0.5 * side * side * i * j:
            winner = (i, j)
    return winner


def brute_force(size, low, high, side, msac):
    grids = grids_in_order(low, high)
    a, b = nearest(*size, grids, side)
    second = nearest(*size, [(i, j) for i, j in grids if a % i != 0 or b % j != 0], side) if msac else None
    return (a, b), second


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


class TestGrids:
    @pytest.mark.parametrize("bounds", [(1, 1), (1, 2), (1, 6), (1, 10), (1, 12), (1, 18), (1, 24), (1, 64), (5, 12)])
    def test_candidates_in_the_published_order(self, bounds):
        assert list(candidate_grids(*bounds)) == grids_in_order(*bounds)

    def test_thousands_of_random_sizes(self):
        rng = random.Random(0)
        for _ in range(6000):
            size = tuple(round(math.exp(rng.uniform(0, 9))) for _ in range(2))
            high = rng.choice([1, 2, 6, 10, 12, 24])
            low = rng.choice([1, 1, 1, min(3, high)])
            side = rng.choice([32, 448])
            tiling = Tiling(side, high, low, msac=True)
            assert tiling.grids(size) == brute_force(size, low, high, side, True), (size, low, high, side)

    def test_exact_ties_at_every_area(self):
        """Sizes that are exact multiples of a grid, and halfway between two: all ties, below and above half."""
        seen = set()
        for i in range(1, 9):
            for j in range(1, 9):
                for scale in (1, 50, 200, 317, 448, 634, 900):
                    for size in ((i * scale, j * scale), ((2 * i + 1) * scale, 2 * j * scale)):
                        for high in (6, 10, 12):
                            found = Tiling(448, high).grids(size)[0]
                            assert found == brute_force(size, 1, high, 448, False)[0]
                            seen.add(found)
        assert len(seen) > 25

    @pytest.mark.parametrize(
        ("size", "grid", "why"),
        [
            ((448, 448), (1, 1), "1 x 1 covers 448², which is not more than half of 2 x 2"),
            ((634, 634), (2, 2), "634² is more than half of 896²"),
            ((633, 633), (1, 1), "633² is not"),
            ((896, 448), (2, 1), "exact"),
            ((1, 5000), (1, 10), "the narrowest there is"),
            ((5000, 1), (10, 1), "the widest there is"),
        ],
    )
    def test_known_choices(self, size, grid, why):
        assert Tiling(448, 10).grids(size)[0] == grid, why

    def test_exactly_half_is_not_more_than_half(self):
        """9 / 40 lies between 1 / 4 and 1 / 5, also in floats; 9 * 40 is half of 12 * 12 * 5."""
        assert Tiling(12, 5).grids((9, 40))[0] == (1, 4)
        assert Tiling(11, 5).grids((9, 40))[0] == (1, 5)

    def test_counts(self):
        assert Tiling(448, 10).shape((896, 448)) == (3, 448, 448)  # two tiles and the thumbnail
        assert Tiling(448, 10, thumbnail=False).shape((896, 448)) == (2, 448, 448)
        assert Tiling(448, 10).shape((300, 300)) == (1, 448, 448)  # no thumbnail of one tile
        assert Tiling(448, 1).fixed_shape == (1, 448, 448) and Tiling(448, 2).fixed_shape is None
        assert Tiling(448, 1, msac=True).fixed_shape == Tiling(448, 1, msac=True).shape((70, 3)) == (2, 448, 448)

    def test_enlarging_counts_before_the_grid_is_chosen(self):
        """317 x 317 is one tile; at twice its side, 634 x 634, it is four and a thumbnail."""
        assert Tiling(448, 10).shape((317, 317))[0] == 1
        assert Tiling(448, 10, upscale=2).shape((317, 317))[0] == 5

    @pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3), (1, 0), (1, 10_000_000)])
    def test_bounds_that_make_no_sense(self, low, high):
        with pytest.raises(ValueError, match="expected 1 <= min <= max <= 1024"):
            Tiling(448, high, low)


def tiles_by_hand(image: Image.Image, tiling: Tiling) -> list[np.ndarray]:
    """Tiles by plain array slicing of one PIL resize."""
    side = tiling.tile_size
    if tiling.upscale > 1:
        image = image.resize((image.width * 2, image.height * 2), Image.BILINEAR)

    def cut(grid):
        whole = np.asarray(image.resize((grid[0] * side, grid[1] * side), Image.BICUBIC))
        return [
            whole[y : y + side, x : x + side]
            for y in range(0, len(whole), side)
            for x in range(0, grid[0] * side, side)
        ]

    first, second = brute_force(image.size, tiling.min_tiles, tiling.max_tiles, side, tiling.msac)
    tiles = cut(first)
    if len(tiles) > 1:
        tiles.append(np.asarray(image.resize((side, side), Image.BICUBIC)))
    return tiles[:-1] + cut(second) + tiles[-1:] if second else tiles


class TestCutting:
    @pytest.mark.parametrize("msac", [False, True])
    @pytest.mark.parametrize("upscale", [1, 2])
    @pytest.mark.parametrize("size", [(32, 32), (64, 32), (100, 37), (7, 90), (1, 1), (1, 300), (61, 59), (33, 33)])
    def test_every_pixel(self, size, msac, upscale):
        tiling = Tiling(32, 10, msac=msac, upscale=upscale)
        image = noise(*size)
        tiles = tiling.cut(image)
        expected = tiles_by_hand(image, tiling)
        assert (len(tiles), tiles[0].height, tiles[0].width) == tiling.shape(size)
        assert len(tiles) == len(expected)
        assert all(np.array_equal(np.asarray(tile), e) for tile, e in zip(tiles, expected, strict=True))

    def test_thumbnail_stays_last_and_the_second_scale_before_it(self):
        tiling = Tiling(32, 6, msac=True)
        first, second = tiling.grids((96, 64))
        assert (first, second) == ((3, 2), (2, 2))  # 1.5 lies between 2 / 1 and 2 / 2: the later of the tied wins here
        tiles = tiling.cut(noise(96, 64))
        assert len(tiles) == 6 + 4 + 1
        assert tiles[-1].tobytes() == noise(96, 64).resize((32, 32)).tobytes()
        assert tiles[6].tobytes() == noise(96, 64).resize((64, 64)).crop((0, 0, 32, 32)).tobytes()

    def test_msac_of_a_single_tile_puts_that_tile_last(self):
        tiling = Tiling(448, 6, msac=True)
        first, second = tiling.grids((300, 300))
        assert first == (1, 1) and second != (1, 1)
        tiles = tiling.cut(noise(300, 300))
        assert len(tiles) == second[0] * second[1] + 1
        assert tiles[-1].tobytes() == noise(300, 300).resize((448, 448)).tobytes()

    def test_normalisation_is_the_published_arithmetic_bit_for_bit(self):
        """ToTensor and Normalize are a division by 255, a subtraction and a division, in float32."""
        values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
        ours = torch.from_numpy(normalised(stacked([Image.fromarray(values)]), IMAGENET_MEAN, IMAGENET_STD))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        theirs = torch.from_numpy(values).permute(2, 0, 1).to(torch.float32).div(255).sub_(mean).div_(std)
        assert ours.dtype == torch.float32 and ours.is_contiguous() and torch.equal(ours[0], theirs)


sides = st.one_of(st.integers(1, 200), st.integers(1, 20_000), st.integers(1, 2**24))


class TestOwnSize:
    @given(sides, sides, st.sampled_from([(28, 4096), (16, 64), (28, 1), (4, 7)]))
    def test_bounds(self, width, height, bound):
        step, limit = bound
        columns, rows = own_size(width, height, step, limit)
        assert columns >= 1 and rows >= 1 and columns * rows <= limit
        if max(round(width / step), 1) * max(round(height / step), 1) < limit / 2:
            assert abs(columns * step - width) <= step / 2 or (columns == 1 and width < step)
            assert abs(rows * step - height) <= step / 2 or (rows == 1 and height < step)

    @given(st.integers(3000, 50_000), st.integers(3000, 50_000))
    def test_aspect_and_area_are_kept_when_scaled_down(self, width, height):
        """Rounding two sides down loses less than one step of each."""
        columns, rows = own_size(width, height, 28, 4096)
        scale = math.sqrt(4096 / (width * height))
        for count, wanted in ((columns, width * scale), (rows, height * scale)):
            assert count - 1e-6 <= wanted < count + 1 + 1e-6  # the scale is a float, the function is exact

    def test_known(self):
        assert own_size(1792, 1792, 28, 4096) == (64, 64)  # the largest published input
        assert own_size(1820, 1792, 28, 4096)[0] * own_size(1820, 1792, 28, 4096)[1] <= 4096
        assert own_size(2**24, 1, 28, 4096) == (4096, 1) and own_size(1, 2**24, 28, 4096) == (1, 4096)
        assert own_size(1, 1, 28, 4096) == (1, 1)
        assert own_size(43, 41, 28, 4096) == (2, 1)  # 1.54 and 1.46 steps

    def test_cut_is_one_resize(self):
        own = OwnSize(16, 64)
        image = noise(75, 40)
        (tile,) = own.cut(image)
        assert own.shape(image.size) == (1, 48, 80) and own.fixed_shape is None
        assert tile.tobytes() == image.resize((80, 48), Image.BICUBIC).tobytes()


@pytest.mark.parametrize(
    "cutter",
    [
        Tiling(448, 12),
        Tiling(448, 1),
        Tiling(448, 24, msac=True),
        Tiling(448, 2, msac=True),
        Tiling(448, 1, msac=True),
        Tiling(448, 12, 2, upscale=2),
        OwnSize(28, 4096),
    ],
)
def test_shapes_of_many_sizes_are_those_of_each(cutter):
    """Random sizes, and sizes that lie on ties between grids."""
    rng = np.random.default_rng(0)
    multiples = np.stack([rng.integers(1, 12, 600), rng.integers(1, 12, 600)], axis=1) * 224
    sizes = np.concatenate([rng.integers(1, 3000, (2000, 2)), multiples])
    assert np.array_equal(cutter.shapes(sizes), [cutter.shape((int(width), int(height))) for width, height in sizes])
