"""Units, nouns and scale words behind a number: which are the same, which may be dropped, which are none.

A known unit (cm, km/h, dollar) is converted: 100 cm is 1 m. A noun in the plural (apples) counts things: it may be left
out, but apples are no oranges. Any other word (wrong, at least) may stand behind both numbers or behind the reference.
Words that change a number (tenths, lakh, squared) are no units.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rewards.mathematics.unit_table import ALIKE, CHINESE, KNOWN


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOT_UNITS = _words(
    "and or to not than less more plus minus over squared cubed if for when where mod divided through no nor "
    "between the is are was were of from with but pi sqrt sin cos tan cot sec csc log exp max min lim undefined "
    "infinity only each none half quarters halves "
    "tens hundreds thousands millions billions trillions dozens scores lakhs crores percents negatives opposites "
    "reciprocals inverses multiples factorials powers wrong incorrect false below above under "
    "others unless versus perhaps always yes does equals exceeds means its this thus as has ones "
    "ten wholes "
    "approximately about around least most exactly or-so fewer greater larger smaller bigger "
)
_FRACTION_WORD = re.compile(
    r"\w*(?:third|four?th|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|teenth|tieth|dredth|sandth|lionth)s?"
)
_EXTENTS = re.compile(r"(?<=\w)\s+(?:old|long|tall|wide|high|deep|apart|away|in (?:length|height|width|area|total))$")
_PLURALS = _words("people children men women feet geese mice fish sheep deer dice units unit times pm am")
_SCALES = {
    **{"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8},
    **{"bn": 9, "lakh": 5, "lac": 5, "crore": 7, "tenth": -1, "hundredth": -2, "thousandth": -3, "millionth": -6},
}
_FACTORS = {"dozen": "12", "gross": "144"}
_SCALE_WORDS = "|".join(sorted([*_SCALES, *_FACTORS], key=len, reverse=True))
_SCALE = re.compile(
    rf"(?<=[0-9])\s*(?:\\text\s*\{{\s*({_SCALE_WORDS})s?\s*\}}|(\\text\s*\{{)\s*({_SCALE_WORDS})s?(?![a-zA-Z])"
    rf"|({_SCALE_WORDS})s?(?![a-zA-Z]))"
)
_POWER = r"(?:\s*\^\s*\{?\s*(-?[1-9])\s*\}?)?"
_BEHIND = r"(?:(?<=[0-9}})])|(?<=\\pi)|(?<=\\pi\s))"
_TEXT_UNIT = re.compile(rf"(?<=[0-9a-zA-Z}})!\]])\s*\\text\s*\{{([^{{}}$]*)\}}{_POWER}\s*$")
_ONE = rf"(?:[µ°¢a-zA-ZΩ]{{1,20}}{_POWER})"
_BARE_UNIT = re.compile(rf"{_BEHIND}(\s*)({_ONE}(?:\s*/\s*{_ONE}|(?:\s+|\s*\\cdot\s*){_ONE}){{0,3}})\s*$")
_QUOTIENT = re.compile(rf"{_BEHIND}\s*\\frac\s*\{{\s*([^{{}}]{{1,12}})\s*\}}\s*\{{\s*([^{{}}]{{1,12}})\s*\}}\s*$")
_PROSE_UNIT = re.compile(r"(?<=[0-9}])\s+([a-zA-Z]{3,}(?:[ -][a-zA-Z]{2,}){0,4})" + _POWER + r"\s*$")
_MEASURE_WORDS = (
    "个名人只支本张条件头棵辆种倍页朵套双对袋箱盒户家组位层台把枝道题圈根粒片杯瓶篇幅座间份行列排步分号点次"
)
_CHINESE_UNIT = re.compile(
    rf"(?<=[0-9}}\)ia-z])\s*(?:((?:平方|立方)?(?:{'|'.join(CHINESE)})(?:/\w{{1,3}})?)|[{_MEASURE_WORDS}]((?:(?![或和与且])[\u4e00-\u9fff]){{0,4}}))\s*$"
)
_MODULUS = re.compile(r"\s*\(?\s*\\p?mod\s*\{?\s*([0-9]+)\s*\}?\s*\)?\s*$")
_SQUARE = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3, "cu.": 3, "平方": 2, "立方": 3}
_FACTOR = re.compile(r"([^\W\d_°µΩ¢]+(?:-[^\W\d_]+)*|°[CF]?|[µ]?[A-Za-zΩ]+|¢)\s*(?:\^?\s*\{?\s*(-?[1-9])\s*\}?)?")
# Alone behind a number these letters are variables ("3t") unless a space or \text{} sets them off, or in no case.
_NEVER_BARE = _words("t n j w v a k h l d C F B T H")
_GLUED = _words("mm cm dm km mg kg ml mL in ft yd mi lb lbs oz min hr hrs sec Hz kHz MHz GHz kPa kW kWh mph kmh")
_GLUED_IN_REFERENCE = frozenset("msgLNJWV")
_COMPOUND = re.compile(
    r"(?:[0-9]+(?:\.[0-9]+)?)\s*[^\W\d_]{1,12}(?:[\s,]*(?:and)?\s*[0-9]+(?:\.[0-9]+)?\s*[^\W\d_]{1,12}){1,3}"
)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]{1,12})")
_SHORT_SQUARE = re.compile(r"\b(sq|cu)\.\s*")


@dataclass(frozen=True)
class Unit:
    """A unit, noun or word behind a number, as powers of dimensions in the order of their names; empty for none."""

    powers: tuple[tuple[str, int], ...] = ()
    size: Fraction = Fraction(1)
    only_in_reference: bool = False  # a word that is no unit and no plural: it may be left out, but not added

    def __bool__(self) -> bool:
        return bool(self.powers)


NONE = Unit()


def conversion(answer: Unit, reference: Unit) -> Fraction | None:
    """Return by what the answer's number is to be multiplied, None for units that differ."""
    if not reference:
        return None if answer.only_in_reference or answer.powers[:1] == (("mod", 0),) else Fraction(1)
    if not answer:
        return Fraction(1)
    if answer.powers == reference.powers:
        return answer.size / reference.size
    ours, theirs = answer.powers, reference.powers
    if (("unit", 1),) in (ours, theirs):  # "5 units" may be any
        return Fraction(1)
    for powers, others in ((ours, theirs), (theirs, ours)):
        if len(powers) == 1 and powers[0][0] == "unit" and sum(abs(power) for _, power in others) == powers[0][1]:
            return Fraction(1)
    if len(ours) == len(theirs) and all(_alike(*pair) for pair in zip(ours, theirs, strict=True)):
        return answer.size / reference.size
    return None


