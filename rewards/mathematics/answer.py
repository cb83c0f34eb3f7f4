"""Do two mathematical answers mean the same? Equal numbers are decided here, the rest by math-verify's parser, sympy.

`verify_symbolic` may run for ever on hostile input: call it in a scorer process with a deadline only. It never
evaluates text as code: only math-verify's LaTeX reading is used, whose parser is a grammar (its other reading goes
through `sympy.parse_expr`, which evaluates).
"""

import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from rewards.mathematics.latex import parse_latex
from rewards.mathematics.plain_numbers import read_plain, same_value
from rewards.mathematics.text import MathText, read, spoken_number
from rewards.mathematics.units import same_unit
from rewards.result import Unscorable

if TYPE_CHECKING:
    from rewards.mathematics.values import MathObject

MAX_QUICK = 300  # characters; longer texts go to a scorer process
MAX_CHARACTERS = 4_000  # longer texts are refused: no reference of the known data sets has a tenth of that
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf)", re.IGNORECASE)  # a program writes these where it has no number
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]+")
_BASED = re.compile(r"([0-9a-fA-F]{1,40})_\{?([0-9]{1,2})\}?")
_NAMED_POINT = re.compile(r"[A-Z]\s*(\([^()]*,[^()]*\))")
_OUTER = {"\\{": "set", "{": "group", "(": "parenthesis", "[": "bracket"}


def compare_plainly(answer: str, reference: str) -> bool | None:
    """Return the verdict where it takes no mathematics, else None. Takes bounded time on any input, never raises.

    The verdict is always that of `verify_symbolic`: numbers (exact, or rounded decimals), and words against words.
    """
    if len(answer) > MAX_QUICK or len(reference) > MAX_QUICK:
        return None
    gold = read(reference)
    number = read_plain(gold)
    readable = gold.words and not spoken_number(gold.words) and not _NO_NUMBER.fullmatch(gold.words)
    if number is None and not readable:
        return None
    pred = read(answer)
    if number is not None:
        if not pred.formula.strip():
            return False
        candidate = read_plain(pred)
        if candidate is None:
            return None
        return same_unit(gold.unit, pred.unit) and same_value(candidate, number, (pred.percent, gold.percent))
    return _same_words(gold, pred)


def verify_symbolic(answer: str | None, reference: str) -> bool:
    """Tell whether the answer equals the reference as mathematics; an answer that is None or cannot be read is wrong.

    Raises `Unscorable` for a reference that is empty or cannot be read, whatever the answer, and for an answer that is
    too long, nested too deeply, or holds numbers too large to be judged. MemoryError is not caught.
    """
    refuse_long(answer, reference)
    gold = read(reference)
    try:
        gold_object = _parse_reference(reference, gold)
        if answer is None:
            return False
        plain = compare_plainly(answer, reference)
        return _verify(read(answer), gold, gold_object) if plain is None else plain
    except RecursionError:
        raise Unscorable("nested too deeply to be judged") from None


def refuse_long(*texts: str | None) -> None:
    """Raise `Unscorable` for a text that is longer than `MAX_CHARACTERS`."""
    for text in texts:
        if text is not None and len(text) > MAX_CHARACTERS:
            raise Unscorable(f"{len(text)} characters are too many to be judged, at most {MAX_CHARACTERS} are")


