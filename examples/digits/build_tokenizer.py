"""Rebuild the tiny flavour's tokenizer from the task's texts and the two interface strings.

`python -m examples.digits.build_tokenizer` writes model/flavours/tiny/tokenizer.json, byte for byte the same each time.
"""

from collections.abc import Iterator

from examples.digits import task
from model.config import FLAVOUR_FOLDER
from model.interface import DEFAULT_SYSTEM_TEXT, THINKING_INSTRUCTION
from model.processing.tokenizer import train_tokenizer

NUM_ENTRIES = 640


def texts() -> Iterator[str]:
    """Every text the quickstart writes around its digits; the fixed ones often enough to become whole words."""
    for _ in range(64):
        yield f"system\n{DEFAULT_SYSTEM_TEXT}"
        yield "user\n"
        yield "assistant\n"
        yield f"\n{task.CAPTION_PREFIX}"
        for family in task.Family:
            yield f"\n{family.value}{THINKING_INSTRUCTION}"
    for number in range(10_000):
        digits = [int(d) for d in f"{number:04d}"]
        family = (task.Family.sum, task.Family.gap)[number % 2]
        yield task.thinking_text(task.full_thought(family, digits), task.answer(family, digits))


if __name__ == "__main__":
    tokenizer = train_tokenizer(texts(), NUM_ENTRIES)
    path = FLAVOUR_FOLDER / "tiny" / "tokenizer.json"
    path.write_text(tokenizer.raw, encoding="utf-8")
    print(f"wrote {path}: {tokenizer.num_entries} entries")
