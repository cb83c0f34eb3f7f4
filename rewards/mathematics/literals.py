"""Answers that look like arithmetic and are none: dates, clock times, ranges, and relations of geometry.

Each has one spelling, as words, and equals only itself: 2021-05-03 is no difference and 0-5 is not -5.
"""

import re
from collections.abc import Callable

_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_CLOCK = re.compile(
    r"([0-9]{1,2}):([0-5][0-9])\s*(?:(?:\\text\s*\{\s*)?([ap])\.?\s?m\.?\s*\}?)?"
    r"|([0-9]{1,2})\s*(?:\\text\s*\{\s*)?([ap])\.?\s?m\.?\s*\}?",
    re.IGNORECASE,
)
_ISO_DATE = re.compile(r"([0-9]{4})\s*([-/.])\s*([0-9]{1,2})\s*\2\s*([0-9]{1,2})")
_CHINESE_DATE = re.compile(
    r"(?:([0-9]{2,4})\s*年\s*)?([0-9]{1,2})\s*月\s*([0-9]{1,2})\s*[日号]|([0-9]{4})\s*年\s*([0-9]{1,2})\s*月"
)
_SLASHES = re.compile(r"([0-9]{1,4})\s*([-/])\s*([0-9]{1,4})\s*\2\s*([0-9]{1,4})")
_RANGE = re.compile(rf"({_NUMBER})\s*(?:--?|(?:\\text\s*\{{\s*)?\bto\b\s*\}}?|至|到)\s*({_NUMBER})")
_SIDE = (
    r"(?:\\triangle\s*|\\angle\s*)?"
    r"(?:\\text\s*\{\s*[A-Za-z ]+\s*\}|\\overline\s*\{[A-Z]{1,4}\}|[A-Za-z]{1,5}(?:_\{?[0-9]\}?)?)"
)
_RELATION = re.compile(rf"({_SIDE})\s*(\\parallel|\\perp|\\sim|\\cong|∥|⊥|//|≅|∽)\s*({_SIDE})")
_RELATIONS = {"∥": "\\parallel", "//": "\\parallel", "⊥": "\\perp", "≅": "\\cong", "∽": "\\sim"}
_WITHOUT_ORDER = ("\\parallel", "\\perp")


def as_literal(text: str) -> str:
    """Return the one spelling of a literal, empty for any other text."""
    if len(text) > 100:
        return ""
    for pattern, spell in _SPELLINGS:
        match = pattern.fullmatch(text.strip())
        if match:
            return spell(match)
    return ""


def _clock(match: re.Match[str]) -> str:
    hour, minute, half = match[1] or match[4], match[2] or "00", (match[3] or match[5] or "").lower()
    return f"clock {int(hour)}:{minute} {half}".strip()


def _date(match: re.Match[str]) -> str:
    return f"date {int(match[1])} {int(match[3])} {int(match[4])}"


def _chinese_date(match: re.Match[str]) -> str:
    if match[4]:
        return f"date {int(match[4])} {int(match[5])}"
    return " ".join(["date", *(str(int(part)) for part in match.group(1, 2, 3) if part)])


def _slashed(match: re.Match[str]) -> str:
    return "numbers " + match[2].join(str(int(part)) for part in match.group(1, 3, 4))


def _range(match: re.Match[str]) -> str:
    return f"range {_trimmed(match[1])} {_trimmed(match[2])}"


def _trimmed(number: str) -> str:
    whole, _, places = number.partition(".")
    return f"{int(whole)}.{places.rstrip('0')}".rstrip(".")


def _relation(match: re.Match[str]) -> str:
    sign = _RELATIONS.get(match[2], match[2])
    sides = ["".join(re.sub(r"\\(?:text|overline)", "", side).split()).strip("{}") for side in match.group(1, 3)]
    if sign in _WITHOUT_ORDER:
        sides = sorted("".join(sorted(side)) if len(side) == 2 and side.isalpha() else side for side in sides)
    return f"{sides[0]} {sign} {sides[1]}"


_SPELLINGS: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (_CLOCK, _clock),
    (_ISO_DATE, _date),
    (_CHINESE_DATE, _chinese_date),
    (_SLASHES, _slashed),
    (_RANGE, _range),
    (_RELATION, _relation),
]
