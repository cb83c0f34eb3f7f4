"""This module alone decides which part of a completion is its answer."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

THINK_START, THINK_END = "<think>", "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# `\boxed 5`: a number or capital letter and nothing glued to it. The MATH and Qwen2.5-Math graders read on to the next
# dollar sign or the end of the text, which takes prose into the answer; TeX itself boxes one token.
_BRACELESS_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+([+-]?[0-9]+(?:[.,][0-9]+)*|[A-Z])(?![\w{\\^/%])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character is skipped as a pair
_STRICT = re.compile(r"\s*<think>(.*?)</think>\s*\\boxed\s*\{", re.DOTALL)
_ANSWER_SAID = re.compile(
    r"(?i:answer)\**[ \t]*(?:(?i:is)\b[ \t]*[:：]?|[:：])\**|答案(?:应该|应)?[ \t]*(?:(?:是|为|选)[ \t]*[:：]?|[:：])"
)
_SENTENCE_END = re.compile(r"(?:[.]\**(?=[ \t]+[A-Z])|。)")
_MAX_SENTENCE = 400
_CONCLUSION = re.compile(
    r"(?i:(?:so|thus|hence|therefore),?\s+)?(?i:the|there)\s.*\s(?:is|are|equals)\s+"
    r"(\$[^$]+\$|\\\([^()]+\\\)|-?[0-9][0-9.,/]*(?:\\?%)?)"
)
_NUMBER = re.compile(
    r"(?:(?<![\w.)}\]])[+-])?(?:(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
    r"(?:/[0-9]+(?![0-9.]))?(?:\\?%)?",
    re.ASCII,
)


class AnswerRule(Enum):
    """The places in the text that counts (see `visible_text`) where an answer may stand."""

    boxed = "boxed"  # the last complete \boxed{} or \fbox{}
    vlmevalkit = "vlmevalkit"  # the first one, for comparison with numbers published with VLMEvalKit
    answer_tag = "answer_tag"  # the last complete <answer> ... </answer>; a box in it wins
    answer_line = "answer_line"  # the rest of the line behind the last "Answer:", "The answer is", "答案" and the like
    last_number = "last_number"
    bare = "bare"  # the text itself


@dataclass(frozen=True)
class Parsed:
    """A completion taken apart. `answer` is None when there is no complete box where answers count."""

    thinking: str
    answer: str | None
    well_formed: bool  # it is one think block, then one boxed answer, then nothing


def extract(text: str, rules: Sequence[AnswerRule] = (AnswerRule.boxed,)) -> str | None:
    """Return the answer by the first of `rules` that finds one, else None. Takes time linear in the length of the text.

    A text without any think tag counts as a whole; otherwise only what follows the closed `</think>` does, and an
    unclosed think block or box is no answer. An empty box is an answer, the empty one.
    """
    visible = visible_text(text)
    for rule in rules:
        answer = _FINDERS[rule](visible)
        if answer is not None:
            return answer
    return None


def parse_completion(text: str) -> Parsed:
    """Return the thinking, last box and form of a completion."""
    thinking, visible = _split_thinking(text)
    return Parsed(thinking, _last_box(visible), _is_well_formed(text))


def visible_text(text: str) -> str:
    """Return the part of a completion where answers count; empty when its think block does not close."""
    return _split_thinking(text)[1]


def complete_boxes(text: str) -> list[tuple[int, str]]:
    """Return the (end position, content) of every box that closes, outermost boxes only, in order."""
    closing = _closing_braces(text)
    boxes, position = [], 0
    while match := _BOX.search(text, position):
        end = closing.get(match.end() - 1)
        if end is None:
            position = match.end()
            continue
        boxes.append((end + 1, text[match.end() : end].strip()))
        position = end + 1
    braceless = [(match.end(), match[1]) for match in _BRACELESS_BOX.finditer(text)]
    return sorted(boxes + braceless) if braceless else boxes


def _last_box(text: str) -> str | None:
    boxes = complete_boxes(text)
    return boxes[-1][1] if boxes else None


def _first_box(text: str) -> str | None:
    boxes = complete_boxes(text)
    return boxes[0][1] if boxes else None


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if end < 0 or start < 0:
        return None
    return _inner_box(text[start + len("<answer>") : end])


def _said(text: str) -> str | None:
    """The answer that is announced by "Answer:" and the like, on the same line or on the next that is not empty.

    Where a sentence ends in a number or formula ("The area of ABC is 12"), that number or formula is the answer.
    """
    announced = deque(_ANSWER_SAID.finditer(text), maxlen=1)
    if not announced:
        return None
    lines = text[announced[0].end() :].lstrip().splitlines()
    said = _inner_box(_SENTENCE_END.split(lines[0], maxsplit=1)[0]) if lines else ""
    concluded = _CONCLUSION.fullmatch(said) if len(said) <= _MAX_SENTENCE else None
    return (concluded[1] if concluded else said) or None


def _inner_box(text: str) -> str:
    box = _last_box(text)
    if box is not None:
        return box
    return text.strip().rstrip("*.。 \t").removeprefix("**").strip()


def _last_number(text: str) -> str | None:
    found = deque(_NUMBER.finditer(text), maxlen=1)
    return found[0][0] if found else None


_FINDERS = {
    AnswerRule.boxed: _last_box,
    AnswerRule.vlmevalkit: _first_box,
    AnswerRule.answer_tag: _tagged,
    AnswerRule.answer_line: _said,
    AnswerRule.last_number: _last_number,
    AnswerRule.bare: lambda text: text.strip() or None,
}


def _split_thinking(text: str) -> tuple[str, str]:
    if THINK_START not in text and THINK_END not in text:
        return "", text
    before, closed, after = text.rpartition(THINK_END)
    if not closed or THINK_START in after:
        return text.rpartition(THINK_START)[2], ""
    return before.removeprefix(THINK_START), after


def _closing_braces(text: str) -> dict[int, int]:
    """Map each opening brace to its closing one, in one pass: a policy may write thousands of boxes and close none."""
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
