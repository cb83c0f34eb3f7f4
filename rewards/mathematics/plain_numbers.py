"""Exact arithmetic on answers that are plain numbers, and the one rule by which two numbers are the same."""

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.mathematics.text import MathText

ABSOLUTE = Fraction(5, 10**7)
RELATIVE = Fraction(1, 10**4)
_DIGITS = r"[0-9]{1,40}"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]{{0,40}})?|\.{_DIGITS})"
_PLAIN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<decimal>{_DECIMAL})"
    rf"|(?P<whole>{_DIGITS})?\s*\\frac\s*(?:\{{\s*(?P<top>-?{_DIGITS})\s*\}}|(?P<top1>[0-9]))"
    rf"\s*(?:\{{\s*(?P<bottom>{_DIGITS})\s*\}}|(?P<bottom1>[0-9]))"
    rf"|(?:(?P<whole2>{_DIGITS})\s+)?(?P<a>{_DIGITS})\s*/\s*(?P<b>{_DIGITS}))",
    re.ASCII,
)


@dataclass(frozen=True)
class PlainNumber:
    value: Fraction
    decimal: bool  # it is written with a decimal point, so it may be rounded


def read_plain(text: MathText) -> PlainNumber | None:
    """Return the value of a formula that is an integer, decimal, fraction or mixed number, else None."""
    match = _PLAIN.fullmatch(text.formula.strip())
    if match is None:
        return None
    sign = -1 if match["sign"] == "-" else 1
    if match["decimal"]:
        written = match["decimal"]
        return PlainNumber(sign * Fraction(written if written[-1] != "." else written[:-1]), "." in written.rstrip("."))
    whole = match["whole"] or match["whole2"]
    top = int(match["top"] or match["top1"] or match["a"])
    bottom = int(match["bottom"] or match["bottom1"] or match["b"])
    if bottom == 0 or (whole and top < 0):
        return None
    return PlainNumber(sign * (int(whole or 0) + Fraction(top, bottom)), False)


def same_number(one: PlainNumber, other: PlainNumber) -> bool:
    """Exact numbers must be equal; a decimal may be rounded at the sixth place (math-verify's rule).

    math-verify compares numbers rounded to six places whatever their size, so that 1e-7 is 3e-7; here the first four
    significant digits must agree as well.
    """
    if not (one.decimal or other.decimal):
        return one.value == other.value
    gap = abs(one.value - other.value)
    return gap <= ABSOLUTE and gap <= RELATIVE * max(abs(one.value), abs(other.value))


def same_value(answer: PlainNumber, reference: PlainNumber, percents: tuple[bool, bool]) -> bool:
    """Compare as `same_number` does; a percentage p% means p or p/100 when the other side has no percent sign."""
    if percents[0] == percents[1]:
        return same_number(answer, reference)
    marked, other = (answer, reference) if percents[0] else (reference, answer)
    share = PlainNumber(marked.value / 100, marked.decimal or other.decimal)
    return same_number(marked, other) or same_number(share, other)
