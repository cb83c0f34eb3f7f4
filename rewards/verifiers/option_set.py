"""The options of a choice question: their letters and texts, and when two texts are one option."""

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from rewards.answers import complete_boxes
from rewards.mathematics.text import unify
from rewards.result import Unscorable
from rewards.verifiers.verifier import only

_WIDE = {code: code - 0xFEE0 for code in range(0xFF21, 0xFF5B)}  # full-width letters
_SPELLINGS = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:!]"), ""),
    (re.compile(r"\\ |(?<=[\w.,:;)}])~"), " "),
    (re.compile(r"\\%"), "%"),
]
_MARKUP = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|boldsymbol|rm|bf)\s*\{([^{}]*)\}|\\[()\[\]]|[$*`]|\\boxed\s*\{([^{}]*)\}"
)
_ONE_IN_BRACES = re.compile(r"\{(\w)\}")
_NO_ZERO = re.compile(r"(?<![\w.])\.(?=[0-9])")
_EDGES = " .。,;:"
_IN_QUOTES = re.compile(r"""'([^']*)'|"([^"]*)\"""")


@dataclass(frozen=True)
class OptionSet:
    """Options by letter; none where the row lists none, then every capital letter is an option.

    Options of the same text are one option, which the first of their letters names.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(init=False)  # without the options that repeat another
    letters: dict[str, str] = field(init=False)  # each letter and the one that stands for it

    def __post_init__(self) -> None:
        firsts: dict[str, str] = {}
        letters = {key: firsts.setdefault(exact_text(text) or key, key) for key, text in self.given.items()}
        object.__setattr__(self, "letters", letters or dict(zip(*[string.ascii_uppercase] * 2, strict=True)))
        object.__setattr__(self, "texts", {key: self.given[key] for key in self.given if letters[key] == key})

    def key(self, letter: str) -> str | None:
        """Return the option that a letter names."""
        return self.letters.get(letter.upper())

    def by_text(self, text: str) -> str | None:
        """Return the option with this text; case counts where two options differ by nothing else."""
        exact = [key for key, option in self.texts.items() if exact_text(option) == exact_text(text)]
        return only(exact or [key for key, option in self.texts.items() if same_text(option, text)])

    def names(self) -> str:
        return ", ".join(self.given) or "A to Z"


def read_options(column: object) -> OptionSet:
    """Read a list (A, B, ... in order; "A. text" as well) or a mapping of letters to texts."""
    if column is None:
        return OptionSet()
    if isinstance(column, Mapping):
        given = {str(key).strip().upper(): str(option) for key, option in column.items()}
        if all(len(key) == 1 and key in string.ascii_uppercase for key in given):
            return OptionSet(given)
        raise Unscorable(f"options: expected the keys A to Z, found {sorted(given)[:5]}")
    if not isinstance(column, (list, tuple)) or not 0 < len(column) <= 26:
        raise Unscorable("options: expected a list of at most 26 texts or a mapping of letters to texts")
    letters = string.ascii_uppercase[: len(column)]
    texts = [str(option).strip() for option in column]
    pairs = list(zip(letters, texts, strict=True))
    labelled = all(re.match(rf"[(]?{letter}\s*[.):：、]", text) for letter, text in pairs)
    return OptionSet(
        {letter: re.sub(r"^[(]?[A-Z]\s*[.):：、]\s*", "", text) if labelled else text for letter, text in pairs}
    )


def plain(text: str) -> str:
    """Return a text without its box, dollars and styles, on one line."""
    boxes = complete_boxes(text)
    text = boxes[-1][1] if len(boxes) == 1 and boxes[0][0] >= len(text.rstrip(" .$")) else text
    for _ in range(3):
        text = _MARKUP.sub(lambda markup: markup[1] or markup[2] or "", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return " ".join(text.translate(_WIDE).split())


def normal(text: str) -> str:
    """Return a text in one spelling: √3 is \\sqrt{3} and \\sqrt3, m² is m^{2} and m^2, .5 is 0.5; case is lost."""
    return _spelled(text).casefold().removeprefix("the ")


def exact_text(text: str) -> str:
    return _spelled(text).replace(" ", "")


def same_text(one: str, other: str) -> bool:
    left, right = (normal(text).replace(" ", "") for text in (one, other))
    return bool(left) and left == right


def letters_of(keys: Iterable[str | None]) -> set[str]:
    return {key for key in keys if key is not None}


@lru_cache(maxsize=64)
def _spelled(text: str) -> str:
    text = _NO_ZERO.sub("0.", _ONE_IN_BRACES.sub(r"\1", plain(unify(plain(text).replace("~", "¬"))))).strip(_EDGES)
    quoted = _IN_QUOTES.fullmatch(text)
    return (quoted[1] or quoted[2] or "").strip(_EDGES) if quoted else text
