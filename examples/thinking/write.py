"""Write the data of the Thinking miniature: `python -m examples.thinking.write out=DIR [seed=0] [share=1.0]`.

The images are drawn as those of the base model are (examples/base), so scans, words, colours and rows of tables that
are held out there are held out here too. docs/thinking.md says what each file is for.
"""

import string
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.base.charts import draw_chart
from examples.base.corpora import write_rows
from examples.base.glyphs import draw_digits, draw_word
from examples.base.pictures import ICONS, draw_picture
from examples.base.sample import Sample, Split
from examples.base.task import COLOURS, DESCRIBE, question_of_height
from examples.base.task import HIGHEST as HIGHEST_BAR
from examples.base.task import Family as BaseFamily
from examples.thinking.task import (
    BACKWARDS,
    HIGHEST,
    KINDS,
    REASONING,
    SUM,
    TOGETHER,
    Family,
    Question,
    how_many,
    thinking,
)
from examples.written_folder import write_from, write_once
from model.run.ends import run_command

NUM_BASICS, NUM_WORKED, NUM_COT, NUM_DIRECT, NUM_TRAIN, NUM_GENERAL = 8192, 8192, 3072, 6144, 4096, 1024
NUM_VALIDATION, NUM_TEST = 256, 512
MAX_SHARE = 10.0
NUM_FRAMES = 2
_SYSTEM = "You are a helpful assistant. Never explain anything."
"""A system prompt that contradicts its rows, as some public sets of thoughts have; it is to be cleaned away."""

_LEAD_IN = list(string.ascii_letters + string.punctuation + " \n")

Drawn = tuple[list[Image.Image], Question]


def write(out: Path, seed: int, share: float = 1.0) -> None:
    """Fill `out` with basics.jsonl, worked.jsonl, cot.jsonl, direct.jsonl, train.jsonl, general.jsonl,
    validation.jsonl, test.jsonl and images/. The folder appears whole or not at all (`write_once`).
    """
    least = 8 / NUM_VALIDATION
    if not least <= share <= MAX_SHARE:
        raise ValueError(f"share: expected {least:.4f} to {MAX_SHARE}, found {share}")
    write_once(out, f"seed {seed} share {share}\n", lambda folder: _fill(folder, seed, share))


def _fill(folder: Path, seed: int, share: float) -> None:
    def drawn(
        number: int, rows: int, split: Split = Split.train, families: Sequence[Family] = REASONING
    ) -> Iterator[Drawn]:
        """Images and questions of the families in turn; each file, by its number, has a random stream of its own."""
        return islice(_questions(np.random.default_rng([seed, 20, number]), split, seed, families), round(rows * share))

    def saved(name: str, *given: Any) -> Iterator[tuple[list[str], Question]]:
        return _saved(folder, name, drawn(*given))

    rng = np.random.default_rng([seed, 21])
    everything = tuple(Family)
    worked = (question for _, question in drawn(1, NUM_WORKED, Split.train, everything))
    write_rows(folder / "basics.jsonl", _basics(saved("basics", 0, NUM_BASICS)))
    write_rows(folder / "worked.jsonl", (_worked(number, one, rng) for number, one in enumerate(worked)))
    write_rows(folder / "cot.jsonl", _thoughts(saved("cot", 2, NUM_COT, Split.train, everything), rng))
    write_rows(folder / "direct.jsonl", _direct(saved("direct", 3, NUM_DIRECT, Split.train, everything)))
    write_rows(folder / "train.jsonl", _prompts("train", saved("train", 4, NUM_TRAIN)))
    read = (Family.reading,)
    write_rows(folder / "general.jsonl", _prompts("general", saved("general", 7, NUM_GENERAL, Split.train, read)))
    for number, (split, rows) in enumerate(((Split.validation, NUM_VALIDATION), (Split.test, NUM_TEST)), 5):
        write_rows(folder / f"{split.value}.jsonl", _prompts(split.value, saved(split.value, number, rows, split)))


def _questions(rng: np.random.Generator, split: Split, seed: int, families: Sequence[Family]) -> Iterator[Drawn]:
    """Questions of the families in turn, without end."""
    draw: dict[Family, Callable[[], Drawn]] = {
        Family.digits: lambda: _one(Family.digits, SUM, _sample(lambda: draw_digits(rng, split, seed), least=2), ""),
        Family.pictures: lambda: _counted(rng, split),
        Family.charts: lambda: _one(Family.charts, TOGETHER, draw_chart(rng, split, seed), ", "),
        Family.words: lambda: _one(Family.words, BACKWARDS, _sample(lambda: draw_word(rng, split, seed), least=3), ""),
        Family.reading: lambda: _read(rng, split, seed),
    }
    return (draw[families[number % len(families)]]() for number in count())


def _read(rng: np.random.Generator, split: Split, seed: int) -> Drawn:
    """One of the base model's own questions."""
    drawers = [
        lambda: draw_digits(rng, split, seed),
        lambda: draw_word(rng, split, seed),
        lambda: draw_picture(rng, split),
        lambda: draw_chart(rng, split, seed),
    ]
    sample = drawers[rng.integers(len(drawers))]()
    text, answer = sample.questions[rng.integers(len(sample.questions))]
    shown = tuple(sample.shown.split(", "))
    asked = ""
    if sample.family is BaseFamily.charts:
        asked = HIGHEST if text == HIGHEST_BAR else next(c for c in COLOURS if text == question_of_height(c))
    question = Question(Family.reading, text, shown, asked)
    if question.answer != answer:
        raise RuntimeError(f"expected the answer {answer}, found {question.answer} of {shown}")
    return [sample.image], question


