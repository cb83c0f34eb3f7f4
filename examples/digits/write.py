"""Write the digits task as JSONL and PNG: `python -m examples.digits.write out=DIR [seed=0] [share=1.0]`.

Source: scikit-learn's `load_digits`, 1,797 real 8x8 scans. Training, validation and test scans are disjoint; the set
carries no writer labels, so a writer may appear in more than one split.
"""

import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.digits import task
from examples.written_folder import write_from, write_once
from model.run.ends import run_command
from model.run.failpoints import reach

NUM_TEST_SCANS, NUM_VALIDATION_SCANS = 300, 200
NUM_TRAIN, NUM_DEMONSTRATIONS, NUM_WORKED, NUM_EVAL = 8192, 2048, 16384, 512
MAX_SHARE = 100.0
SIDE = 16
_LEAD_IN = list(string.ascii_letters + string.punctuation + " \n")


def write(out: Path, seed: int, share: float = 1.0) -> None:
    """Fill `out` with pretrain.jsonl, demonstrations.jsonl, train.jsonl, validation.jsonl, test.jsonl and images/.

    `share` scales the number of rows. The scans of the splits are disjoint whatever the seed.
    The folder appears whole or not at all; an existing finished folder is left as it is, and so is any other that holds
    files: that is a `ValueError`. Of several calls for one folder, one writes it and the others wait.
    """
    if not 1 / NUM_DEMONSTRATIONS <= share <= MAX_SHARE:
        raise ValueError(f"share: expected {1 / NUM_DEMONSTRATIONS:.4f} to {MAX_SHARE}, found {share}")
    write_once(out, f"seed {seed} share {share}\n", lambda folder: _fill(folder, seed, share))


def _fill(folder: Path, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    splits = _load_scans(rng)
    train = _canvases(folder, "train", splits["train"], round(NUM_TRAIN * share), rng, augment=True)
    num_shown = round(NUM_DEMONSTRATIONS * share)
    shown = _canvases(folder, "demonstrations", splits["train"], num_shown, rng, augment=True)
    _write_lines(folder / "pretrain.jsonl", _pretraining(train, round(NUM_WORKED * share), rng))
    _write_lines(folder / "demonstrations.jsonl", _demonstrations(shown))
    _write_lines(folder / "train.jsonl", _prompts("train", train))
    for name in ("validation", "test"):
        canvases = _canvases(folder, name, splits[name], round(NUM_EVAL * share), rng, augment=False)
        _write_lines(folder / f"{name}.jsonl", _prompts(name, canvases))


def _load_scans(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("examples.digits needs scikit-learn: pip install scikit-learn") from None
    digits: Any = load_digits()
    order = rng.permutation(len(digits.target))
    cuts = np.split(order, [NUM_TEST_SCANS, NUM_TEST_SCANS + NUM_VALIDATION_SCANS])
    names = ("test", "validation", "train")
    return {name: (digits.images[cut] / 16.0, digits.target[cut]) for name, cut in zip(names, cuts, strict=True)}


def _canvases(
    folder: Path,
    split: str,
    scans: tuple[np.ndarray, np.ndarray],
    count: int,
    rng: np.random.Generator,
    augment: bool,
) -> list[tuple[str, list[int]]]:
    """Compose and save `count` images of four scans each: [(file name, digits)].

    `augment`: each scan is shifted by up to 2 pixels and its contrast scaled by 0.8 to 1.2; noise covers the canvas.
    """
    images, labels = scans
    (folder / "images" / split).mkdir(parents=True)
    enlarged = np.pad(np.stack([_enlarge(image) for image in images]), ((0, 0), (2, 2), (2, 2)))
    picked = rng.integers(0, len(labels), (count, 4))
    shifts = rng.integers(0, 5, (count, 4, 2)) if augment else np.full((count, 4, 2), 2)
    contrasts = rng.uniform(0.8, 1.2, (count, 4)) if augment else np.ones((count, 4))
    canvas = np.empty((2 * SIDE, 2 * SIDE))
    names = []
    for index in range(count):
        for cell in range(4):
            top, left = SIDE * (cell // 2), SIDE * (cell % 2)
            dy, dx = shifts[index, cell]
            scan = enlarged[picked[index, cell], dy : dy + SIDE, dx : dx + SIDE]
            canvas[top : top + SIDE, left : left + SIDE] = scan * contrasts[index, cell]
        noisy = canvas + rng.normal(0.0, 0.05, canvas.shape) if augment else canvas
        names.append(f"images/{split}/{index:05d}.png")
        grey = (noisy.clip(0.0, 1.0) * 255).round().astype(np.uint8)
        reach("image")
        Image.fromarray(grey).save(folder / names[-1], compress_level=1)
    return list(zip(names, labels[picked].tolist(), strict=True))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """8x8 -> 16x16, bilinear."""
    return np.asarray(Image.fromarray(scan.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _family(index: int) -> task.Family:
    return (task.Family.sum, task.Family.gap)[index % 2]


def _pretraining(
    canvases: list[tuple[str, list[int]]], num_worked: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Captions, direct visual questions, and text-only worked questions; `kind` names the part of the mixture.

    Two of three worked questions are sums: they take more steps.
    """
    for index, (name, digits) in enumerate(canvases):
        family = _family(index)
        caption = {"prefix": task.CAPTION_PREFIX, "texts": ["".join(map(str, digits))]}
        direct = {"prefix": family.value, "texts": [task.boxed(task.answer(family, digits))]}
        yield {"id": f"caption-{index}", "kind": "caption", "images": [name], **caption}
        yield {"id": f"direct-{index}", "kind": "direct", "images": [name], **direct}
    for index in range(num_worked):
        family, digits = _family(index % 3), [int(d) for d in rng.integers(0, 10, 4)]
        # The digits stand in the prefix: nothing can predict them, so training on them would only add noise.
        yield {
            "id": f"worked-{index}",
            "kind": "worked",
            "images": [],
            "prefix": f"{_lead_in(family, rng)}{task.reading(family, digits)}:",
            "texts": [task.worked_steps(family, digits) + task.boxed(task.answer(family, digits))],
        }


def _lead_in(family: task.Family, rng: np.random.Generator) -> str:
    """The text before a worked reading: one time in four the question, else one to six random characters.

    A model that always meets the reading behind the question finds its digits by that, and loses them in a thought.
    """
    if rng.integers(4) == 0:
        return family.value
    return "".join(rng.choice(_LEAD_IN, rng.integers(1, 7)))


def _messages(name: str, family: task.Family) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": name}, {"type": "text", "text": family.value}]
    return [{"role": "user", "content": content}]


def _demonstrations(canvases: list[tuple[str, list[int]]]) -> Iterator[dict[str, Any]]:
    """Both ways to think; they share the prompt in one packed row."""
    for index, (name, digits) in enumerate(canvases):
        family = _family(index)
        value = task.answer(family, digits)
        thoughts = [task.full_thought(family, digits), task.reading(family, digits)]
        yield {
            "id": f"demonstration-{index}",
            "mode": "think",
            "messages": _messages(name, family),
            "completions": [task.thinking_text(thought, value) for thought in thoughts],
        }


def _prompts(split: str, canvases: list[tuple[str, list[int]]]) -> Iterator[dict[str, Any]]:
    for index, (name, digits) in enumerate(canvases):
        family = _family(index)
        yield {
            "id": f"{split}-{index}",
            "messages": _messages(name, family),
            "reference": str(task.answer(family, digits)),
            "family": family.name,
        }


def _write_lines(path: Path, records: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            reach("line")


def main(arguments: list[str]) -> int:
    return write_from(arguments, "data/digits", write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
