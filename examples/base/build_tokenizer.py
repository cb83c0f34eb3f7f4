"""Rebuild the tokenizer of the flavour tiny_base from what the base model reads and what the quickstart writes.

`python -m examples.base.build_tokenizer` writes model/flavours/tiny_base/tokenizer.json, byte for byte the same each
time.
"""

import re
import string
from collections.abc import Iterator

from examples.base import task
from examples.base.pictures import ICONS
from examples.digits import build_tokenizer as digits
from model.config import FLAVOUR_FOLDER
from model.processing.tokenizer import train_tokenizer

NUM_ENTRIES = 768


def texts() -> Iterator[str]:
    """The quickstart's texts; questions, names and the frames of captions often enough to become whole words.

    Capitals stand apart, so that the tokens of a word in capitals are its letters.
    """
    for text in digits.texts():
        yield re.sub(r"[A-Z]{2,}", lambda capitals: " ".join(capitals[0]), text)
    asked = [task.HIGHEST, task.DESCRIBE, *task.QUESTIONS.values(), *map(task.question_of_height, task.COLOURS)]
    asked += [f"Frame-1: Frame-2: {task.question_of_frame(number)}" for number in (1, 2)]
    for _ in range(64):
        for question in asked:
            yield question
            yield f"\n{question}"
        for family in task.Family:
            for letter in string.ascii_uppercase:
                yield task.caption_of(family, letter)
        yield from ICONS
        for colour in task.COLOURS:
            yield colour
            yield f"{colour} 1, {colour} 2"


if __name__ == "__main__":
    tokenizer = train_tokenizer(texts(), NUM_ENTRIES)
    path = FLAVOUR_FOLDER / "tiny_base" / "tokenizer.json"
    path.write_text(tokenizer.raw, encoding="utf-8")
    print(f"wrote {path}: {tokenizer.num_entries} entries")
