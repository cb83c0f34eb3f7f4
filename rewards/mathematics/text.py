"""Mathematical answers as text: one spelling for what authors and models write in many, units split off.

All rules here are textual and linear; nothing is evaluated. `rewards.mathematics.answer` compares what comes out.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from rewards.answers import complete_boxes
from rewards.mathematics.literals import as_literal
from rewards.mathematics.units import NONE, Unit, parse_unit, product, split_unit

_CHARACTERS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
        **{"½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}"},
        **dict.fromkeys("−–—‐‑‒﹣", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
        **{"×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "∗": "*", "±": "\\pm ", "∕": "/", "⁄": "/"},
        **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "⩽": "\\le ", "⩾": "\\ge "},
        **{
            "π": "\\pi ",
            "∞": "\\infty ",
            "∪": "\\cup ",
            "∩": "\\cap ",
            "∈": "\\in ",
            "∅": "\\emptyset ",
            "°": "^\\circ ",
            "º": "^\\circ ",
        },
        **{
            "℃": "^\\circ C",
            "℉": "^\\circ F",
            "‰": "\\cdot 10^{-3}",
            "∶": ":",
            "″": "''",
            "\u2126": "Ω",
            "μ": "µ",
            "∠": "\\angle ",
            "、": ",",
            "。": ".",
            "【": "[",
            "】": "]",
            "θ": "\\theta ",
            "α": "\\alpha ",
        },
        **{"β": "\\beta ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "′": "'", "“": '"', "”": '"', "’": "'"},
    }
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_LEVELS = str.maketrans(_RAISED + _LOWERED, "0123456789+-n" * 2)
_RAISED_RUN, _LOWERED_RUN = re.compile(f"[{_RAISED}]+"), re.compile(f"[{_LOWERED}]+")
_OHM = re.compile(r"(?<=[0-9}\s,;kM])\\Omega(?=\s*\}?\$?\s*$)")
_ROOT_SIGN = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|([0-9.]+|[a-zA-Z]))")
_SPACING = re.compile(r"\\(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|limits|nolimits|hfill)(?![a-zA-Z])")
_THIN_SPACE = re.compile(r"(?<!\\)\\[,;: >]")
_NEGATIVE_SPACE = re.compile(r"\\!\s*")
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*(\\[{}|]|[()\[\]|.<>]|(?=\\))?")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_ROMAN = re.compile(r"\{\s*\\rm\s+([^{}\\]*)\}|(?<=[0-9}])\s*\\operatorname\s*\{([a-zA-Z/]{1,8})\}(?=\s*$)")
_STYLE = re.compile(
    r"\\(?:textnormal|textbf|textit|textrm|textsf|texttt|mbox|hbox|mathrm|mathbf|mathit|bm|boldsymbol|underline)\s*\{"
)
_CONNECTIVE = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*(?:,\s*)?(?:and|or|或|和)\s*,?\s*\}|(?<![a-zA-Z\\{])(?:and|or)(?![a-zA-Z])|(?<=[\w})\]])\s*[或和且与]\s*(?:者)?)\s*,?\s*"
)
_LEAD = re.compile(
    r"(?:the\s+)?(?:final\s+)?(?:answer|result|value|答案|结果)\s*(?:is|are|=|:|是|为)\s*:?\s*"
    r"|(?:\\text\s*\{\s*)?(?:\\approx|approximately|approx\.?|about|roughly|约为|大约|约)\s*\}?\s*|(?:答|故|共|∴|\\therefore)\s*[:：]?\s*",
    re.IGNORECASE,
)
_SAID_BEFORE = re.compile(r"\\text\s*\{[^{}]*?(?:\b(?:is|are|equals)|[:=])\s*\}\s*(?=\S)", re.IGNORECASE)
_CHANGES_NUMBER = re.compile(
    r"\b(?:not|never|no|least|most|more|less|fewer|than|below|above|under|over|minus|negative|half|twice|double|wrong)\b|n['’]t\b",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")
_INDIAN = re.compile(r"[+-]?[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?")
_CONTINENTAL = re.compile(
    r"[+-]?[1-9][0-9]{0,2}(?:(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|\.[0-9]{3},[0-9]+|(?:'[0-9]{3})+(?:[.,][0-9]+)?)"
)
_GROUPED_IN_TEX = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|\\,)[0-9]{3})+(?![0-9])")
_SPACED_GROUPS = re.compile(r"[+-]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_SPACED_LIST = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?: [0-9]+(?:\.[0-9]+)?)+")
_PERCENT = re.compile(r"\s*(?:\\text\s*\{\s*(?:%|\\%|percent|pct)\s*\}|\\?%|\b(?:percent(?:age)?|per\s+cent|pct)\b)")
_CURRENCY = re.compile(
    r"(?:\\text\s*\{\s*)?(?:(?P<dollar>(?:(?P<land>US|HK|NT|A|C|S)\s*)?\\?\$|\bUSD\b)|(?P<euro>€|\\euro|\bEUR\b)"
    r"|(?P<sterling>£|\\pounds|\bGBP\b)|(?P<yen>[¥￥]|\\yen)|(?P<rupee>₹|\bRs\b\.?|\bINR\b)|(?P<won>₩)|(?P<yuan>\b(?:CNY|RMB)\b))"
    r"(?:\s*\})?",
    re.IGNORECASE,
)
_CURRENCIES = {
    "dollar": parse_unit("dollar"), "euro": parse_unit("euro"), "sterling": parse_unit("GBP"), "yen": Unit((("¥", 1),)),
    "rupee": parse_unit("rupee"), "won": parse_unit("won"), "yuan": parse_unit("yuan"),
}  # fmt: skip
_ANGLE = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc)\s*(\^\s*\{?-?[0-9]\}?)?\s*[({]?\s*([0-9.]+)\s*\^\s*\{?\s*\\circ\s*\}?\s*[)}]?"
)
_DEGREE = (
    r"\s*(?:\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\circ|\\degree)|\\degree"
    r"|\\text\s*\{\s*(?:\^\s*\\circ|degrees?)\s*\})\s*"
)
_DEGREES = re.compile(rf"{_DEGREE}((?:\\text\s*\{{\s*)?(?P<scale>[CF])\s*\}}?(?=\s*$))?")
_SCALE_IN_TEXT = re.compile(r"\\text\s*\{\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*([CF])\s*\}")
_ARC = re.compile(
    rf"([0-9]+){_DEGREE}\s*([0-9]+(?:\.[0-9]+)?)\s*(?:'|\^\s*\{{?\s*\\prime\s*\}}?)(?!')"
    r"(?:\s*([0-9]+(?:\.[0-9]+)?)\s*(?:''|\"|\^\s*\{?\s*\\prime\s*\\prime\s*\}?))?"
)
_WORD = r"[^\W\d_]+(?:['-][^\W\d_]+)*"
_WORDS = re.compile(rf"{_WORD}(?: {_WORD})*")
_LONG_PART = re.compile(r"[^\W\d_]{3}")
_NUMBERED = re.compile(r"[A-Za-z][\w ]*[0-9][\w ]*")  # "Figure 2" when TeX says that it is text
_SHORT_WORDS = ("odd", "yes", "no", "red", "all", "one", "two", "six", "ten")
_LETTER_IN_BRACKETS = re.compile(r"\(\s*([A-Z])\s*\)|\\text\s*\{\s*([A-Z](?:\s*,\s*[A-Z])+)\s*\}")
_SAID_AS_TEXT = re.compile(
    r"\\text\s*\{\s*((?:(?:the\s+)?(?:final\s+)?answer\s[^{}0-9]*)?\\?[$€£¥]?[-+.]?[0-9][^{}]*)\}", re.IGNORECASE
)
_TEXT_QUOTIENT = re.compile(r"\\text\s*\{([^{}]*)\}\s*(/|\\cdot(?![a-zA-Z]))\s*\\text\s*\{([^{}]*)\}")
_TEXT_POWER = re.compile(r"(\\text\s*\{[^{}^]*\^)\{(-?[0-9])\}")
_ORDINAL = re.compile(r"([0-9]+)\s*(?:\^\s*)?(?:\{\s*)?(?:\\text\s*\{\s*)?(?:st|nd|rd|th)\s*\}{0,2}")
_TEXT_NUMBER = re.compile(r"\\text\s*\{\s*([-+0-9.,/ ]+)\s*\}")
_TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
_NUMBER_WORDS = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion)\b"
)


@dataclass(frozen=True)
class MathText:
    """One side of a comparison. `formula` is LaTeX without units and dollars; empty when nothing is left."""

    formula: str
    unit: Unit = NONE
    percent: bool = False
    words: str = ""  # the whole answer where it is words or a literal, in lower case with single spaces


def read(text: str) -> MathText:
    """Take the text of an answer or reference apart."""
    text = unify(text)
    words = as_literal(text) or _as_words(text)
    if words:
        return MathText(text, words=words)
    text = _without_lead(text)
    text = _strip_enclosing(text)
    text, currency = _split_currency(text)
    text = _join_groups(text)
    text, percent = _split_percent(text)
    text, degrees = _split_degrees(_ANGLE.sub(r"\\\1\2(\\frac{\3\\pi}{180})", text))
    text, unit = split_unit(text)
    text = _CONNECTIVE.sub(", ", text).strip().strip("$").strip()
    unit = product(currency, unit) or degrees
    return MathText(text, unit, percent, words=as_literal(text))


def spoken_number(words: str) -> bool:
    """Tell whether words name a number ("forty two"), which nothing here can read."""
    return _NUMBER_WORDS.search(words) is not None


def unify(text: str) -> str:
    """Return a text in one spelling of characters, spaces, brackets and styles."""
    text = unicodedata.normalize("NFC", text).translate(_CHARACTERS)
    text = _RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(_LEVELS)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(_LEVELS)}}}", text)
    text = _OHM.sub("Ω", text.replace("\\colon", ":").replace("\\mu m", "µm"))
    text = _ROOT_SIGN.sub(lambda root: f"\\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    text = _NEGATIVE_SPACE.sub("", text).replace("~", " ").replace("\\textdollar", "\\$").replace("\\dollar", "\\$")
    text = _GROUPED_IN_TEX.sub(lambda group: re.sub(r"[^0-9]", "", group[0]), text)
    text = _THIN_SPACE.sub(" ", text)
    text = _SPACING.sub(" ", text)
    text = _SIZING.sub(lambda size: "" if size[1] in (None, ".") else size[1], text)
    text = _FRACTION.sub(r"\\frac", text)
    text = _STYLE.sub(r"\\text{", text) if "\\m" not in text or "mathbb" not in text else text
    text = _ROMAN.sub(lambda roman: f"\\text{{ {roman[1] or roman[2]}}}", text)
    text = _TEXT_NUMBER.sub(r"\1", text)
    text = _TEXT_QUOTIENT.sub(r"\\text{\1\2\3}", _TEXT_POWER.sub(r"\1\2", text)).replace("{:}", ":")
    text = " ".join(_strip_enclosing(text).split())
    whole = _LETTER_IN_BRACKETS.fullmatch(text) or _SAID_AS_TEXT.fullmatch(text)
    text = (whole[1] or whole[whole.lastindex or 1]).strip() if whole else text
    ordinal = _ORDINAL.fullmatch(text)
    return ordinal[1] if ordinal else text


def _strip_enclosing(text: str) -> str:
    """Drop dollars, \\( \\), \\[ \\], boxes, bold stars and full stops around the whole, at most eight layers."""
    for _ in range(8):
        before = text
        text = text.strip()
        text = text if text.endswith("..") else text.rstrip(".,;")
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`")):
            inner = text[len(opening) : len(text) - len(closing)]
            enclosed = len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing)
            if enclosed and opening not in inner and not inner.endswith("\\"):
                text = inner.strip()
        if text.startswith(("\\boxed", "\\fbox")):
            boxes = complete_boxes(text)
            if len(boxes) == 1 and boxes[0][0] == len(text):
                text = boxes[0][1]
        if text == before:
            break
    return text


def _join_groups(text: str) -> str:
    """Turn 1,000 into 1000. Inside brackets a comma separates, unless another comma there is followed by a space."""
    if _SPACED_GROUPS.fullmatch(text):
        return text.replace(" ", "")
    if _SPACED_LIST.fullmatch(text):
        return text.replace(" ", ", ")
    if _INDIAN.fullmatch(text):
        return text.replace(",", "")
    if _CONTINENTAL.fullmatch(text):
        marks = "'" if "'" in text else "."
        return text.replace(marks, "").replace(",", ".")
    if "," in text and (", " in text or not any(bracket in text for bracket in "([{")):
        return _GROUPED.sub(lambda group: group[0].replace(",", ""), text)
    return text


def _without_lead(text: str) -> str:
    """Drop "the answer is" and the like, in \\text{} as well, unless it changes the number ("at least:")."""
    said = _SAID_BEFORE.match(text)
    if said and not _CHANGES_NUMBER.search(said[0]):
        text = text[said.end() :]
    return _LEAD.sub("", text, count=1) if _LEAD.match(text) else text


def _split_currency(text: str) -> tuple[str, Unit]:
    found = list(_CURRENCY.finditer(text))
    kinds = {(one.lastgroup if one.lastgroup != "land" else "dollar", (one["land"] or "").upper()) for one in found}
    if not found:
        return text, NONE
    text = " ".join(_CURRENCY.sub(" ", text).split())
    if len(kinds) > 1:
        return text, Unit((("several currencies", 1),))
    kind, land = kinds.pop()
    plain = _CURRENCIES[kind or ""] or NONE
    return text, Unit(((f"{land} dollar", 1),)) if land not in ("", "US") else plain


def _split_degrees(text: str) -> tuple[str, Unit]:
    """Split off degree signs; 30^\\circ 30' becomes a fraction of degrees."""
    text = _SCALE_IN_TEXT.sub(r"^\\circ \1", text)
    text = _ARC.sub(_arc, text)
    signs = list(_DEGREES.finditer(text))
    if not signs:
        return text, NONE
    names = {"C": "celsius", "F": "fahrenheit"}
    return _DEGREES.sub("", text), parse_unit(names.get(signs[-1]["scale"] or "", "degree")) or NONE


