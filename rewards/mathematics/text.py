"""Mathematical answers as text: one spelling for what authors and models write in many, units split off.

All rules here are textual and linear; nothing is evaluated. `rewards.mathematics.answer` compares what comes out.
"""

import re
import unicodedata
from dataclasses import dataclass

from rewards.answers import complete_boxes
from rewards.mathematics.units import split_unit

_CHARACTERS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
        **{digit: f"^{{{i}}}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **{digit: f"_{{{i}}}" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
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
        },
        **{
            "℃": "^\\circ C",
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
_ROOT_SIGN = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|([0-9.]+|[a-zA-Z]))")
_SPACING = re.compile(r"\\(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|limits|nolimits|hfill)(?![a-zA-Z])")
_THIN_SPACE = re.compile(r"(?<!\\)\\[,;: >]")
_NEGATIVE_SPACE = re.compile(r"\\!\s*")
_CLOCK = re.compile(
    r"([0-9]{1,2}):([0-5][0-9])\s*(?:(?:\\text\s*\{\s*)?([ap])\.?\s?m\.?\s*\}?|(?<=:0[0-9]))", re.IGNORECASE
)
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*(\\[{}|]|[()\[\]|.<>]|(?=\\))?")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_STYLE = re.compile(
    r"\\(?:textnormal|textbf|textit|textrm|textsf|texttt|mbox|hbox|mathrm|mathbf|mathit|bm|boldsymbol)\s*\{"
)
_CONNECTIVE = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*(?:,\s*)?(?:and|or|或|和)\s*,?\s*\}|(?<![a-zA-Z\\{])(?:and|or)(?![a-zA-Z])|(?<=[\w})\]])\s*[或和且与]\s*(?:者)?)\s*,?\s*"
)
_LEAD = re.compile(
    r"(?:the\s+)?(?:final\s+)?(?:answer|result|value|答案|结果)\s*(?:is|are|=|:|是|为)\s*:?\s*"
    r"|(?:\\text\s*\{\s*)?(?:\\approx|approximately|approx\.?|about|roughly|约为|大约|约)\s*\}?\s*|(?:答|故|共|∴|\\therefore)\s*[:：]?\s*",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")
_GROUPED_IN_TEX = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|\\,)[0-9]{3})+(?![0-9])")
_SPACED_GROUPS = re.compile(r"[+-]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_PERCENT = re.compile(r"\s*(?:\\text\s*\{\s*(?:%|\\%|percent|pct)\s*\}|\\?%|\b(?:percent(?:age)?|per\s+cent|pct)\b)")
_CURRENCY = re.compile(
    r"(?:\\text\s*\{\s*)?(?:US\s*\\?\$|HK\s*\\?\$|\\\$|[€£¥₹₩]|\b(?:USD|EUR|GBP|CNY|RMB)\b|\\pounds|\\euro)\s*\}?",
    re.IGNORECASE,
)
_ANGLE = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc)\s*(\^\s*\{?-?[0-9]\}?)?\s*[({]?\s*([0-9.]+)\s*\^\s*\{?\s*\\circ\s*\}?\s*[)}]?"
)
_DEGREES = re.compile(
    r"\s*(?:\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\circ|\\degree)|\\degree|\\text\s*\{\s*degrees?\s*\})"
    r"(?:\s*(?:\\text\s*\{\s*)?[CF]\s*\}?\s*$)?"
)
_WORD = r"[^\W\d_]+(?:['-][^\W\d_]+)*"
_WORDS = re.compile(rf"{_WORD}(?: {_WORD})*")
_NUMBERED = re.compile(r"[A-Za-z][\w ]*[0-9][\w ]*")  # "Figure 2" when TeX says that it is text
_SHORT_WORDS = ("odd", "yes", "no", "red", "all", "one", "two", "six", "ten")
_LETTER_IN_BRACKETS = re.compile(r"\(\s*([A-Z])\s*\)")
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
    unit: str = ""  # canonical name of a known unit, else the word as written, in lower case
    percent: bool = False
    words: str = ""  # the whole answer where it is words, not mathematics, in lower case with single spaces


def read(text: str) -> MathText:
    """Take the text of an answer or reference apart."""
    text = unify(text)
    words = _as_words(text)
    if clock := _CLOCK.fullmatch(text):
        words = " ".join(["clock", clock[1] + ":" + clock[2], (clock[3] or "").lower()]).strip()
    if words:
        return MathText(text, words=words)
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    text = _strip_enclosing(text)
    text = _CURRENCY.sub(" ", text).strip()
    text = _join_groups(text)
    text, percent = _split_percent(text)
    text = _ANGLE.sub(r"\\\1\2(\\frac{\3\\pi}{180})", text)
    text, unit = split_unit(_DEGREES.sub("", text))
    text = _CONNECTIVE.sub(", ", text).strip().strip("$").strip()
    return MathText(text, unit, percent)


def spoken_number(words: str) -> bool:
    """Tell whether words name a number ("forty two"), which nothing here can read."""
    return _NUMBER_WORDS.search(words) is not None


def unify(text: str) -> str:
    """Return a text in one spelling of characters, spaces, brackets and styles."""
    text = unicodedata.normalize("NFC", text).translate(_CHARACTERS)
    text = _ROOT_SIGN.sub(lambda root: f"\\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    text = _NEGATIVE_SPACE.sub("", text).replace("~", " ").replace("\\textdollar", "\\$").replace("\\dollar", "\\$")
    text = _GROUPED_IN_TEX.sub(lambda group: re.sub(r"[^0-9]", "", group[0]), text)
    text = _THIN_SPACE.sub(" ", text)
    text = _SPACING.sub(" ", text)
    text = _SIZING.sub(lambda size: "" if size[1] in (None, ".") else size[1], text)
    text = _FRACTION.sub(r"\\frac", text)
    text = _STYLE.sub(r"\\text{", text) if "\\m" not in text or "mathbb" not in text else text
    text = _TEXT_NUMBER.sub(r"\1", text)
    text = _TEXT_QUOTIENT.sub(r"\\text{\1\2\3}", _TEXT_POWER.sub(r"\1\2", text)).replace("{:}", ":")
    text = " ".join(_strip_enclosing(text).split())
    whole = _LETTER_IN_BRACKETS.fullmatch(text) or _SAID_AS_TEXT.fullmatch(text)
    text = whole[1].strip() if whole else text
    ordinal = _ORDINAL.fullmatch(text)
    return ordinal[1] if ordinal else text


def _strip_enclosing(text: str) -> str:
    """Drop dollars, \\( \\), \\[ \\], boxes, bold stars and full stops around the whole, at most eight layers."""
    for _ in range(8):
        before = text
        text = text.strip().rstrip(".,;")
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
    if "," in text and (", " in text or not any(bracket in text for bracket in "([{")):
        return _GROUPED.sub(lambda group: group[0].replace(",", ""), text)
    return text


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
    if not _WORDS.fullmatch(plain):
        return ""
    # Three letters and fewer may be a product of variables, unless TeX says that they are text or no variable is meant.
    letters = plain.isalpha() and plain.isascii() and len(plain) <= 3 and plain.lower() not in _SHORT_WORDS
    return "" if letters and not said else plain.casefold()
