"""Verifiers of one number: `numeric`, `relaxed`, `count`."""

import re
from fractions import Fraction

from rewards.mathematics.plain_numbers import PlainNumber, read_plain
from rewards.mathematics.text import read
from rewards.mathematics.units import NONE, Unit, conversion
from rewards.result import Claim, Unscorable
from rewards.verifiers.counts import counted
from rewards.verifiers.verifier import Option, Options, Verifier, reference_text, reference_texts

_MAX_CHARACTERS = 400
_CURRENCY_SIGNS = "$€£¥₹₩"
_SCIENTIFIC = re.compile(
    r"([+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^\s*)\{?\s*([+-]?[0-9]{1,3})\s*\}?"
    r"|([+-]?)10\s*\^\s*\{?\s*([+-]?[0-9]{1,3})\s*\}?"
)


def judge_numeric(claim: Claim, options: Options) -> float:
    """Give 1 within the absolute tolerance, or within the relative one of the reference, as `math.isclose` does."""
    reference, unit, percent = _read(reference_text(claim))
    if reference is None:
        raise Unscorable(f"reference {str(claim.reference)[:80]!r} is not a number")
    answer, answer_unit, answer_percent = _read(claim.answer or "")
    factor = conversion(answer_unit, unit)
    if answer is None or factor is None or (answer_percent and unit) or (percent and answer_unit):
        return 0.0
    answer *= factor
    pairs = [(answer, reference)]
    if answer_percent != percent:  # 50% means 50 or 0.5, as for `math`
        pairs.append((answer / 100, reference) if answer_percent else (answer, reference / 100))
    absolute, relative = Fraction(options["absolute"]), Fraction(options["relative"])
    return float(any(abs(one - other) <= max(absolute, relative * abs(other)) for one, other in pairs))


def judge_relaxed(claim: Claim, options: Options) -> float:
    """Judge as ChartQA does: numbers within `tolerance`, other texts equal but for case; the best reference counts."""
    references = reference_texts(claim)
    return max(_relaxed(claim.answer, reference, Fraction(options["tolerance"])) for reference in references)


def judge_count(claim: Claim, options: Options) -> float:
    """Give 1 when the answer names exactly one number, in digits or words, and it is the reference."""
    reference = counted(reference_text(claim))
    if reference is None:
        raise Unscorable(f"reference {str(claim.reference)[:80]!r} is not one whole number")
    return float(counted(claim.answer or "") == reference)


def same_quantity(one: str, other: str) -> bool:
    """Tell whether two texts are the same number, of units that do not differ."""
    (left, unit, percent), (right, other_unit, other_percent) = _read(one), _read(other)
    factor = conversion(unit, other_unit)
    return left is not None and factor is not None and percent == other_percent and left * factor == right


def _read(text: str) -> tuple[Fraction | None, Unit, bool]:
    if len(text) > _MAX_CHARACTERS:
        return None, NONE, False
    side = read(text)
    plain = None if side.words else read_plain(side) or _scientific(side.formula)
    return (plain.value if plain else None), side.unit, side.percent


def _scientific(formula: str) -> PlainNumber | None:
    match = _SCIENTIFIC.fullmatch(formula.strip())
    if match is None:
        return None
    if match[4] is not None:
        return PlainNumber((-1 if match[3] == "-" else 1) * Fraction(10) ** int(match[4]), False)
    return PlainNumber(Fraction(match[1]) * Fraction(10) ** int(match[2]), True)


def _relaxed(answer: str | None, reference: str, tolerance: Fraction) -> float:
    if answer is None:
        return 0.0
    expected, found = _chart_number(reference), _chart_number(answer)
    signs = [set(text) & set(_CURRENCY_SIGNS) for text in (reference, answer)]
    if all(signs) and signs[0] != signs[1]:
        return 0.0
    if expected and found is not None:
        return float(abs(found - expected) <= tolerance * abs(expected))
    if expected == 0 and found is not None:  # no relative distance to zero: the official script compares the texts
        return float(found == 0)
    return float(" ".join(answer.split()).casefold() == " ".join(reference.split()).casefold())


def _chart_number(text: str) -> Fraction | None:
    """Read a number as the official script does: 50% is 0.5. Grouped digits and a currency sign are read as well."""
    text = text.strip().replace("\\%", "%").strip(_CURRENCY_SIGNS + " ")
    share = text.endswith("%")
    text = text.rstrip("% ")
    if re.fullmatch(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", text, re.ASCII):
        text = text.replace(",", "")
    if not re.fullmatch(
        r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?", text, re.ASCII
    ):
        return None
    return Fraction(text.replace(".e", "e").replace(".E", "E").rstrip(".")) / (100 if share else 1)


NUMERIC = Verifier(
    judge_numeric,
    "1 when the answer is a number within max(absolute, relative * |reference|) of the reference, else 0",
    "numpy.isclose with one of the two tolerances (Python's math.isclose with the reference as scale)",
    {
        "absolute": Option(0.0, "largest allowed distance", at_least=0.0),
        "relative": Option(1e-6, "largest allowed distance as a share of the reference", at_least=0.0, at_most=1.0),
    },
)
RELAXED = Verifier(
    judge_relaxed,
    "1 when a number lies within 5 % of the reference, or another text equals it but for case, else 0",
    "relaxed accuracy of ChartQA (Masry et al. 2022, after Methani et al. 2020), as in Pix2Struct's evaluation",
    {"tolerance": Option(0.05, "largest allowed distance as a share of the reference", at_least=0.0, at_most=1.0)},
)
COUNT = Verifier(
    judge_count,
    "1 when exactly one whole number is named, in digits or words, and it is the reference, else 0",
    "exact match of counts, as CLEVR and SuperCLEVR rewards use it; several numbers name none",
)