def _arc(arc: re.Match[str]) -> str:
    degrees = Fraction(arc[1]) + Fraction(arc[2]) / 60 + Fraction(arc[3] or 0) / 3600
    return f"\\frac{{{degrees.numerator}}}{{{degrees.denominator}}}^\\circ "


def _split_percent(text: str) -> tuple[str, bool]:
    signs = list(_PERCENT.finditer(text))
    if len(signs) == 1 and not text[signs[0].end() :].strip(" $}"):
        return (text[: signs[0].start()] + text[signs[0].end() :]).strip(), True
    return _PERCENT.sub(r"\\%", text) if signs else text, False


def _as_words(text: str) -> str:
    """Return the words of `\\text{no solution}`, `Evelyn`, `偶函数`; empty for mathematics, letters and products."""
    said = _TEXT_COMMAND.fullmatch(text)
    plain = " ".join((said[1] if said else text).split())
    if said and len(plain) == 3 and plain[0] == "(" and plain[2] == ")":
        plain = plain[1]  # \text{(B)}
    if said and _NUMBERED.fullmatch(plain) and not _LEAD.match(plain):
        return plain.casefold()
    if not _WORDS.fullmatch(plain) or ("-" in plain and not _LONG_PART.search(plain)):  # a-b is a difference
        return ""
    # Three letters and fewer may be a product of variables, unless TeX says that they are text or no variable is meant.
    letters = plain.isalpha() and plain.isascii() and len(plain) <= 3 and plain.lower() not in _SHORT_WORDS
    return "" if letters and not said else plain.casefold()
