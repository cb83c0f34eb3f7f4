"""Draws bar charts of real tables: iris, wine, diabetes and breast cancer, as scikit-learn brings them."""

from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from examples.base.sample import Sample, Split
from examples.base.task import COLOURS, HIGHEST, LEVELS, Family, question_of_height

WIDTH, HEIGHT = 64, 32
MIN_BARS, MAX_BARS = 2, 3
_NUM_SHARES = 6  # a table is cut into so many: one for validation, one for test, the others for training
_CLEAR = 0.3  # steps between a bar and the nearest line of the axis, at most


def draw_chart(rng: np.random.Generator, split: Split, seed: int) -> Sample:
    """Two or three bars in an image of 64x32 pixels: one column of a table in as many of its rows.

    The axis goes from the smallest to the largest value of the column in five lines, one for each level. Bars end near
    a line, and one is the highest by a level. The rows of the splits are disjoint.
    """
    count = int(rng.integers(MIN_BARS, MAX_BARS + 1))
    levels, heights = _bars(rng, split, seed, count)
    names = [str(name) for name in rng.permutation(list(COLOURS))[:count]]
    image = _drawn(rng, heights, names)
    shown = ", ".join(f"{name} {level}" for name, level in zip(names, levels, strict=True))
    questions = [(HIGHEST, names[int(np.argmax(levels))])]
    questions += [(question_of_height(name), str(level)) for name, level in zip(names, levels, strict=True)]
    asked = [questions[number] for number in rng.permutation(len(questions))]  # else the order would tell the bar
    return Sample(Family.charts, image, shown, asked)


def _bars(rng: np.random.Generator, split: Split, seed: int, count: int) -> tuple[list[int], list[float]]:
    """(levels, exact heights in levels) of rows whose levels are drawn evenly, where the column has such rows."""
    columns = columns_of(split, seed)
    while True:
        column = columns[rng.integers(len(columns))]
        wanted = rng.integers(LEVELS.start, LEVELS.stop, count)
        found = [column[np.round(column) == level] for level in wanted]
        if any(len(rows) == 0 for rows in found) or (wanted == wanted.max()).sum() > 1:
            continue
        heights = [float(rng.choice(rows)) for rows in found]
        return [int(level) for level in wanted], heights


def _drawn(rng: np.random.Generator, heights: list[float], names: list[str]) -> Image.Image:
    """Axis lines in grey, bars from the bottom, four times as large and then reduced, so that ends are exact."""
    factor = 4
    paper = int(rng.integers(225, 256))
    big = Image.new("RGB", (WIDTH * factor, HEIGHT * factor), (paper, paper, paper))
    draw = ImageDraw.Draw(big)
    step = rng.uniform(4.8, 5.8)
    bottom = HEIGHT - rng.uniform(1.0, 2.0)
    for level in LEVELS:
        y = (bottom - level * step) * factor
        draw.line((0, y, WIDTH * factor, y), fill=(170, 170, 170), width=2)
    slot = WIDTH / len(heights)
    for place, (height, name) in enumerate(zip(heights, names, strict=True)):
        width = slot * rng.uniform(0.5, 0.8)
        left = place * slot + rng.uniform(0.05, 0.95) * (slot - width)
        colour = tuple(int(np.clip(value + rng.integers(-20, 21), 0, 255)) for value in COLOURS[name])
        box = (left * factor, (bottom - height * step) * factor, (left + width) * factor, bottom * factor)
        draw.rectangle(box, fill=colour)
    return big.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


@cache
def columns_of(split: Split, seed: int) -> list[np.ndarray]:
    """Every column of every table in the rows of a split, as heights from 1 to 5, without those between two levels."""
    from sklearn import datasets

    loaders: list[Any] = [datasets.load_iris, datasets.load_wine, datasets.load_diabetes, datasets.load_breast_cancer]
    columns = []
    for loader in loaders:
        table = loader().data
        low, high = table.min(0), table.max(0)
        heights = LEVELS.start + (LEVELS.stop - 1 - LEVELS.start) * (table - low) / (high - low)
        heights = heights[rows_of(len(table), split, seed)]
        columns += [column[np.abs(column - np.round(column)) <= _CLEAR] for column in heights.T]
    return columns


def rows_of(count: int, split: Split, seed: int) -> np.ndarray:
    """The numbers of a table's rows that belong to a split, of `count` rows."""
    share = np.random.default_rng([seed, 3]).permutation(count) % _NUM_SHARES
    kept = {Split.test: share == 0, Split.validation: share == 1, Split.train: share > 1}[split]
    return np.flatnonzero(kept)