def product(one: Unit, other: Unit) -> Unit:
    """Return the unit of a product: dollars and "per hour"; a repeated unit ($5 USD) counts once."""
    if one and other.only_in_reference:
        return Unit(one.powers, one.size, only_in_reference=True)
    if not one or not other or one == other:
        return one or other
    if any(power < 0 for _, power in other.powers):
        powers = dict(one.powers)
        for name, power in other.powers:
            powers[name] = powers.get(name, 0) + power
        return _unit(powers, one.size * other.size)
    return one


def split_unit(text: str) -> tuple[str, Unit]:
    """Split into (formula, unit behind it). Scale words become factors, and 2 h 30 min a number of hours."""
    modulus = _MODULUS.search(text)
    if modulus and "=" not in text and "\\equiv" not in text:
        return text[: modulus.start()].strip(), Unit((("mod", int(modulus[1][:30])),))
    text = _SCALE.sub(_scaled, _SHORT_SQUARE.sub(r"\1 ", text))
    for split in (
        _split_compound,
        _split_text_unit,
        _split_quotient,
        _split_bare_unit,
        _split_prose_unit,
        _split_chinese,
    ):
        found = split(text)
        if found is not None:
            formula, unit = found[0].strip(), found[1]
            counts_one = unit.only_in_reference and formula in ("1", "-1")
            return formula, Unit(unit.powers, unit.size) if counts_one else unit
    return text, NONE


