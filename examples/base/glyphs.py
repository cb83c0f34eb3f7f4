"""Draws digits from real scans and words in real fonts.

Scans: scikit-learn's `load_digits`, 1,797 scans of 8x8 pixels. Fonts: those that matplotlib and Pillow bring (DejaVu,
STIX, Computer Modern, Aileron).
"""

import string
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.base import task
from examples.base.sample import Sample, Split, blended, colours
from examples.base.task import Family

NUM_TEST_SCANS, NUM_VALIDATION_SCANS = 300, 200
SIDE = 32
MIN_SIZE, MAX_SIZE = 14, 26  # sizes of fonts
_FONTS = [
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic"),
    *("STIXGeneralBolIta", "cmr10", "cmb10", "cmtt10"),
]
_TEST_FONTS = ["DejaVuSans-BoldOblique", "DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralBol", "cmss10"]


def scans_of(split: Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(scans [N, 8, 8] from 0 to 1, their digits [N]). The scans of the splits are disjoint; writers are not known."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng([seed, 1]).permutation(len(digits.target))
    cuts = np.split(order, [NUM_TEST_SCANS, NUM_TEST_SCANS + NUM_VALIDATION_SCANS])
    cut = dict(zip((Split.test, Split.validation, Split.train), cuts, strict=True))[split]
    return digits.images[cut] / 16.0, digits.target[cut]


def draw_digits(rng: np.random.Generator, split: Split, seed: int) -> Sample:
    """One to three scans in a row, each of its own size, near the middle of its cell; those of training are turned a
    little.

    The image has 32x32 pixels for one scan, else 64x32.
    """
    scans, labels = _scans(split, seed)
    count = int(rng.integers(1, 4))
    width = SIDE if count == 1 else 2 * SIDE
    ink = np.zeros((SIDE, width), np.float32)
    picked = rng.integers(len(labels), size=count)
    cell = width // count
    for place, index in enumerate(picked):
        side = int(rng.integers(18, min(25, cell) + 1))
        left = place * cell + _near_middle(rng, cell - side)
        top = _near_middle(rng, SIDE - side)
        scan = Image.fromarray(scans[index].astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        if split is Split.train:
            scan = scan.rotate(rng.uniform(-12, 12), resample=Image.Resampling.BILINEAR)
        ink[top : top + side, left : left + side] = np.asarray(scan)
    text = "".join(map(str, labels[picked]))
    return Sample(Family.digits, blended(ink, *colours(rng)), text, [(task.QUESTIONS[Family.digits], text)])


def draw_word(rng: np.random.Generator, split: Split, seed: int) -> Sample:
    """One to three capitals in an image of 64x32 pixels, in a font, size and place of their own.

    Training shows words, and as often letters at random, which teach to read what is not a known word. The words of
    validation and test are in no training image, and every second one is in a font that training does not have.
    """
    train, test = _words(seed)
    if split is Split.train:
        text = str(rng.choice(train)) if rng.random() < 0.5 else _letters(rng, test)
    else:
        text = str(rng.choice(test[:: 1 if split is Split.test else -1]))
    unseen = split is not Split.train and rng.random() < 0.5
    name = str(rng.choice(_TEST_FONTS if unseen else _FONTS))
    font, (left, top, right, bottom) = _fitting(name, text, rng)
    canvas = Image.new("L", (2 * SIDE, SIDE))
    place = (_near_middle(rng, 2 * SIDE - (right - left)) - left, _near_middle(rng, SIDE - (bottom - top)) - top)
    ImageDraw.Draw(canvas).text(place, text, fill=255, font=font)
    ink = np.asarray(canvas, np.float32) / 255
    return Sample(Family.words, blended(ink, *colours(rng)), text, [(task.QUESTIONS[Family.words], text)])


def _near_middle(rng: np.random.Generator, room: int) -> int:
    """Where something begins that leaves so much room: in the middle, or up to three pixels beside it."""
    return int(np.clip(room // 2 + rng.integers(-3, 4), 0, room))


def _fitting(name: str, text: str, rng: np.random.Generator) -> tuple[ImageFont.FreeTypeFont, list[int]]:
    """(a font in which the text fits the image, the box of its ink): the largest such size, or up to four less."""
    size = MAX_SIZE
    while True:
        left, top, right, bottom = _font(name, size).getbbox(text)
        if right - left <= 2 * SIDE - 2 and bottom - top <= SIDE - 2:
            break
        size -= 1
    font = _font(name, max(MIN_SIZE, size - int(rng.integers(5))))
    return font, [int(edge) for edge in font.getbbox(text)]


def _letters(rng: np.random.Generator, avoided: list[str]) -> str:
    while True:
        text = "".join(rng.choice(list(string.ascii_uppercase), rng.integers(1, 4)))
        if text not in avoided:
            return text


@cache
def _scans(split: Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return scans_of(split, seed)


@cache
def _words(seed: int) -> tuple[list[str], list[str]]:
    """(words of training, words of validation and test)."""
    words = [str(word) for word in np.random.default_rng([seed, 2]).permutation(task.WORDS)]
    return words[task.NUM_TEST_WORDS :], words[: task.NUM_TEST_WORDS]


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)
