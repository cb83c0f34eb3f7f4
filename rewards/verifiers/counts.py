"""The one whole number that a text names, for `count`: in digits, in English or in Chinese words."""

import re

from rewards.verifiers.verifier import only

_COUNT = re.compile(
    r"(?<![\w.,])[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,18})(?:\.0{1,9})?(?![\w,]{0,20}[0-9])", re.ASCII
)
_WORDS: list[str] = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_COUNT_WORD = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[ -](?P<one>{'|'.join(_WORDS[1:10])}))?|(?P<word>{'|'.join(_WORDS)}))\b",
    re.IGNORECASE,
)
_NO_COUNT = re.compile(
    r"[⁰-₎²³¹½-¾⅐-⅞√∛∜±≥≤<>≈~≠≢¬]|[!#№]\s*[0-9]|[0-9]\s*\+(?!\s*[0-9])"
    r"|[0-9][A-Za-z]|[0-9]-[A-Za-z]|[0-9]\s*[?？]|[0-9]\s*[多几余双对]|[十百千]多|^[^'‘’]*[0-9]['’′]"
    r"|\b(?:pairs?|couples?|trios?|twins|triplets|scores|twice|thrice|doubled?|tripled?|another)\b"
    r"|\b(?:hundreds?|thousands?|[mb]illions?|dozens?|lakhs?|crores?|gross|halves|half|quarters?|thirds?|fourths?|fifths?"
    r"|[a-z]+(?:tenth|hundredth|thousandth)s?|tenths?|hundredths?|squared|cubed|root|plus|times|percent)\b"
    r"|\b(?:minus|negative|about|around|approximately|roughly|nearly|almost|over|under|above|below|exceeding)\s+\w"
    r"|\b(?:more|less|fewer|greater|other)\s+than\b|\bat\s+(?:least|most)\b|\bup\s+to\b|\bor\s+(?:more|less|fewer|so)\b"
    r"|\b(?:anything|all|everything)\s+but\b|\bexcept\b"
    r"|\\(?!(?:text|textbf|textit|mathrm|mathbf|mathit|boldsymbol|boxed|emph|displaystyle|large|Large|quad|rm|bf)(?![a-zA-Z]))[a-zA-Z]"
    r"|[0-9%]\s*\\?%|❌|✗|✘|至少|至多|不到|超过|大约|大概|左右|以上|以下|不是|没有|半",
    re.IGNORECASE,
)
"""Words and signs that make a number another one, or a bound: more than 3, two and a half, 3 lakh, 3rd, 3+. LaTeX
commands other than those of style do so too."""
_SPOKEN = "|".join([*_WORDS, *_TENS])
_DENIED = re.compile(
    rf"(?:\b(?:not|never|cannot|no|non|neither|nor|without|excluding|besides)|n['’]t)(?:\s+|-)(?:[a-z]+\s+){{0,3}}(?:[0-9]|{_SPOKEN})"
    rf"|(?:[0-9]|\b(?:{_SPOKEN}))[\s,(]+(?:is|are|was|were|would\s+be)?\s*(?:not|n['’]t|wrong|incorrect|false|untrue"
    r"|excluded|rejected|ruled\s+out|impossible|more)\b"
    rf"|\b(?:{_SPOKEN})\s*[?？]|\b(?:{_SPOKEN})-(?!(?:{'|'.join(_WORDS[1:10])})\b)[a-z]",
    re.IGNORECASE,
)
_CALCULATION = re.compile(
    r"\^|_|\\(?:[dt]?frac|sqrt|binom|times|cdot|div)\b|[0-9}]\s*[-–+*/×÷=]\s*[0-9\\{]|^\W*[0-9]+!+\W*$", re.ASCII
)
"""A calculation names no count: 2^2 and 3+3 are not 2 and 3."""
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000}
_NUMERAL = "零〇一二两三四五六七八九十百千万亿"
_CHINESE_COUNT = re.compile(
    rf"(?<![{_NUMERAL}第])[{_NUMERAL}]{{1,9}}(?=[个只条张本辆人名件支棵头座朵颗匹把块位种次根片枚架艘栋间扇盏]|\s*[。.]?$)"
)


def counted(text: str) -> int | None:
    """Return the one number that a text names; None where it names none or several, a part, a bound or a denial."""
    text = " ".join(text.split())
    if _NO_COUNT.search(text) or _DENIED.search(text) or _CALCULATION.search(text):
        return None
    if re.search(r"[0-9]\.[0-9]*[1-9]", text):
        return None
    found: list[int | None] = [int(number[0].replace(",", "").partition(".")[0]) for number in _COUNT.finditer(text)]
    found += [_spoken(word) for word in _COUNT_WORD.finditer(text)]
    found += [_chinese(number[0]) for number in _CHINESE_COUNT.finditer(text)]
    return only(found)


def _spoken(word: re.Match) -> int:
    if word["word"]:
        return _WORDS.index(word["word"].lower())
    ones = _WORDS.index(word["one"].lower()) if word["one"] else 0
    return 10 * (_TENS.index(word["tens"].lower()) + 2) + ones


def _chinese(numeral: str) -> int | None:
    """Return the value of a numeral below 10,000; None for others and for digits in a row: 三四个 means 3 or 4."""
    total, digit, smallest = 0, None, 10_000
    for character in numeral:
        if character in _CHINESE_UNITS:
            unit = _CHINESE_UNITS[character]
            if unit >= smallest:
                return None
            total, digit, smallest = total + unit * (1 if digit is None else digit), None, unit
        elif character in _CHINESE and digit in (None, 0):
            digit = _CHINESE[character]
        else:
            return None
    return total + (digit or 0)
