"""`choice`: which option an answer picks. It never guesses: what may mean two options picks none."""

import re
import string
from collections.abc import Mapping

from rewards.answers import complete_boxes
from rewards.mathematics.answer import compare_plainly
from rewards.result import Claim, Unscorable
from rewards.verifiers.verifier import Options, Verifier, only

_MAX_CHARACTERS = 20_000
_WIDE = {code: code - 0xFEE0 for code in range(0xFF21, 0xFF5B)}  # full-width letters
_KEY = r"[A-Za-z]"
_WRAPPED = re.compile(
    rf"(?:option|choice|选项)?\s*[(\[（【'\"“‘]?\s*({_KEY})\s*[)\]）】'\"”’]?\s*[.:：、,。]?", re.IGNORECASE
)
_KEY_AND_TEXT = re.compile(
    rf"(?:option\s+)?(?:[(（\[]\s*({_KEY})\s*[)）\]]|({_KEY})\s*[.:：)、]|({_KEY})\s+-)\s*(.+)", re.DOTALL
)
_SEVERAL = re.compile(rf"{_KEY}(?:\s*(?:,|、|and|or|&|/|和|或|\s)\s*{_KEY})+")
_SAID = re.compile(
    r"(?i:\b(?:answer|choice|option|choose|choosing|select|selected|pick|picked)\b|答案|选择|选|应为)"
    r"(?P<between>(?:[\s:：*]|\b(?i:is|are|should|must|be|would|option|choice|the|correct|letter|as)\b|是|为|项){0,12})"
    r"[(（\[*\"'“]*(?P<key>[A-Z])(?![\w'])(?P<more>\s*[)）\]*\"'”]*\s*(?:,|、|(?i:and|or)\b|&|/|或|和)\s*[(（\[]?(?:option\s+)?[A-Z](?![\w']))?"
)
_CALLED_RIGHT = re.compile(
    r"(?:option\s+|choice\s+)?[(\[]?([A-Z])[)\]]?\s+(?:is|would be|must be)\s+(?:the\s+)?(?:only\s+)?"
    r"(?:correct|right|best)(?:\s+(?:answer|choice|option|one))?\b",
    re.IGNORECASE,
)
_LAST_LETTER = re.compile(r"((?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?)([a-z])(\)?[\s.]*)$", re.IGNORECASE)
_SPELLINGS = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:!]"), ""),
    (re.compile(r"\\ |~"), " "),
    (re.compile(r"\\%"), "%"),
]
_NEGATION = re.compile(
    r"\b(?:not|isn't|isnt|cannot|can't|never|incorrect|wrong|false|eliminate[ds]?|neither|nor|except|unlikely"
    r"|rather than|ruled? out)\b|不|错|非|排除|除了",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:either|maybe|perhaps|possibly|might|could be|unsure|not sure|both)\b|可能|也许|或者", re.IGNORECASE
)
_MARKUP = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|boldsymbol|rm|bf)\s*\{([^{}]*)\}|\\[()\[\]]|[$*`]|\\boxed\s*\{([^{}]*)\}"
)


def judge_choice(claim: Claim, options: Options) -> float:
    """Give 1 when the answer picks the reference's option. `Unscorable` when the reference names no option."""
    given = _options(claim.columns.get("options", claim.columns.get("choices")))
    expected = _reference_keys(claim.reference, given)
    if claim.answer is None or len(claim.answer) > _MAX_CHARACTERS:
        return 0.0
    if len(expected) > 1:
        return float(_listed_keys(claim.answer, given) == expected)
    return float({pick(claim.answer, given)} == expected)


def pick(answer: str, given: Mapping[str, str]) -> str | None:
    """Return the key of the option that a text picks, None when none or several come into question."""
    text = _plain(answer)
    if not text:
        return None
    wrapped = _WRAPPED.fullmatch(text)
    by_text = [key for key, option in given.items() if option and _same_text(option, text)]
    if wrapped and (_is_key(wrapped[1], given) or not by_text):
        key = wrapped[1].upper()
        return key if _is_key(key, given) and set(by_text) <= {key} else None
    by_value = [] if by_text else [key for key, option in given.items() if compare_plainly(text, option)]
    if by_text or by_value:
        return only(by_text or by_value)
    labelled = _KEY_AND_TEXT.fullmatch(text)
    if (
        labelled
        and _is_key(key := (labelled[1] or labelled[2] or labelled[3]), given)
        and not (key.islower() and not given)
    ):
        return _confirmed(key.upper(), labelled[4], given)
    return _from_prose(text, given)


def _confirmed(key: str, rest: str, given: Mapping[str, str]) -> str | None:
    """Return a key that words follow, which must not be another option's, name another key or take the key back."""
    if given.get(key) and _same_text(given[key], rest):
        return key
    if any(option and other != key and _same_text(option, rest) for other, option in given.items()):
        return None
    said = {match["key"] for match in _SAID.finditer(rest)} | set(_mentioned_keys(rest, given))
    texts = set(_mentioned_texts(rest, given))
    doubtful = _NEGATION.search(_without(rest, given.get(key, ""))) or _HEDGE.search(rest)
    return key if not doubtful and said <= {key} and texts <= {key} else None


def _from_prose(text: str, given: Mapping[str, str]) -> str | None:
    text = _LAST_LETTER.sub(lambda said: said[1] + said[2].upper() + said[3], text)
    judged = _CALLED_RIGHT.match(text)
    if judged:
        text = f"answer {judged[1].upper()}{text[judged.end() :]}"
    statements = list(_SAID.finditer(text))
    if statements:
        keys = [match["key"] for match in statements]
        key = only(keys)
        clear = key is not None and _is_key(key, given) and not any(match["more"] for match in statements)
        start, end = statements[0].start(), statements[-1].end()
        around = text[max(0, start - 40) : start] + text[start:end] + text[end : end + 60]
        around = _without(around, given.get(key or "", ""))
        if not clear or _NEGATION.search(around) or _HEDGE.search(around):
            return None
        contradicted = set(_mentioned_texts(text[end:], given)) - {key}
        return None if contradicted or set(_mentioned_keys(text[end:], given)) - {key} else key
    keys, texts = _mentioned_keys(text, given), _mentioned_texts(text, given)
    key = only([*keys, *texts])
    if key is None or _HEDGE.search(text) or _NEGATION.search(_without(text, given.get(key, ""))):
        return None
    return key


def _options(column: object) -> dict[str, str]:
    """Return the text of each key from a list (A, B, ... in order; "A. text" as well) or a mapping."""
    if column is None:
        return {}
    if isinstance(column, Mapping):
        given = {str(key).strip().upper(): str(option) for key, option in column.items()}
        if all(len(key) == 1 and key in string.ascii_uppercase for key in given):
            return given
        raise Unscorable(f"options: expected the keys A to Z, found {sorted(given)[:5]}")
    if not isinstance(column, (list, tuple)) or not 0 < len(column) <= 26:
        raise Unscorable("options: expected a list of at most 26 texts or a mapping of letters to texts")
    letters = string.ascii_uppercase[: len(column)]
    texts = [str(option).strip() for option in column]
    labelled = all(re.match(rf"[(]?{letter}\s*[.):：、]", text) for letter, text in zip(letters, texts, strict=True))
    return {
        letter: re.sub(r"^[(]?[A-Z]\s*[.):：、]\s*", "", text) if labelled else text
        for letter, text in zip(letters, texts, strict=True)
    }


def _reference_keys(reference: object, given: Mapping[str, str]) -> set[str]:
    several = reference if isinstance(reference, (list, tuple)) else [reference]
    keys = {_reference_key(str(one), given) for one in several if one is not None}
    if not keys:
        raise Unscorable("the reference is empty")
    return keys


def _reference_key(reference: str, given: Mapping[str, str]) -> str:
    text = _plain(reference)
    by_text = only([key for key, option in given.items() if option and _same_text(option, text)])
    wrapped = _WRAPPED.fullmatch(text)
    if wrapped and _is_key(wrapped[1], given):
        if by_text not in (None, wrapped[1].upper()):
            raise Unscorable(f"reference {reference[:80]!r} is the letter of one option and the text of another")
        return wrapped[1].upper()
    labelled = _KEY_AND_TEXT.fullmatch(text)
    if by_text is None and labelled and given:
        key = (labelled[1] or labelled[2] or labelled[3]).upper()
        by_text = key if key in given and _same_text(given[key], labelled[4]) else None
    if by_text is None:
        raise Unscorable(
            f"reference {reference[:80]!r} is neither one of the letters {_letters(given)} nor one option's text"
        )
    return by_text


def _listed_keys(answer: str, given: Mapping[str, str]) -> set[str]:
    text = _plain(answer).strip("()[]. ")
    if _SEVERAL.fullmatch(text) or (text.isascii() and text.isalpha() and text.isupper() and len(text) <= 10):
        keys = re.findall(rf"(?<![a-z]){_KEY}(?![a-z])", text) if not text.isalpha() else list(text)
        return {key.upper() for key in keys if _is_key(key, given)}
    key = pick(answer, given)
    return {key} if key else set()


def _plain(text: str) -> str:
    boxes = complete_boxes(text)
    text = boxes[-1][1] if len(boxes) == 1 and boxes[0][0] >= len(text.rstrip(" .$")) else text
    for _ in range(3):
        text = _MARKUP.sub(lambda markup: markup[1] or markup[2] or "", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return " ".join(text.translate(_WIDE).split())


def _is_key(key: str, given: Mapping[str, str]) -> bool:
    return key.upper() in (given or string.ascii_uppercase)


def _letters(given: Mapping[str, str]) -> str:
    return ", ".join(given) or "A to Z"


def _normal(text: str) -> str:
    return _plain(text).casefold().strip(" .。,;:\"'").removeprefix("the ")


def _same_text(one: str, other: str) -> bool:
    left, right = (_normal(text).replace(" ", "") for text in (one, other))
    return bool(left) and left == right


def _without(text: str, option: str) -> str:
    """Return the text without the picked option's own words, which may hold a "not"."""
    return text.casefold().replace(_normal(option), " ") if _normal(option) else text


def _mentioned_keys(text: str, given: Mapping[str, str]) -> list[str]:
    """Return the capital letters that stand alone; the article A and the pronoun I only in brackets."""
    keys = []
    for match in re.finditer(r"(?<![\w'.$\\^_-])([(\[（]?)([A-Z])([)\]）]?)(?![\w'^_=+])", text):
        word_follows = re.match(r"\s+[a-z]", text[match.end() : match.end() + 8]) is not None
        bracketed = bool(match[1]) and bool(match[3])
        if not bracketed and match[2] in "AI" and word_follows:
            continue
        if _is_key(match[2], given):
            keys.append(match[2])
    return keys


def _mentioned_texts(text: str, given: Mapping[str, str]) -> list[str]:
    """Return the keys of options whose texts occur as whole words, but not inside a longer option that occurs."""
    text, keys = _normal(text), []
    for key, option in sorted(given.items(), key=lambda item: -len(item[1])):
        needle = _normal(option)
        if not needle:
            continue
        pattern = rf"(?<![\w.]){re.escape(needle)}(?!\w|\.\d)" if needle[0].isascii() else re.escape(needle)
        text, times = re.subn(pattern, "\x00", text)
        keys += [key] * bool(times)
    return keys


CHOICE = Verifier(
    judge_choice,
    "1 when the answer picks the reference's option by letter or text, and no other, else 0",
    "option matching of VLMEvalKit (can_infer), without its guesses: several or contradictory options pick none",
)
