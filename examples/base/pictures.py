"""Draws named things: icons of Font Awesome Free, each rendering with a size, place, angle and colours of its own."""

import colorsys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.base import task
from examples.base.sample import Sample, Split, blended
from examples.base.task import Family

ICONS = {
    "anchor": 0xF13D,
    "apple": 0xF5D1,
    "bed": 0xF236,
    "bell": 0xF0F3,
    "bicycle": 0xF206,
    "bird": 0xF4BA,
    "book": 0xF02D,
    "bus": 0xF207,
    "camera": 0xF030,
    "car": 0xF1B9,
    "cat": 0xF6BE,
    "chair": 0xF6C0,
    "clock": 0xF017,
    "cloud": 0xF0C2,
    "crown": 0xF521,
    "envelope": 0xF0E0,
    "eye": 0xF06E,
    "fish": 0xF578,
    "flag": 0xF024,
    "ghost": 0xF6E2,
    "gift": 0xF06B,
    "glasses": 0xF530,
    "hammer": 0xF6E3,
    "heart": 0xF004,
    "horse": 0xF6F0,
    "house": 0xF015,
    "key": 0xF084,
    "moon": 0xF186,
    "plane": 0xF072,
    "scissors": 0xF0C4,
    "shirt": 0xF553,
    "spider": 0xF717,
    "star": 0xF005,
    "sun": 0xF185,
    "tree": 0xF1BB,
    "umbrella": 0xF0E9,
}
"""Name -> code point in the font of the solid style."""

SIDE = 32
_BAND = 20  # degrees of hue


def draw_picture(rng: np.random.Generator, split: Split, name: str = "") -> Sample:
    """One thing in an image of 32x32 pixels: the one that is named, or any.

    Every third band of hues is kept for validation and test, so that no training image has their colours.
    """
    name = name or str(rng.choice(list(ICONS)))
    size = int(rng.integers(22, 31))
    big = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(big).text((2 * SIDE, 2 * SIDE), chr(ICONS[name]), fill=255, font=font_of(4 * size), anchor="mm")
    shape = big.crop(big.getbbox()).rotate(rng.uniform(-15, 15), expand=True, resample=Image.Resampling.BICUBIC)
    scale = min(size / max(shape.size), 1.0)
    extent = (max(1, round(shape.width * scale)), max(1, round(shape.height * scale)))
    shape = shape.resize(extent, Image.Resampling.BOX)
    canvas = Image.new("L", (SIDE, SIDE))
    place = [int(rng.integers(0, SIDE - length + 1)) for length in extent]
    canvas.paste(shape, (place[0], place[1]))
    ink = np.asarray(canvas, np.float32) / 255
    return Sample(Family.pictures, blended(ink, *_colours(rng, split)), name, [(task.QUESTIONS[Family.pictures], name)])


def _colours(rng: np.random.Generator, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(ink, paper): dark on light, with hues of the split."""
    dark, light = ((rng.uniform(0.0, 0.4), 0.6), (rng.uniform(0.75, 1.0), 0.4))
    pair = [
        np.array(colorsys.hsv_to_rgb(hue_of(rng, split) / 360, most * rng.random(), v)) for v, most in (dark, light)
    ]
    return pair[0], pair[1]


def hue_of(rng: np.random.Generator, split: Split) -> float:
    while True:
        hue = rng.uniform(0, 360)
        if (int(hue) // _BAND % 3 == 2) == (split is not Split.train):
            return hue


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    try:
        import fontawesomefree
    except ImportError:
        raise ValueError("examples.base needs the package fontawesomefree: pip install 'sailvl2-rl[base]'") from None
    folder = Path(fontawesomefree.__file__).parent / "static" / "fontawesomefree" / "webfonts"
    return ImageFont.truetype(str(folder / "fa-solid-900.ttf"), size)
