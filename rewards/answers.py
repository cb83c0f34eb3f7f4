"""This module alone decides which part of a completion is its answer."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

THINK_START, THINK_END = "<think>", "</think>"
JUDGE_START, JUDGE_END = "<judge>", "</judge>"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# `\boxed 5`: a number or capital letter and nothing glued to it. The MATH and Qwen2.5-Math graders read on to the next
# dollar sign or the end of the text, which takes prose into the answer; TeX itself boxes one token.
_BRACELESS_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+([+-]?[0-9]+(?:[.,][0-9]+)*|[A-Z])(?![\w{\\^/%])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character is skipped as a pair
_STRICT = re.compile(r"\s*<think>(.*?)</think>\s*\\boxed\s*\{", re.DOTALL)
_STRICT_BOX = re.compile(r"\s*\\boxed\s*\{")
_ANSWER_SAID = re.compile(
    r"(?i:answer)(?:[ \t]+to[ \t][^\n.:：]{1,120}?)?\**[ \t]*"
    r"(?:(?i:is|would[ \t]+be|must[ \t]+be|should[ \t]+be|will[ \t]+be|equals)\b[ \t]*[:：]?|[:：])\**"
    r"|^[#* \t]*(?i:(?:final|correct)[ \t]+answer|answer)[* \t]*$"
    r"|答案(?:应该|应)?[ \t]*(?:(?:是|为|选)[ \t]*[:：]?|[:：])",
    re.MULTILINE,
)
# A full stop behind these ends no sentence: St. John, Dr. Lee, J. Smith, U.S. Open.
_SENTENCE_END = re.compile(
    r"(?:(?<!\b[A-Z])(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMt)(?<!\bNo)(?<!\bvs)(?<!\bFt)(?<!\bJr)(?<!\bSr)(?<!\bMrs)"
    r"(?<!\bAve)(?<!\bProf)(?<!\bapprox)(?<!\bInc)(?<!\bLtd)(?<!\bFig)[.]\**(?=[ \t]+[A-Z])|。)"
)
_MAX_SENTENCE = 400
_CONCLUSION = re.compile(
    r"(?i:(?:so|thus|hence|therefore),?\s+)?(?i:the|there)\s.*\s(?:is|are|equals)\s+"
    r"(\$[^$]+\$|\\\([^()]+\\\)|-?[0-9][0-9.,/]*(?:\\?%)?)"
)
_INLINE = re.compile(r"\$(?=[^\s$])([^$\n]{1,300}?)(?<=\S)\$(?![0-9])|\\\(([^\n]{1,300}?)\\\)")
_TOKEN = re.compile(r"[^\s;:!?，。；：、！？\u4e00-\u9fff]{1,400}")
_UNIT_WITH_POWER = re.compile(
    r"[(\[]?[A-Za-z]+(?:/[A-Za-z]+)*\^?\{?-?[0-9]\}?[)\]]?[.,]?|[A-Za-z]+[-_]?[0-9]+[A-Za-z]*[.,]?"
)
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?(?:\\?%)?",
    re.ASCII,
)
_SCALE = re.compile(
    r"\s(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore|percent|tenths?|hundredths?|thirds?)\b|\s?[万亿]"
)
_WHOLE = re.compile(r"(?<![\w./^])[0-9]+$")


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
    unclosed think block or box is no answer. An empty box is an answer, the empty one. Judge sections at the beginning
    (`rewards.sections`) never count.
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


def behind_judgement(text: str) -> tuple[list[str], str]:
    """Return (the judge sections that a completion begins with, the text behind them).

    One that does not close has no text behind it. A completion that begins otherwise is all text.
    """
    sections: list[str] = []
    place = _next_letter(text, 0)
    if not text.startswith(JUDGE_START, place):
        return sections, text
    while text.startswith(JUDGE_START, place):
        begin = place + len(JUDGE_START)
        end = text.find(JUDGE_END, begin)
        if end < 0:
            return [*sections, text[begin:]], ""
        sections.append(text[begin:end])
        place = _next_letter(text, end + len(JUDGE_END))
    return sections, text[place:]


def _next_letter(text: str, place: int) -> int:
    """The place of the next character that is no white space."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


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
    """Return the last number, or the whole formula that it stands in: 10^3 and \frac{4}{3} are not 3.

    The number of a unit's power (cm^2, m2) or of a name (x1, H2O) is none.
    """
    last: re.Match[str] | None = None
    for token in deque((one for one in _TOKEN.finditer(text) if _has_number(one[0])), maxlen=1):
        last = token
    if last is None:
        return None
    inline = deque(_INLINE.finditer(text), maxlen=1)
    if inline and inline[0].start() < last.end() and last.start() < inline[0].end():
        return (inline[0][1] or inline[0][2]).rpartition("=")[2].strip()
    return _in_context(text, last) or None


def _has_number(token: str) -> bool:
    return any("0" <= character <= "9" for character in token) and not _UNIT_WITH_POWER.fullmatch(token)


def _in_context(text: str, token: re.Match[str]) -> str:
    """Return a number with what belongs to it: its bracket, the whole of a mixed number, the scale word behind it."""
    said = (
        token[0].translate(_MINUS).strip("*\"'“”`~_").rstrip(".,)*\"'")
        if "(" not in token[0]
        else token[0].rstrip(".,")
    )
    start = token.start()
    if token[0].count(")") > token[0].count("("):
        opening = text.rfind("(", max(0, start - 100), token.end())
        inside = text[opening + 1 : token.end()].rpartition(")")[0] if opening >= 0 else ""
        if _NUMBER.fullmatch(inside):
            return inside
        if inside and not any(character.isalpha() for character in inside):
            return f"({inside})"
    said = re.sub(r"^\(?\\?\$(?=[0-9.])", "", said)
    said = said[1:-1] if said.startswith("(") and _NUMBER.fullmatch(said[1:-1]) else said
    said = said.removeprefix("(") if said.count("(") > said.count(")") else said
    said = said.rpartition("=")[2].strip() or said
    if _NUMBER.fullmatch(said) and "/" in said:
        whole = _WHOLE.search(text[max(0, start - 20) : start].rstrip())
        said = f"{whole[0]} {said}" if whole else said
    scale = _SCALE.match(text, token.end())
    return said + scale[0] if scale else said


_MINUS = str.maketrans("−–", "--")
_FINDERS = {
    AnswerRule.boxed: _last_box,
    AnswerRule.vlmevalkit: _first_box,
    AnswerRule.answer_tag: _tagged,
    AnswerRule.answer_line: _said,
    AnswerRule.last_number: _last_number,
    AnswerRule.bare: lambda text: text.strip() or None,
}


def _split_thinking(text: str) -> tuple[str, str]:
    text = behind_judgement(text)[1]
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
    return _ends_with_box(text, match.end())


def is_boxed_answer(text: str) -> bool:
    """Tell whether a text is one boxed answer and nothing else, no think tags either."""
    match = _STRICT_BOX.match(text)
    if match is None or THINK_START in text or THINK_END in text:
        return False
    return _ends_with_box(text, match.end())


def _ends_with_box(text: str, begin: int) -> bool:
    """Tell whether a box whose content begins at `begin` closes, holds something, and is the end of the text."""
    end = _closing_braces(text).get(begin - 1)
    return end is not None and bool(text[begin:end].strip()) and not text[end + 1 :].strip()
