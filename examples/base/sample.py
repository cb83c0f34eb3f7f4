"""An image with what there is to say about it, and how ink is put on paper."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from PIL import Image

from examples.base.task import Family, caption_of


class Split(Enum):
    """Training material, and two kinds that training never shows."""

    train = "train"
    validation = "validation"
    test = "test"


@dataclass(frozen=True)
class Sample:
    """`shown` is what a caption says; questions are pairs of a question and its answer."""

    family: Family
    image: Image.Image
    shown: str
    questions: list[tuple[str, str]]

    @property
    def caption(self) -> str:
        return caption_of(self.family, self.shown)


def colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(ink, paper), each [3] from 0 to 1: dark ink on light paper of weak or strong contrast, both with a tint."""
    ink, paper = rng.uniform(0.0, 0.35), rng.uniform(0.65, 1.0)
    return np.clip(ink + rng.uniform(-0.15, 0.15, 3), 0, 1), np.clip(paper + rng.uniform(-0.15, 0.15, 3), 0, 1)


def blended(ink: np.ndarray, colour: np.ndarray, paper: np.ndarray) -> Image.Image:
    """Ink [H, W] from 0 to 1 in a colour on paper."""
    pixels = ink[..., None] * colour + (1 - ink[..., None]) * paper
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
