"""Write what the base model learns from: `python -m examples.base.write out=DIR [seed=0] [share=1.0]`.

Seven corpora in the layouts of public ones, two files of held-out prompts, and labelled images for probes. Held out are
scans of digits, words, colours of pictures, and rows of the tables that charts show; docs/pretraining.md says what that
means for each family.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from examples.base import task
from examples.base.charts import MAX_BARS, draw_chart
from examples.base.corpora import saved, write_finevision, write_rows, write_tar
from examples.base.glyphs import draw_digits, draw_word
from examples.base.pictures import draw_picture
from examples.base.sample import Sample, Split
from examples.base.task import Family
from examples.written_folder import write_from, write_once
from model.run.ends import run_command

NUM_TEXTS, NUM_CAPTIONS, NUM_SCANNED, NUM_QUESTIONS, NUM_INSTRUCTIONS, NUM_HARD = 8192, 16384, 24576, 8192, 12288, 8192
NUM_FRAMES, NUM_TEST, NUM_VALIDATION, NUM_LABELLED = 2048, 1024, 256, 1440
MIN_SHARE, MAX_SHARE = 4 / NUM_VALIDATION, 10.0
FAMILIES = tuple(Family)
SHOWN = (Family.digits, Family.words, Family.charts, Family.pictures, Family.words, Family.charts)
"""Families of captions and questions in turn: words and charts, which take most examples to read, twice."""
SCANNED = (Family.digits, Family.words, Family.words)


def write(out: Path, seed: int, share: float = 1.0) -> None:
    """Fill `out` with the corpora texts.jsonl, captions.tar, scanned.jsonl, questions.parquet, instructions.jsonl,
    hard.jsonl and frames.jsonl, the prompts validation.jsonl and test.jsonl, labelled.jsonl, and images/.

    `share` scales the number of rows. The folder appears whole or not at all (`write_once`).
    """
    if not MIN_SHARE <= share <= MAX_SHARE:
        raise ValueError(f"share: expected {MIN_SHARE:.4f} to {MAX_SHARE}, found {share}")
    write_once(out, f"seed {seed} share {share} with labelled images\n", lambda folder: _fill(folder, seed, share))


def _fill(folder: Path, seed: int, share: float) -> None:
    def drawn(number: int, rows: int, families: tuple[Family, ...] = FAMILIES, split: Split = Split.train):
        """`rows` samples of the families in turn; each corpus, by its number, has a random stream of its own."""
        return islice(_samples(_stream(seed, number), split, seed, families), round(rows * share))

    def chats(name: str, samples: Iterator[Sample]) -> None:
        """Conversations about images that lie beside the file."""
        asking = _stream(seed, len(name) + 100)
        rows = enumerate(saved(folder, name, samples))
        write_rows(folder / f"{name}.jsonl", (_chat(f"{name}-{n}", *found, asking) for n, found in rows))

    write_rows(folder / "texts.jsonl", map(_text, count(), drawn(0, NUM_TEXTS)))
    write_tar(folder / "captions.tar", drawn(1, NUM_CAPTIONS, SHOWN))
    write_rows(folder / "scanned.jsonl", _scanned(folder, drawn(2, NUM_SCANNED, SCANNED)))
    write_finevision(folder / "questions.parquet", drawn(3, NUM_QUESTIONS, SHOWN))
    chats("instructions", drawn(4, NUM_INSTRUCTIONS, SHOWN))
    chats("hard", filter(_is_hard, drawn(5, NUM_HARD)))
    write_rows(folder / "frames.jsonl", _frames(folder, drawn(6, 2 * NUM_FRAMES, (Family.pictures,))))
    for number, (split, rows) in enumerate(((Split.validation, NUM_VALIDATION), (Split.test, NUM_TEST))):
        samples = saved(folder, split.value, drawn(7 + number, rows, split=split))
        write_rows(folder / f"{split.value}.jsonl", _prompts(split, samples, _stream(seed, 9 + number)))
    labelled = saved(folder, "labelled", drawn(11, NUM_LABELLED, (Family.pictures,), Split.test))
    write_rows(folder / "labelled.jsonl", ({"image": name, "label": sample.shown} for name, sample in labelled))


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, 10, number])


def _samples(
    rng: np.random.Generator, split: Split, seed: int, families: tuple[Family, ...] = FAMILIES
) -> Iterator[Sample]:
    """Samples of the families in turn, without end."""
    draw: dict[Family, Callable[[], Sample]] = {
        Family.digits: lambda: draw_digits(rng, split, seed),
        Family.words: lambda: draw_word(rng, split, seed),
        Family.pictures: lambda: draw_picture(rng, split),
        Family.charts: lambda: draw_chart(rng, split, seed),
    }
    return (draw[families[number % len(families)]]() for number in count())


def _is_hard(sample: Sample) -> bool:
    """Whether it shows as much as samples of its family do at most: three digits, letters or bars."""
    shown = sample.shown
    match sample.family:
        case Family.charts:
            return shown.count(",") == MAX_BARS - 1
        case Family.pictures:
            return False
        case _:
            return len(shown) == 3


def _text(number: int, sample: Sample) -> dict[str, Any]:
    """A caption where an image would stand, and what is said about it: every second time a question's answer, else the
    caption once more."""
    turn = number // len(FAMILIES)
    question, answer = ("", sample.caption) if turn % 2 else sample.questions[turn // 2 % len(sample.questions)]
    return {"id": f"text-{number}", "kind": "text", "prefix": f"{sample.caption}{question}", "texts": [answer]}


def _scanned(folder: Path, samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
    """Digits and words with what they spell, as corpora for reading have it."""
    for number, (name, sample) in enumerate(saved(folder, "scanned", samples)):
        question = task.QUESTIONS[sample.family]
        texts = {"kind": "scanned", "prefix": question, "texts": [sample.shown]}
        yield {"id": f"scanned-{number}", "images": [name], **texts}


def _chat(row_id: str, name: str, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    """One of the sample's questions as a conversation."""
    question, answer = sample.questions[rng.integers(len(sample.questions))]
    asked = [{"type": "image", "image": name}, {"type": "text", "text": question}]
    return {
        "id": row_id,
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
    }


def _frames(folder: Path, samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
    """Two images as the frames of a video have them: each behind its name, and a question about one of them."""
    pairs = zip(*[saved(folder, "frames", samples)] * 2, strict=False)
    for number, pair in enumerate(pairs):
        asked: list[dict[str, str]] = []
        for place, (name, _) in enumerate(pair, 1):
            asked += [{"type": "text", "text": f"Frame-{place}: "}, {"type": "image", "image": name}]
        wanted = number % 2
        asked.append({"type": "text", "text": task.question_of_frame(wanted + 1)})
        answer = {"role": "assistant", "content": pair[wanted][1].shown}
        yield {"id": f"frames-{number}", "messages": [{"role": "user", "content": asked}, answer]}


def _prompts(split: Split, samples: Iterator[tuple[str, Sample]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Prompts with their references for `rlhf.evaluate`."""
    for number, (name, sample) in enumerate(samples):
        row = _chat(f"{split.value}-{number}", name, sample, rng)
        asked, answer = row["messages"]
        yield {**row, "messages": [asked], "reference": answer["content"], "family": sample.family.name}


def main(arguments: list[str]) -> int:
    return write_from(arguments, "data/base", write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