def warm_up() -> None:
    """Trigger every lazy import and cache of the parser and of sympy, so that judging opens no file later."""
    pairs = [
        ("\\frac{1}{2}x^{2}+\\sqrt{3}", "0.5x^2+\\sqrt3"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&5\\end{bmatrix}"),
        ("(-\\infty,1)\\cup[2,3]", "x<1\\text{ or }2\\le x\\le 3"),
        ("y=2x+1", "xy=3"),
        ("\\{1,\\sqrt{2}\\}", "1,\\sqrt2"),
        ("\\sin(x)^2+\\cos(x)^2+\\ln(x)+e^{i\\pi}", "1+\\log_2 x"),
        ("\\int_0^1 x dx+\\sum_{k=1}^{3}k+n!+\\binom{5}{2}+|x|+\\lim_{x\\to 0}x", "f(x)+\\lfloor x\\rfloor+x\\bmod 3"),
        ("x^2=4", "x\\in\\{-2,2\\}"),
        ("50\\%", "\\pm\\frac{1}{2}"),
        ("x^2-1>0", "(1,2]"),
        ("f(x)", "g(x)"),
        ("\\mathbb{R}\\setminus\\{0\\}", "x\\ne 0"),
    ]
    for one, other in pairs:
        for answer, reference in ((one, other), (other, one), (one, one)):
            try:
                verify_symbolic(answer, reference)
            except Unscorable:
                continue


def _verify(pred: MathText, gold: MathText, gold_object: "MathObject | None") -> bool:
    if gold.words or pred.words:
        return _same_words(gold, pred)
    if not pred.formula or not same_unit(gold.unit, pred.unit) or _other_kind(gold.formula, pred.formula):
        return False
    named = _NAMED_POINT.fullmatch(pred.formula)
    if named and gold.formula.startswith("("):
        pred = replace(pred, formula=named[1])
    based = [_BASED.fullmatch(side.formula) for side in (gold, pred)]
    if based[0] and based[1] and based[0][2] != based[1][2]:
        return _in_base(*based[0].groups()) == _in_base(*based[1].groups())
    pred_object = parse_latex(_decimal_comma(pred.formula, gold.formula))
    if pred_object is None or gold_object is None:
        return False
    from rewards.mathematics.compare import attempt, percentage, same

    if _DECIMAL_COMMA.fullmatch(gold.formula) and "." in pred.formula:
        gold_object = parse_latex(_decimal_comma(gold.formula, pred.formula))
    if gold_object is None:
        return False
    sides = _one_case(gold_object, gold.formula, pred_object, pred.formula)
    marked = [percentage(side) if text.percent else side for side, text in zip(sides, (gold, pred), strict=True)]
    return bool(attempt(lambda: same(*marked)))


@lru_cache(maxsize=256)  # for references only, because the completions of a group share one; never for answers
def _parse_reference(reference: str, gold: MathText) -> "MathObject | None":
    if _NO_NUMBER.fullmatch(gold.words or gold.formula):
        raise Unscorable(f"reference {reference[:80]!r} is no number")
    if gold.words:
        if spoken_number(gold.words):
            raise Unscorable(f"reference {reference[:80]!r} does not parse as mathematics: write the number in digits")
        return None
    parsed = parse_latex(gold.formula) if gold.formula else None
    if parsed is None:
        raise Unscorable(f"reference {reference[:80]!r} does not parse as mathematics")
    return parsed


def _same_words(gold: MathText, pred: MathText) -> bool:
    one, other = (side.words or side.formula.casefold() for side in (gold, pred))
    for clock, time in ((one, other), (other, one)):  # the half of the day may be said by one side or by both
        if clock.startswith("clock ") and time.removeprefix("clock ") == clock.split()[1]:
            return True
    return bool(one) and one == other


def _decimal_comma(formula: str, other: str) -> str:
    """Read 1,22 as 1.22 where the other side is a decimal number; else it is a list."""
    return formula.replace(",", ".") if _DECIMAL_COMMA.fullmatch(formula) and _DECIMAL.fullmatch(other) else formula


def _in_base(digits: str, base: str) -> int | None:
    return int(digits, int(base)) if 2 <= int(base) <= 36 and all(int(d, 36) < int(base) for d in digits) else None


def _other_kind(one: str, other: str) -> bool:
    """A set in braces is not a tuple or interval in brackets; math-verify takes {1,2} for (1,2)."""
    kinds = {_outer(one), _outer(other)}
    return kinds in ({"set", "parenthesis"}, {"set", "bracket"})


def _outer(formula: str) -> str | None:
    """Return the kind of brackets that enclose the whole formula, if that is one pair around a list."""
    opening = next((mark for mark in _OUTER if formula.startswith(mark)), None)
    if opening is None or "," not in formula:
        return None
    depth = 0
    plain = formula.replace("\\{", "(").replace("\\}", ")")
    for position, character in enumerate(plain):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return _OUTER[opening] if position == len(plain) - 1 else None
    return None


def _one_case(
    gold: "MathObject", gold_text: str, pred: "MathObject", pred_text: str
) -> "tuple[MathObject, MathObject]":
    """Take X for x, unless one side uses a letter in both cases (R - r)."""
    names = [{str(symbol) for symbol in getattr(side, "free_symbols", ())} for side in (gold, pred)]
    lower = [{name.lower() for name in side} for side in names]
    one_to_one = all(len(few) == len(many) for few, many in zip(lower, names, strict=True))
    if names[0] == names[1] or lower[0] != lower[1] or not one_to_one:
        return gold, pred
    return parse_latex(gold_text, lowercase=True) or gold, parse_latex(pred_text, lowercase=True) or pred
