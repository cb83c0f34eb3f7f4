"""Do two mathematical answers mean the same? Equal numbers are decided here, the rest by math-verify's parser, sympy.

`verify_symbolic` may run for ever on hostile input: call it in a scorer process with a deadline only. It never
evaluates text as code: only math-verify's LaTeX reading is used, whose parser is a grammar (its other reading goes
through `sympy.parse_expr`, which evaluates).
"""

import json
import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from rewards.mathematics.latex import parse_latex, split_ratio
from rewards.mathematics.plain_numbers import read_plain, same_value
from rewards.mathematics.text import MathText, read, spoken_number
from rewards.mathematics.units import conversion, letter_unit
from rewards.result import Unscorable

if TYPE_CHECKING:
    from rewards.mathematics.values import MathObject

MAX_QUICK = 300  # characters; longer texts go to a scorer process
MAX_CHARACTERS = 1_000  # longer texts are refused: no reference of the known data sets has half of that
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf)", re.IGNORECASE)  # a program writes these where it has no number
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]+")
_BASED = re.compile(r"([0-9][0-9a-fA-F]{0,40}|[A-F][0-9A-F]{1,40})_\{?([0-9]{1,2})\}?")
_HOUR = re.compile(r"clock [0-9]+:[0-9]+")  # a clock time without its half of the day, which may be a ratio
_PADDED = re.compile(r"(?<=:)0(?=[0-9])")
_NAMED_POINT = re.compile(r"[A-Z]\s*(\([^()]*,[^()]*\))")
_GREEK = re.compile(r"(?:gamma|delta|theta|lambda|xi|pi|sigma|phi|psi|omega)(?![a-z])", re.IGNORECASE)
_OUTER = {"\\{": "set", "{": "group", "(": "parenthesis", "[": "bracket"}


def compare_plainly(answer: str, reference: str) -> bool | None:
    """Return the verdict where it takes no mathematics, else None. Takes bounded time on any input, never raises.

    The verdict is always that of `verify_symbolic`: numbers (exact, or rounded decimals), and words against words.
    """
    if len(answer) > MAX_QUICK or len(reference) > MAX_QUICK:
        return None
    pred, gold = _read_pair(answer, reference)
    number = None if gold.words else read_plain(gold)
    readable = gold.words and not spoken_number(gold.words) and not _NO_NUMBER.fullmatch(gold.words)
    if number is None and not readable:
        return None
    if number is None or pred.words:
        return _same_words(gold, pred)
    if not pred.formula.strip():
        return False
    candidate = read_plain(pred)
    if candidate is None:
        return None
    factor = _factor(pred, gold)
    if factor is None:
        return False
    candidate = replace(candidate, value=candidate.value * factor)
    return same_value(candidate, number, (pred.percent, gold.percent))


def verify_symbolic(answer: str | None, reference: str) -> bool:
    """Tell whether the answer equals the reference as mathematics; an answer that is None or cannot be read is wrong.

    Raises `Unscorable` for a reference that is empty or cannot be read, whatever the answer, and for an answer that is
    too long, nested too deeply, or holds numbers too large to be judged. MemoryError is not caught.
    """
    refuse_long(answer, reference)
    try:
        _parse_reference(reference, read(reference))
        if answer is None:
            return False
        plain = compare_plainly(answer, reference)
        return _verify(answer, reference) if plain is None else plain
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


def _verify(answer: str, reference: str) -> bool:
    pred, gold = _read_pair(answer, reference)
    if gold.words or pred.words:
        return _same_words(gold, pred)
    factor = _factor(pred, gold)
    if not pred.formula or factor is None or _other_kind(gold.formula, pred.formula):
        return False
    named = _NAMED_POINT.fullmatch(pred.formula)
    if named and gold.formula.startswith("("):
        pred = replace(pred, formula=named[1])
    based = [_BASED.fullmatch(side.formula) for side in (gold, pred)]
    if based[0] or based[1]:
        values = [_in_base(written) for written in based if written]
        return len(values) == 2 and values[0] == values[1]
    gold_object = _parse_reference(reference, gold)
    ratios = [split_ratio(side.formula) for side in (gold, pred)]
    if ratios[0] or ratios[1]:
        return _same_ratios(ratios[0], ratios[1])
    pred_object = parse_latex(_decimal_comma(pred.formula, gold.formula))
    if pred_object is None or gold_object is None or _other_order(gold.formula, pred.formula):
        return False
    from rewards.mathematics.compare import attempt, percentage, same, scaled

    if _DECIMAL_COMMA.fullmatch(gold.formula) and "." in pred.formula:
        gold_object = parse_latex(_decimal_comma(gold.formula, pred.formula))
    if gold_object is None:
        return False
    sides = _one_case(gold_object, gold.formula, scaled(pred_object, factor), pred.formula)
    marked = [percentage(side) if text.percent else side for side, text in zip(sides, (gold, pred), strict=True)]
    return bool(attempt(lambda: same(*marked)))


