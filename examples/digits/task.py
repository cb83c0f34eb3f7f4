"""The quickstart's task: read four handwritten digits in a 2x2 image and compute with them. Answers are exact.

Two question families over the digits a b (top row) c d (bottom row):
sum        a + b + c + d                        0..36
gap        |a - b|                              0..9
Two correct ways to think, both taught: *terse* (only the reading) and *full* (the reading, then each step).
"""

from collections.abc import Sequence
from enum import Enum


class Family(Enum):
    """A kind of question; the value is its text."""

    sum = "What is the sum of the four digits?"
    gap = "How far apart are the top two digits?"


CAPTION_PREFIX = "Digits:"


def answer(family: Family, digits: Sequence[int]) -> int:
    a, b, c, d = digits
    return a + b + c + d if family is Family.sum else abs(a - b)


def reading(family: Family, digits: Sequence[int]) -> str:
    """The digits that the question is about, in reading order, no separators."""
    return "".join(map(str, digits if family is Family.sum else digits[:2]))


def full_thought(family: Family, digits: Sequence[int]) -> str:
    """For example `1719:1+7=08,08+1=09,09+9=18`, or `37:7-3=4`.

    Running sums have two digits, so that each digit of the reading is always the same number of tokens away from its
    use. With free widths some seeds had not found out which digit comes next when pre-training ended.
    """
    return f"{reading(family, digits)}:{worked_steps(family, digits)}"


def worked_steps(family: Family, digits: Sequence[int]) -> str:
    """The arithmetic of a full thought."""
    a, b, c, d = digits
    if family is Family.sum:
        first, second, third = a + b, a + b + c, a + b + c + d
        return f"{a}+{b}={first:02},{first:02}+{c}={second:02},{second:02}+{d}={third:02}"
    return f"{max(a, b)}-{min(a, b)}={abs(a - b)}"


def boxed(value: int) -> str:
    return f"\\boxed{{{value}}}"


def thinking_text(thought: str, value: int) -> str:
    return f"<think>{thought}</think>{boxed(value)}"