def letter_unit(formula: str, other: str, other_unit: Unit, is_reference: bool) -> tuple[str, Unit] | None:
    """Read the letter of 15m or 5 h as a unit where the other side says so, else it is a variable; None for that.

    The other side has this unit, or the text is the reference and the other side the same number without any.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z])", formula)
    unit = parse_unit(match[2], exact=True) if match else None
    if match is None or unit is None:
        return None
    left_out = is_reference and not other_unit and match[2] in _GLUED_IN_REFERENCE and match[1] == other
    return (match[1], unit) if left_out or unit.powers == other_unit.powers else None


def parse_unit(words: str, exact: bool = False) -> Unit | None:
    """Read "m/s^2", "kg m s^{-2}", "square feet", "dollars per hour", "apples"; None for what is no unit."""
    words = _EXTENTS.sub("", words.strip(" .,()"))
    words = words.replace("(", " ").replace(")", " ") if "/" in words else words
    words = " ".join(words.replace("\\cdot", " ").replace("·", " ").replace("*", " ").replace("\\", "").split()).strip(
        " .,()"
    )
    top, *bottom = re.split(r"\s*/\s*|\bper\b|每", words) if words else [""]
    if len(bottom) > 1 or (bottom and not bottom[0].strip()):
        return None
    parts = [_parse_product(part.strip(), exact) if part.strip() else NONE for part in (top, *bottom)]
    if any(part is None for part in parts) or not any(parts):
        return None
    powers = dict(parts[0].powers if parts[0] else ())
    size, odd = (parts[0] or NONE).size, any(part.only_in_reference for part in parts if part)
    if len(parts) > 1 and parts[1]:
        for name, power in parts[1].powers:
            powers[name] = powers.get(name, 0) - power
        size /= parts[1].size
    return _unit(powers, size, odd)


def _parse_product(words: str, exact: bool) -> Unit | None:
    known = _known_product(words, exact)
    if known is not None:
        return known
    if exact or not re.fullmatch(r"[A-Za-z\u4e00-\u9fff]+(?:[ '-][A-Za-z]+)*", words):
        return None
    several = words.lower().split()
    if (
        any(word in _NOT_UNITS or _FRACTION_WORD.fullmatch(word) for word in re.split(r"[ -]", words.lower()))
        or len(several[-1]) < 2
        or len(several) > 5
    ):
        return None
    last = several[-1]
    plural = last in _PLURALS or (last.endswith("s") and not last.endswith("ss")) or not last.isascii()
    return Unit(((_singular(last), 1),), only_in_reference=not plural)


def _known_product(words: str, exact: bool) -> Unit | None:
    powers: dict[str, int] = {}
    size, position, pending = Fraction(1), 0, 1
    for prefix in ("平方", "立方"):
        if words.startswith(prefix):
            pending, words = _SQUARE[prefix], words.removeprefix(prefix)
    tokens = words.split()
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token.lower() in _SQUARE:
            pending = _SQUARE[token.lower()]
            continue
        match = _FACTOR.fullmatch(token)
        definition = _lookup(match[1], exact) if match else None
        if match is None or definition is None:
            return None
        power = int(match[2] or 1) * pending
        if position < len(tokens) and tokens[position].lower() in ("squared", "cubed"):
            power, position = power * (2 if tokens[position].lower() == "squared" else 3), position + 1
        for name, exponent in definition[0].items():
            powers[name] = powers.get(name, 0) + exponent * power
        size, pending = size * definition[1] ** power, 1
    return _unit(powers, size) if powers and pending == 1 else None


def _lookup(name: str, exact: bool) -> tuple[dict[str, int], Fraction] | None:
    if name in ("unit", "units"):
        return {"unit": 1}, Fraction(1)
    return KNOWN.get(name) or (None if exact else KNOWN.get(name.lower()) if len(name) > 1 else None)


def _unit(powers: dict[str, int], size: Fraction, only_in_reference: bool = False) -> Unit:
    return Unit(tuple(sorted((name, power) for name, power in powers.items() if power)), size, only_in_reference)


def _alike(one: tuple[str, int], other: tuple[str, int]) -> bool:
    (name, power), (other_name, other_power) = one, other
    same = name == other_name or other_name in ALIKE.get(name, ()) or name in ALIKE.get(other_name, ())
    return same and power == other_power


def _singular(word: str) -> str:
    return word.removesuffix("s") if word.endswith("s") else word


def _scaled(scale: re.Match[str]) -> str:
    word = scale[1] or scale[3] or scale[4]
    factor = _FACTORS.get(word) or f"10^{{{_SCALES[word]}}}"
    return f" \\cdot {factor}{scale[2] or ''}"


def _split_compound(text: str) -> tuple[str, Unit] | None:
    """Read 2 h 30 min, 5 ft 3 in: several parts of one dimension, each unit smaller than the one before."""
    flat = " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).split())
    if not _COMPOUND.fullmatch(flat):
        return None
    parts = [(Fraction(number), parse_unit(name, exact=True)) for number, name in _PART.findall(flat)]
    units = [unit for _, unit in parts if unit]
    falling = all(one.powers == next_one.powers and one.size > next_one.size for one, next_one in pairwise(units))
    if len(units) < len(parts) or not falling:
        return None
    total = sum((number * unit.size for number, unit in parts if unit), Fraction(0)) / units[0].size
    return f"\\frac{{{total.numerator}}}{{{total.denominator}}}", units[0]


def _split_text_unit(text: str) -> tuple[str, Unit] | None:
    match = _TEXT_UNIT.search(text)
    if match is None or match[1].strip(" .,()") in ("", "i", "e", "x", "y", "z"):
        return None
    words = match[1].strip() + (f"^{match[2]}" if match[2] else "")
    unit = parse_unit(words)
    if unit is None and match[2]:
        noun = parse_unit(match[1])
        unit = Unit(((noun.powers[0][0], int(match[2])),), only_in_reference=True) if noun else None
    return (text[: match.start()], unit) if unit else None


def _split_quotient(text: str) -> tuple[str, Unit] | None:
    match = _QUOTIENT.search(text)
    unit = parse_unit(f"{match[1]}/{match[2]}", exact=True) if match else None
    physical = (
        match and unit and (len(match[1].strip()) > 1 or len(match[2].strip()) > 1 or match[2].strip() in ("s", "h"))
    )
    return (text[: match.start()], unit) if match and unit and physical else None


def _split_bare_unit(text: str) -> tuple[str, Unit] | None:
    match = _BARE_UNIT.search(text)
    if match is None:
        return None
    written = match[2].strip()
    unit = parse_unit(written, exact=True)
    name = re.match(r"[^\s^/\\]+", written)
    alone = name is not None and re.fullmatch(rf"{re.escape(name[0])}{_POWER}", written) is not None
    if unit is None or name is None:
        return None
    letter, set_off = len(name[0]) == 1 and name[0].isascii(), bool(match[1])
    if alone and letter and (name[0] in _NEVER_BARE or not set_off or text[: match.start()].rstrip().endswith("\\pi")):
        return None
    if alone and not letter and not set_off and name[0] not in _GLUED and len(name[0]) <= 3 and name[0].isascii():
        return None
    is_product = not alone and "/" not in written
    if is_product and not re.search(r"^[A-Z]|[^\W\d_]{2}|\^\s*\{?\s*-", written):
        return None
    return text[: match.start()], unit


def _split_prose_unit(text: str) -> tuple[str, Unit] | None:
    match = _PROSE_UNIT.search(text)
    unit = parse_unit(match[1] + (f"^{match[2]}" if match[2] else "")) if match else None
    return (text[: match.start()], unit) if match and unit else None


def _split_chinese(text: str) -> tuple[str, Unit] | None:
    match = _CHINESE_UNIT.search(text)
    if match is None:
        return None
    if match[1]:
        unit = parse_unit(match[1])
        return (text[: match.start()], unit) if unit else None
    measure = match[0].strip()[0]
    noun = match[2] or (measure if measure in "倍分号点" else "")
    return text[: match.start()], Unit(((noun, 1),)) if noun else NONE