def _read_pair(answer: str, reference: str) -> tuple[MathText, MathText]:
    """Read both sides, each in the light of the other: 10:30 is a clock time beside one, else a ratio."""
    sides = [read(text) for text in (answer, reference)]
    for index, other in ((0, 1), (1, 0)):
        one, partner = sides[index], sides[other]
        to_ratio = one.words.startswith("range ") and ":" in partner.formula and " to " in f" {one.formula} "
        if to_ratio or (_HOUR.fullmatch(one.words) and not partner.words.startswith("clock ")):
            formula = ":".join(one.words.split()[1:]) if to_ratio else one.words.removeprefix("clock ")
            sides[index] = replace(one, words="", formula=_PADDED.sub("", formula))
            if partner.words.startswith("clock "):
                sides[other] = replace(partner, words="", formula=partner.words.removeprefix("clock "))
    for index, other in ((0, 1), (1, 0)):
        found = letter_unit(sides[index].formula, sides[other].formula, sides[other].unit, is_reference=index == 1)
        if found and not sides[index].unit:
            sides[index] = replace(sides[index], formula=found[0], unit=found[1])
    return sides[0], sides[1]


def _factor(pred: MathText, gold: MathText) -> Fraction | None:
    """Return by what the answer's unit is larger than the reference's; None where they differ, as 5% and 5 cm do."""
    if (pred.percent and gold.unit) or (gold.percent and pred.unit):
        return None
    return conversion(pred.unit, gold.unit)


def _same_ratios(gold: list[str] | None, pred: list[str] | None) -> bool:
    """Compare ratios of three and more parts: 1:2:3 is 2:4:6, and no quotient."""
    from rewards.mathematics.compare import attempt, proportional

    if gold is None or pred is None or len(gold) != len(pred):
        return False
    parsed = [[parse_latex(part) for part in side] for side in (gold, pred)]
    return bool(attempt(lambda: proportional(*parsed)))


def _other_order(one: str, other: str) -> bool:
    """Tell whether two texts hold the same letters in another order and look like words or names: SE, Tom, cat.

    Two small letters and letters without a vowel are products, which have no order.
    """
    if (
        not one.isascii()
        or not other.isascii()
        or not one.isalpha()
        or not other.isalpha()
        or one.lower() == other.lower()
    ):
        return False
    return not all(side.islower() and (len(side) <= 2 or not set(side) & set("aeiou")) for side in (one, other))


@lru_cache(maxsize=256)  # for references only, because the completions of a group share one; never for answers
def _parse_reference(reference: str, gold: MathText) -> "MathObject | None":
    if _NO_NUMBER.fullmatch(gold.words or gold.formula):
        raise Unscorable(f"reference {reference[:80]!r} is no number")
    if _is_structure(reference):
        raise Unscorable(f"reference {reference[:80]!r} is an object or a list of texts: give the one answer as a text")
    if gold.words:
        if spoken_number(gold.words):
            raise Unscorable(f"reference {reference[:80]!r} does not parse as mathematics: write the number in digits")
        return None
    if gold.formula and (_BASED.fullmatch(gold.formula) or split_ratio(gold.formula)):
        return None
    parsed = parse_latex(gold.formula) if gold.formula else None
    if parsed is None:
        raise Unscorable(f"reference {reference[:80]!r} does not parse as mathematics")
    return parsed


def _is_structure(reference: str) -> bool:
    """Tell whether a reference is JSON that names things, which a column of objects or lists of texts becomes."""
    if not reference.startswith(("{", "[")) or '"' not in reference:
        return False
    try:
        return isinstance(json.loads(reference), dict | list)
    except ValueError:
        return False


def _same_words(gold: MathText, pred: MathText) -> bool:
    if conversion(pred.unit, gold.unit) != 1:
        return False
    one, other = (side.words or side.formula.casefold() for side in (gold, pred))
    for clock, time in ((one, other), (other, one)):  # the half of the day may be said by one side or by both
        if clock.startswith("clock ") and time.removeprefix("clock ") == clock.split()[1]:
            return True
    return bool(one) and one == other


def _decimal_comma(formula: str, other: str) -> str:
    """Read 1,22 as 1.22 where the other side is a decimal number; else it is a list."""
    return formula.replace(",", ".") if _DECIMAL_COMMA.fullmatch(formula) and _DECIMAL.fullmatch(other) else formula


def _in_base(written: re.Match[str]) -> int | str:
    """Return the value of digits in a base, the text itself where they are none of that base."""
    digits, base = written[1], int(written[2])
    is_number = 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits)
    return int(digits, base) if is_number else written[0].casefold()


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
    """Take X for x, unless one side uses a letter in both cases (R - r) or the letter is Greek (Delta)."""
    names = [{str(symbol) for symbol in getattr(side, "free_symbols", ())} for side in (gold, pred)]
    lower = [{name.lower() for name in side} for side in names]
    one_to_one = all(len(few) == len(many) for few, many in zip(lower, names, strict=True))
    greek = any(_GREEK.match(name) for name in names[0] ^ names[1])
    if names[0] == names[1] or lower[0] != lower[1] or not one_to_one or greek:
        return gold, pred
    lowered = [parse_latex(text, lowercase=True) for text in (gold_text, pred_text)]
    return (gold, pred) if lowered[0] is None or lowered[1] is None else (lowered[0], lowered[1])