def _sample(draw: Callable[[], Sample], least: int) -> Sample:
    """A sample that shows at least so many digits or letters."""
    return next(sample for sample in iter(draw, None) if len(sample.shown) >= least)


def _one(family: Family, text: str, sample: Sample, comma: str) -> Drawn:
    shown = sample.shown.split(comma) if comma else list(sample.shown)
    return [sample.image], Question(family, text, tuple(shown))


def _counted(rng: np.random.Generator, split: Split) -> Drawn:
    """Two frames, of which none to both show a thing of the kind that is asked for, each number as often."""
    asked = str(rng.choice(list(KINDS)))
    is_asked = rng.permutation(np.arange(NUM_FRAMES) < rng.integers(0, NUM_FRAMES + 1))
    others = [name for name in ICONS if name not in KINDS[asked]]
    names = [str(rng.choice(KINDS[asked] if wanted else others)) for wanted in is_asked]
    samples = [draw_picture(rng, split, name) for name in names]
    shown = tuple(sample.shown for sample in samples)
    return [sample.image for sample in samples], Question(Family.pictures, how_many(asked), shown, asked)


def _saved(folder: Path, name: str, drawn: Iterator[Drawn]) -> Iterator[tuple[list[str], Question]]:
    (folder / "images" / name).mkdir(parents=True)
    for number, (images, question) in enumerate(drawn):
        files = [f"images/{name}/{number:05d}-{place}.png" for place in range(len(images))]
        for file, image in zip(files, images, strict=True):
            image.save(folder / file, compress_level=1)
        yield files, question


def _content(images: Sequence[str], text: str) -> list[dict[str, str]]:
    """Images, each of several behind the name of its frame as in the base model's data, and a question."""
    parts: list[dict[str, str]] = []
    for number, image in enumerate(images, 1):
        parts += [{"type": "text", "text": f"Frame-{number}: "}] if len(images) > 1 else []
        parts.append({"type": "image", "image": image})
    return [*parts, {"type": "text", "text": text}]


def _asked(images: Sequence[str], text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": _content(images, text)}]


def _basics(rows: Iterator[tuple[list[str], Question]]) -> Iterator[dict[str, Any]]:
    """Rows that a base model has learned from: images with what they show, and with the answer alone."""
    for number, (images, question) in enumerate(rows):
        is_reading = bool(number // len(REASONING) % 2)
        text = DESCRIBE if is_reading else question.text
        said = question.reading if is_reading else f"\\boxed{{{question.answer}}}"
        answer = {"role": "assistant", "content": said}
        yield {"id": f"basics-{number}", "messages": [*_asked(images, text), answer]}


def _worked(number: int, question: Question, rng: np.random.Generator) -> dict[str, Any]:
    """Steps as text alone, behind what an image would show.

    Three times of four some random characters stand before that, as in the quickstart's data: a model that always meets
    it behind the question finds it by that, and loses it in a thought.
    """
    needs_question = bool(question.asked) or question.family is Family.reading
    is_plain = rng.integers(4) == 0
    lead_in = "" if is_plain else "".join(rng.choice(_LEAD_IN, rng.integers(1, 7)))
    asked = question.text if is_plain or needs_question else ""
    texts = [f"{question.steps}\\boxed{{{question.answer}}}"]
    prefix = f"{asked}{lead_in}{question.reading}:"
    return {"id": f"worked-{number}", "kind": "worked", "images": [], "prefix": prefix, "texts": texts}


def _thoughts(rows: Iterator[tuple[list[str], Question]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Thoughts of two writers, as untidy as public sets are: other tags, system prompts, rows that come twice."""
    for number, (images, question) in enumerate(rows):
        thought = question.worked if number // len(Family) % 2 else question.reading
        form = rng.integers(4)
        text = thinking(thought, question.answer)
        if form == 1:
            text = f"<thinking>{thought}</thinking>\n<answer>{question.answer}</answer>"
        messages = _asked(images, question.text)
        if form == 2:
            messages = [{"role": "system", "content": _SYSTEM}, *messages]
        row = {"messages": [*messages, {"role": "assistant", "content": text}], "family": question.family.value}
        yield {"id": f"cot-{number}", **row}
        if form == 3 and number % 5 == 0:
            yield {"id": f"cot-{number}-again", **row}


def _direct(rows: Iterator[tuple[list[str], Question]]) -> Iterator[dict[str, Any]]:
    for number, (images, question) in enumerate(rows):
        answer = {"role": "assistant", "content": f"\\boxed{{{question.answer}}}"}
        yield {"id": f"direct-{number}", "messages": [*_asked(images, question.text), answer]}


def _prompts(name: str, rows: Iterator[tuple[list[str], Question]]) -> Iterator[dict[str, Any]]:
    """Prompts with references, and what only the judge of thoughts reads: `shown` and `asked`."""
    for number, (images, question) in enumerate(rows):
        yield {
            "id": f"{name}-{number}",
            "messages": _asked(images, question.text),
            "reference": question.answer,
            "dataset": "general" if question.family is Family.reading else "reasoning",
            "family": question.family.value,
            "shown": list(question.shown),
            "asked": question.asked,
        }


def main(arguments: list[str]) -> int:
    return write_from(arguments, "data/thinking_tiny", write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
