"""The type of a verifier, and how its options and references are read."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rewards.result import Claim, Unscorable

Options = Mapping[str, Any]
"""A verifier's settings by name, texts and numbers, as its own `Option`s allow them."""

T = TypeVar("T")
Judge = Callable[[Claim, Options], float | None]
_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_QUOTED, _ESCAPED = re.compile(_TEXT, re.DOTALL), re.compile(r"\\(.)", re.DOTALL)
_TEXT_LIST = re.compile(rf"\[\s*{_TEXT}(?:\s*,\s*{_TEXT})*\s*,?\s*\]", re.DOTALL)
_MAX_CELL = 20_000  # characters of a cell that may list several answers
_NO_NUMBER = r"-?(?:nan|NaN|NAN)|NaT|<NA>"
_NO_VALUE = rf"{_NO_NUMBER}|None|null|NULL|#?N/A|n/a"
_NO_NUMBER_IN_OBJECT = re.compile(rf"[\[({{,:]\s*(?:{_NO_NUMBER})\s*[\])}},]")
_IN_QUOTES = re.compile(r"""'[^']*'|"[^"]*\"""")
_NO_VALUE_IN_LIST = re.compile(rf"[\[({{,:]\s*(?:{_NO_VALUE})\s*[\])}},]")
QUICK_CHARACTERS = 10_000  # a longer claim is not judged outside of a scorer process, however cheap the verifier


class Undecided:
    """The type of `UNDECIDED`, which says that a verdict takes a scorer process."""

    def __repr__(self) -> str:
        return "UNDECIDED"


UNDECIDED = Undecided()


@dataclass(frozen=True)
class Option:
    """One setting of a verifier: its default, the values that it may have, and its meaning."""

    default: float | str
    doc: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | str | None = None  # a number, or the name of the option that is not to be exceeded
    whole: bool = False
    required: bool = False


@dataclass(frozen=True)
class Verifier:
    """`judge` gives a value or None (not applicable) and raises `Unscorable`; `quick` decides cheap cases anywhere."""

    judge: Judge
    rule: str  # how the value is earned, in a sentence
    source: str  # the paper, library or data set that the rule comes from
    options: Mapping[str, Option] = field(default_factory=dict)
    quick: Callable[[Claim, Options], "float | Undecided | None"] | None = None  # None: `judge` itself is cheap
    needs_sympy: bool = False


def reference_text(claim: Claim) -> str:
    """Return the reference as text; `Unscorable` when there is none, or a number that is not finite."""
    reference = claim.reference
    if isinstance(reference, float) and not math.isfinite(reference):
        raise Unscorable(f"the reference is {reference!r}, which programs write where a value is missing")
    if isinstance(reference, bool):
        reference = str(reference).lower()
    if isinstance(reference, (int, float)):
        reference = repr(reference)
    if not isinstance(reference, str):
        raise Unscorable(f"expected a text or number as reference, found {type(reference).__name__}")
    if not reference.strip():
        raise Unscorable("the reference is empty")
    refuse_missing(reference)
    return reference


def refuse_missing(reference: str) -> None:
    """Raise `Unscorable` for a text that spells a missing value, or a list or object that holds one.

    The spellings are those of pandas, numpy, Python and JSON libraries, whose case counts: `none` is a word, `None` is
    not. A null in an object is a value of JSON's own; NaN is none.
    """
    text = reference.strip()
    holds = {"[": _NO_VALUE_IN_LIST, "(": _NO_VALUE_IN_LIST, "{": _NO_NUMBER_IN_OBJECT}.get(text[:1])
    in_brackets = holds is not None and text[-1] in "])}" and len(text) <= _MAX_CELL
    if re.fullmatch(_NO_VALUE, text) or (holds and in_brackets and holds.search(_IN_QUOTES.sub('""', text))):
        raise Unscorable(f"the reference is {text[:80]!r}, which programs write where a value is missing")


def reference_texts(claim: Claim) -> list[str]:
    """Return one text or several (a list in the row, or written in one cell), at least one and none of them empty."""
    reference = claim.reference
    several = reference if isinstance(reference, (list, tuple)) else listed_texts(reference) or [reference]
    if not several:
        raise Unscorable("the reference is an empty list")
    return [reference_text(Claim(claim.completion, claim.answer, one)) for one in several]


def listed_texts(reference: object) -> list[str] | None:
    """Return the texts that a cell lists as Python or JSON does: `['ITC Limited', 'itc ltd']`; None for any other cell.

    Tables such as VLMEvalKit's hold several accepted answers so. A list of numbers is an answer of its own.
    """
    if not isinstance(reference, str) or len(reference) > _MAX_CELL:
        return None
    cell = reference.strip()
    if not _TEXT_LIST.fullmatch(cell):
        return None
    return [_ESCAPED.sub(_unescaped, text[1:-1]) for text in _QUOTED.findall(cell)]


def _unescaped(escape: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t", "r": "\r"}.get(escape[1], escape[1])


def has_no_value(value: object) -> bool:
    """Tell whether JSON data hold a number that is not finite, or a text that spells NaN, at any depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return True
        if isinstance(one, str) and re.fullmatch(_NO_NUMBER, one.strip()):
            return True
        if isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple)):
            waiting.extend(one)
    return False


def parse_json(text: str) -> object:
    """Return the JSON value of a text. `ValueError` when it is none, repeats a key, or holds NaN or infinity."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def only(values: Sequence[T]) -> T | None:
    """Return the one distinct value, None when there are none or several."""
    distinct = set(values)
    return next(iter(distinct)) if len(distinct) == 1 else None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no number")
