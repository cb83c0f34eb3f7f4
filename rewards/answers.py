"""Which part of a completion is its answer: the one place that decides."""

import re
from dataclasses import dataclass

THINK_START, THINK_END = "<think>", "</think>"
_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character is skipped as a pair
_STRICT = re.compile(r"\s*<think>(.*?)</think>\s*\\boxed\s*\{", re.DOTALL)


@dataclass(frozen=True)
class Parsed:
    """A completion taken apart. `answer` is None when there is no complete box where answers count."""

    thinking: str
    answer: str | None
    well_formed: bool  # exactly: one think block, then one boxed answer, then nothing


def parse_completion(text: str) -> Parsed:
    """Text without any think tag counts as a whole; otherwise only what follows the closed `</think>` does.

    The last complete `\\boxed{}` wins; braces nest to any depth; an unclosed box or think block is no answer.
    """
    thinking, visible = _split_thinking(text)
    boxes = complete_boxes(visible)
    return Parsed(thinking, boxes[-1][1] if boxes else None, _is_well_formed(text))


def complete_boxes(text: str) -> list[tuple[int, str]]:
    """(end position, content) of every box whose braces close, outermost boxes only, in order."""
    closing = _closing_braces(text)
    boxes, position = [], 0
    while match := _BOX.search(text, position):
        end = closing.get(match.end() - 1)
        if end is None:
            position = match.end()
            continue
        boxes.append((end + 1, text[match.end() : end].strip()))
        position = end + 1
    return boxes


def _split_thinking(text: str) -> tuple[str, str]:
    if THINK_START not in text and THINK_END not in text:
        return "", text
    before, closed, after = text.rpartition(THINK_END)
    if not closed or THINK_START in after:
        return text.rpartition(THINK_START)[2], ""
    return before.removeprefix(THINK_START), after


def _closing_braces(text: str) -> dict[int, int]:
    """Opening brace -> its closing one, in one pass: a policy may write thousands of boxes and close none."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    return closing


def _is_well_formed(text: str) -> bool:
    match = _STRICT.match(text)
    if match is None or text.count(THINK_START) != 1 or text.count(THINK_END) != 1 or not match[1].strip():
        return False
    end = _closing_braces(text).get(match.end() - 1)
    return end is not None and bool(text[match.end() : end].strip()) and not text[end + 1 :].strip()
