"""The miniature of Thinking: five families of questions on images of the base model.

All but the last want a step beyond reading what an image shows:

digits    the sum of two or three handwritten digits
pictures  how many of two frames show a thing of a kind, such as an animal
charts    how high all bars are together
words     a word of three letters, backwards
reading   what the base model was asked: digits, a word, a thing, the height of a bar, the highest bar

A thought begins with the reading, what the image shows. A *worked* thought goes on with each step, a *short* one stops
there and leaves the step to the answer. Both are taught; RL finds out which of them gets answers right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate


class Family(Enum):
    digits = "digits"
    pictures = "pictures"
    charts = "charts"
    words = "words"
    reading = "reading"


REASONING = (Family.digits, Family.pictures, Family.charts, Family.words)
"""Families that want a step beyond reading."""

HIGHEST = "highest"
"""Stands in `asked` for the colour of the highest bar."""

SUM = "What is the sum of the digits?"
TOGETHER = "How high are all bars together?"
BACKWARDS = "What is the word backwards?"


KINDS = {
    "animals": ("bird", "cat", "fish", "horse", "spider"),
    "vehicles": ("bicycle", "bus", "car", "plane"),
    "clothes": ("crown", "glasses", "shirt"),
    "furniture": ("bed", "chair", "clock"),
    "tools": ("hammer", "key", "scissors", "umbrella"),
}
"""Kinds of things that a picture may show, by the names of the base model's pictures; many are of none."""


def how_many(kind: str) -> str:
    return f"How many frames show {kind}?"


@dataclass(frozen=True)
class Question:
    """A question about what images show. `shown`: digits, things, heights with their colours, or letters. `asked`: the
    kind that is counted; of reading, the colour of a bar, `HIGHEST`, or nothing where all is to be read."""

    family: Family
    text: str
    shown: tuple[str, ...]
    asked: str = ""

    @property
    def answer(self) -> str:
        return answer_of(self.family, self.shown, self.asked)

    @property
    def reading(self) -> str:
        return reading_of(self.family, self.shown)

    @property
    def steps(self) -> str:
        return steps_of(self.family, self.shown, self.asked)

    @property
    def worked(self) -> str:
        """The whole thought, such as `385:3+8=11,11+5=16`."""
        return f"{self.reading}:{self.steps}"


def answer_of(family: Family, shown: Sequence[str], asked: str) -> str:
    match family:
        case Family.digits:
            return str(sum(map(int, shown)))
        case Family.pictures:
            return str(sum(thing in KINDS[asked] for thing in shown))
        case Family.charts:
            return str(sum(map(_level, shown)))
        case Family.words:
            return "".join(reversed(shown))
        case Family.reading if asked == HIGHEST:
            return max(shown, key=_level).rpartition(" ")[0]
        case Family.reading if asked:
            return next((bar.rpartition(" ")[2] for bar in shown if bar.rpartition(" ")[0] == asked), "")
        case Family.reading:
            return ", ".join(shown)


def reading_of(family: Family, shown: Sequence[str]) -> str:
    """Write down what is shown, as a thought begins."""
    return ("" if family in (Family.digits, Family.words) else ", ").join(shown)


def steps_of(family: Family, shown: Sequence[str], asked: str) -> str:
    """Write down the steps from a reading to the answer; the last one ends with it.

    Sums have two digits, so that each digit of the reading is always as many tokens away from its use.
    """
    match family:
        case Family.digits:
            return _sums([int(digit) for digit in shown], 2)
        case Family.pictures:
            return _counted(shown, asked)
        case Family.charts:
            return _sums([_level(bar) for bar in shown], 2)
        case Family.words:
            return "-".join(reversed(shown))
        case Family.reading:
            return answer_of(family, shown, asked)


def _sums(numbers: Sequence[int], width: int) -> str:
    total, steps = numbers[0], []
    before = str(total)
    for number in numbers[1:]:
        total += number
        steps.append(f"{before}+{number}={total:0{width}}")
        before = f"{total:0{width}}"
    return ",".join(steps)


def _counted(shown: Sequence[str], kind: str) -> str:
    """Each thing once more, with how many of the kind there are up to it."""
    counts = accumulate(int(thing in KINDS[kind]) for thing in shown)
    return ", ".join(f"{thing} {count}" for thing, count in zip(shown, counts, strict=True))


def _level(bar: str) -> int:
    """The height of a bar that is written as `red 3`."""
    return int(bar.rpartition(" ")[2])


def thinking(thought: str, answer: str) -> str:
    return f"<think>{thought}</think>\\boxed{{{answer}}}"
