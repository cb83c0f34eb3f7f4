"""Verifiers of one number: `numeric`, `relaxed`, `count`."""

import re
from fractions import Fraction

from rewards.mathematics.plain_numbers import PlainNumber, read_plain
from rewards.mathematics.text import read
from rewards.mathematics.units import same_unit
from rewards.result import Claim, Unscorable
from rewards.verifiers.verifier import Option, Options, Verifier, only, reference_text, reference_texts

_MAX_CHARACTERS = 400
_SCIENTIFIC = re.compile(
    r"([+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^\s*)\{?\s*([+-]?[0-9]{1,3})\s*\}?"
)
_COUNT = re.compile(r"(?<![\w.,])[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,18})(?:\.0{1,9})?(?![\w,]*[0-9])", re.ASCII)
_WORDS: list[str] = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九十")} | {"两": 2}
_COUNT_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_LARGER_WORD = re.compile(
    r"\b(?:thirty|forty|fifty|sixty|seventy|eighty|ninety|hundreds?|thousands?|[mb]illions?|dozens?)\b|[0-9][km]\b",
    re.IGNORECASE,
)
_CALCULATION = re.compile(
    r"\^|\\(?:[dt]?frac|sqrt|binom|times|cdot|div)\b|[0-9}]\s*[-+*/×÷=]\s*[0-9\\{]|^\W*[0-9]+!+\W*$", re.ASCII
)
"""A calculation names no count: 2^2 and 3+3 are not 2 and 3."""
_CHINESE_COUNT = re.compile(r"[零一二两三四五六七八九十](?=[个只条张本辆人名件支棵头座朵颗匹把块])")


def read_number(text: str) -> Fraction | None:
    """Read a whole text as a number: integer, decimal, fraction, 1,000, 1.5e-3, 2 \\times 10^3, units behind it."""
    return _read(text)[0]


def judge_numeric(claim: Claim, options: Options) -> float:
    """Give 1 within the absolute tolerance, or within the relative one of the reference, as `math.isclose` does."""
    reference, unit, percent = _read(reference_text(claim))
    if reference is None:
        raise Unscorable(f"reference {str(claim.reference)[:80]!r} is not a number")
    answer, answer_unit, answer_percent = _read(claim.answer or "")
    if answer is None or not same_unit(unit, answer_unit):
        return 0.0
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
    reference = _counted(reference_text(claim))
    if reference is None:
        raise Unscorable(f"reference {str(claim.reference)[:80]!r} is not one whole number")
    return float(_counted(claim.answer or "") == reference)


def _read(text: str) -> tuple[Fraction | None, str, bool]:
    if len(text) > _MAX_CHARACTERS:
        return None, "", False
    side = read(text)
    plain = read_plain(side) or _scientific(side.formula)
    return (plain.value if plain else None), side.unit, side.percent


def _scientific(formula: str) -> PlainNumber | None:
    match = _SCIENTIFIC.fullmatch(formula.strip())
    return PlainNumber(Fraction(match[1]) * Fraction(10) ** int(match[2]), True) if match else None


def _relaxed(answer: str | None, reference: str, tolerance: Fraction) -> float:
    if answer is None:
        return 0.0
    expected, found = _chart_number(reference), _chart_number(answer)
    if expected and found is not None:
        return float(abs(found - expected) <= tolerance * abs(expected))
    if expected == 0 and found is not None:  # no relative distance to zero: the official script compares the texts
        return float(found == 0)
    return float(" ".join(answer.split()).casefold() == " ".join(reference.split()).casefold())


def _chart_number(text: str) -> Fraction | None:
    """Read a number as the official script does: 50% is 0.5. Grouped digits and a currency sign are read as well."""
    text = text.strip().replace("\\%", "%").strip("$€£ ")
    share = text.endswith("%")
    text = text.rstrip("% ")
    if re.fullmatch(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", text, re.ASCII):
        text = text.replace(",", "")
    if not re.fullmatch(
        r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?", text, re.ASCII
    ):
        return None
    return Fraction(text.replace(".e", "e").replace(".E", "E").rstrip(".")) / (100 if share else 1)


def _counted(text: str) -> int | None:
    found = [int(float(number[0].replace(",", ""))) for number in _COUNT.finditer(text)]
    found += [_WORDS.index(word[0].lower()) for word in _COUNT_WORD.finditer(text)]
    found += [_CHINESE[word[0]] for word in _CHINESE_COUNT.finditer(text)]
    if not found and text.strip(" 。.") in _CHINESE:
        found = [_CHINESE[text.strip(" 。.")]]
    decimals = re.search(r"[0-9]\.[0-9]*[1-9]", text)
    return None if decimals or _CALCULATION.search(text) or _LARGER_WORD.search(text) else only(found)


NUMERIC = Verifier(
    judge_numeric,
    "1 when the answer is a number within max(absolute, relative * |reference|) of the reference, else 0",
    "numpy.isclose with one of the two tolerances (Python's math.isclose with the reference as scale)",
    {
        "absolute": Option(0.0, "largest allowed distance", at_least=0.0),
        "relative": Option(1e-6, "largest allowed distance as a share of the reference", at_least=0.0),
    },
)
RELAXED = Verifier(
    judge_relaxed,
    "1 when a number lies within 5 % of the reference, or another text equals it but for case, else 0",
    "relaxed accuracy of ChartQA (Masry et al. 2022, after Methani et al. 2020), as in Pix2Struct's evaluation",
    {"tolerance": Option(0.05, "largest allowed distance as a share of the reference", at_least=0.0)},
)
COUNT = Verifier(
    judge_count,
    "1 when exactly one whole number is named, in digits or words, and it is the reference, else 0",
    "exact match of counts, as CLEVR and SuperCLEVR rewards use it; several numbers name none",
)
