"""One converted row, and the rules by which questions, options and answers of any data set are read."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.data.tsv import choice_question
from model.json_values import JsonObject

_MARK = re.compile(r"<image(?:\s*(\d+))?>")
_LEADING_MARKS = re.compile(r"(?:\s*<image(?:\s*\d+)?>)+\s*")
_OPTION = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])\s*[.、:：)])\s*(\S.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).:]\s+\S.*", re.DOTALL)
_YES_OR_NO = re.compile(r"(yes|no)[.!]?", re.IGNORECASE)
_NUMBER = re.compile(r"[-+−]?\s*[$€£]?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?\s*(?:%|°|[A-Za-z]{1,3}\d?)?\.?")
_SIGNS = re.compile(r"[\\^=√π°∠]|\d\s*[-+*/:]\s*\d")
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?")
_WORD = re.compile(r"[A-Za-z]{4,}")
_ANSWER_IS = re.compile(r"\s*the answer is\s*:?\s*(.*?)\s*", re.IGNORECASE | re.DOTALL)
_ANSWER_TAG = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_MOST_WORDS, _MOST_CHARACTERS = 5, 60  # a text with more is none that `exact` can judge
_LONGEST_FORMULA = 300


class LeftOut(Exception):
    """A row that is whole but gives no prompt: the text is the reason under which it is counted."""


@dataclass(frozen=True)
class Converted:
    """A prompt, the answer, and the verifier that judges answers to it."""

    question: str
    reference: str | list[str]  # a list: any of them is right
    verifier: str  # a name in the registry of rewards
    images: Sequence[object] = ()  # cells: bytes, structs of `datasets`, or names of files
    options: Mapping[str, str] = field(default_factory=dict)  # letter -> text
    columns: JsonObject = field(default_factory=dict)  # further columns of the row


def text_of(row: Mapping[str, object], name: str) -> str:
    """A column that is a text. `ValueError` for one that is absent, empty or something else."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected a text, found {value!r:.80}")
    return value.strip()


def answer_of(row: Mapping[str, object], name: str) -> str:
    """A column that is a text or a number. `LeftOut` where it is absent or empty, as in a test split."""
    value = row.get(name)
    if value is None or value == "":
        raise LeftOut("no answer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name}: expected a text or a number, found {value!r:.80}")
    if not str(value).strip():
        raise LeftOut("no answer")
    return str(value).strip()


def kept(row: Mapping[str, object], *names: str) -> JsonObject:
    """Those of these columns that the row has."""
    return {name: row[name] for name in names if row.get(name) is not None}


def untagged(answer: str) -> str:
    """The answer between answer tags, or behind "The answer is"."""
    for pattern in (_ANSWER_TAG, _ANSWER_IS):
        if found := pattern.fullmatch(answer):
            answer = found[1].strip()
    return answer.strip()


def question_text(question: str, num_images: int, options: Mapping[str, str] | None = None, hint: str = "") -> str:
    """The question with its options and their hint, and with `<image>` where an image stands that is not in front.

    Marks such as `<image1>` become `<image>`. `ValueError` where marks and images cannot be matched.
    """
    leading = _LEADING_MARKS.match(question)
    body = question[leading.end() :] if leading else question
    text = choice_question(body, options, hint) if options else body
    before = len(_MARK.findall(leading[0])) if leading else 0
    numbers = [found[1] for found in _MARK.finditer(text)]
    if (before or numbers) and not num_images:
        raise ValueError("images: expected one for the place in the question, found none")
    if not numbers:
        return text
    in_order = numbers in ([None] * num_images, [str(number) for number in range(1, num_images + 1)])
    if not before and in_order:
        return _MARK.sub("<image>", text)
    if num_images == 1:  # one picture that the text names again
        first = _MARK.sub("the image" if before else "<image>", text, count=1)
        rest = first.partition("<image>")
        return first if before and not rest[1] else rest[0] + rest[1] + _MARK.sub("the image", rest[2])
    raise ValueError(f"images: expected {before + len(numbers)} for the places in the question, found {num_images}")


def lettered(texts: Sequence[object]) -> dict[str, str]:
    """Options by letter. `ValueError` for a list that is too short or too long, or holds no texts."""
    if not 2 <= len(texts) <= len(string.ascii_uppercase):
        raise ValueError(f"options: expected 2 to 26 of them, found {len(texts)}")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"options: expected texts, found {list(texts)!r:.80}")
    return {letter: str(text).strip() for letter, text in zip(string.ascii_uppercase, texts, strict=False)}


def options_in(question: str) -> dict[str, str]:
    """The options that the lines of a question list as `(A) text` or `A. text`; none unless letters follow A."""
    found = [(one[1] or one[2], one[3]) for one in _OPTION.finditer(question)]
    letters = [letter for letter, _ in found]
    is_list = len(found) >= 2 and letters == list(string.ascii_uppercase[: len(found)])
    return dict(found) if is_list else {}


def judged(question: str, answer: str) -> tuple[str, str, dict[str, str]]:
    """(verifier, reference, options) of a question with a short answer of any kind.

    A letter of the listed options takes `choice`, yes or no `boolean`, a number or formula `math`, and a few words
    `exact`. `LeftOut` for an answer that none of them can judge.
    """
    options = options_in(question)
    letter = _LETTER.fullmatch(answer) or _LETTER_AND_TEXT.fullmatch(answer)
    if options and letter and letter[1] in options:
        return "choice", letter[1], options
    named = [key for key, text in options.items() if text.casefold() == answer.casefold()]
    if len(named) == 1:  # the text of an option, although the question asks for letters
        return "choice", named[0], options
    if found := _YES_OR_NO.fullmatch(answer):
        return "boolean", found[1].lower(), {}
    if is_mathematical(answer):
        return "math", answer, {}
    if len(answer) <= _MOST_CHARACTERS and len(answer.split()) <= _MOST_WORDS:
        return "exact", answer, {}
    raise LeftOut("the answer is a sentence")


def is_choice(answer: str, options: Mapping[str, str]) -> bool:
    """Tell whether an answer is a letter, of those that are listed if any are, or several of the listed ones."""
    if len(answer) == 1:
        return answer in (options or string.ascii_uppercase[:8])
    return bool(options) and answer.isalpha() and set(answer) <= options.keys()


def is_mathematical(answer: str) -> bool:
    """Tell whether an answer is a number, perhaps with a short unit, or a formula without words."""
    if _NUMBER.fullmatch(answer):
        return True
    if len(answer) > _LONGEST_FORMULA or not _SIGNS.search(answer):
        return False
    return not _WORD.search(_COMMAND.sub(" ", answer))
