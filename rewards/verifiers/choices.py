"""`choice`: which option an answer picks. It never guesses: what may mean two options picks none."""

import re
from collections.abc import Callable
from itertools import pairwise

from rewards.mathematics.answer import compare_plainly, verify_symbolic
from rewards.result import Claim, Unscorable
from rewards.verifiers.option_set import OptionSet, letters_of, plain, read_options, same_text
from rewards.verifiers.statements import doubtful, mentioned_keys, mentioned_texts, stated
from rewards.verifiers.verifier import UNDECIDED, Options, Undecided, Verifier, only

_MAX_CHARACTERS = 20_000
_MAX_QUICK = 4_000  # a longer answer is prose, whose reading takes more than the caller has time for
_MAX_FORMULA = 300
_KEY = r"[A-Za-z]"
_WRAPPED = re.compile(
    rf"(?:option|choice|选项)?\s*(?:(?P<quote>['\"])|[“‘])?[(\[（【]?\s*(?P<key>{_KEY})\s*[)\]）】]?"
    r"(?(quote)(?P=quote)|[”]?)\s*(?:选项|项)?\s*[.:：、,。]?",
    re.IGNORECASE,
)
_KEY_AND_TEXT = re.compile(
    rf"(?:option\s+)?(?:[(（\[]\s*({_KEY})\s*[)）\]]|({_KEY})\s*[.:：)、]|({_KEY})\s+-(?=\s*[A-Za-z\u4e00-\u9fff]))\s*(.+)",
    re.DOTALL,
)
_LISTED = re.compile(
    r"(?:the\s+)?(?:correct\s+|final\s+)?(?:answers?|options?|choices?)\s*(?:is|are)?\s*:?\s*", re.IGNORECASE
)
_ONE_OF_LIST = rf"(?:option\s+)?[(\[（]?\s*({_KEY})\s*[)\]）]?\.?"
_SEVERAL = re.compile(
    rf"{_ONE_OF_LIST}(?:(?:\s*(?:[,;，；、&]|\band\b|和|与)\s*|\s+){_ONE_OF_LIST}){{1,25}}", re.IGNORECASE
)
_GLUED = re.compile(r"[A-Z]{2,26}")
_MATHEMATICS = re.compile(r"[0-9\\^+=√π]")
_PROSE = re.compile(r"[A-Za-z]{4,}|[\u4e00-\u9fff]")

SameValue = Callable[[str, str], bool]


class _TakesMathematics(Exception):
    """Only a scorer process can tell whether a formula is an option."""


def judge_choice(claim: Claim, options: Options) -> float:
    """Give 1 when the answer picks the reference's option. `Unscorable` when the reference names no option."""
    return _judge(claim, _same_value)


def decide_choice(claim: Claim, options: Options) -> float | Undecided:
    """Judge all but formulas that are no option's text, which may be one in another form."""
    if len(claim.answer or "") > _MAX_QUICK:
        return UNDECIDED
    try:
        return _judge(claim, _plainly_same_value)
    except _TakesMathematics:
        return UNDECIDED


def pick(answer: str, options: OptionSet, same_value: SameValue | None = None) -> str | None:
    """Return the key of the option that a text picks, None when none or several come into question.

    A lone letter is the letter of an option, even where it is the text of another.
    """
    text = plain(answer)
    if not text:
        return None
    wrapped = _WRAPPED.fullmatch(text)
    by_text = options.by_text(text)
    if wrapped and (options.key(wrapped["key"]) or by_text is None):
        return by_text if wrapped["key"].islower() and by_text else options.key(wrapped["key"])
    if by_text:
        return by_text
    labelled = _KEY_AND_TEXT.fullmatch(text)
    letter = (labelled[1] or labelled[2] or labelled[3]) if labelled else ""
    if labelled and options.key(letter) and (letter.isupper() or options.texts):
        return _confirmed(options.key(letter) or "", labelled[4], options)
    by_value = _by_value(text, options, same_value or _same_value)
    return only(by_value) if by_value else stated(text, options)


def _judge(claim: Claim, same_value: SameValue) -> float:
    options = read_options(claim.columns.get("options", claim.columns.get("choices")))
    expected = _reference_keys(claim.reference, options)
    if claim.answer is None or len(claim.answer) > _MAX_CHARACTERS:
        return 0.0
    if len(expected) > 1:
        return float((_listed(claim.answer, options) or {pick(claim.answer, options, same_value)}) == expected)
    return float({pick(claim.answer, options, same_value)} == expected)


def _by_value(text: str, options: OptionSet, same_value: SameValue) -> list[str]:
    """Return the options that are the same number or formula."""
    if len(text) > _MAX_FORMULA or not _MATHEMATICS.search(text):
        return []
    return [key for key, option in options.texts.items() if same_value(text, option)]


def _same_value(text: str, option: str) -> bool:
    verdict = compare_plainly(text, option)
    if verdict is not None or not _is_formula(text) or not _is_formula(option):
        return bool(verdict)
    try:
        return verify_symbolic(text, option)
    except Unscorable:  # the option is no mathematics
        return False


def _plainly_same_value(text: str, option: str) -> bool:
    verdict = compare_plainly(text, option)
    if verdict is None and _is_formula(text) and _is_formula(option):
        raise _TakesMathematics
    return bool(verdict)


def _is_formula(text: str) -> bool:
    bare = re.sub(r"\\[a-zA-Z]+", "", text)
    return len(text) <= _MAX_FORMULA and _MATHEMATICS.search(text) is not None and not _PROSE.search(bare)


def _confirmed(key: str, rest: str, options: OptionSet) -> str | None:
    """Return a key that words follow, which must not be another option's, name another key or take the key back."""
    own = options.texts.get(key, "")
    if own and same_text(own, rest):
        return key
    if (
        not re.search(r"\w", rest)
        or options.by_text(rest)
        or (own and compare_plainly(rest, own) is False and _is_formula(rest))
    ):
        return None
    said = mentioned_keys(rest, options) | mentioned_texts(rest, options)
    return key if not doubtful(rest, key, options) and said <= {key} else None


def _reference_keys(reference: object, options: OptionSet) -> set[str]:
    """Return the keys of all options that are right: a list, or one text that lists letters (A, B; AB)."""
    several = reference if isinstance(reference, (list, tuple)) else [reference]
    given = [str(one) for one in several if one is not None]
    if not given:
        raise Unscorable("the reference is empty")
    if len(given) == 1 and _reference_key(given[0], options) is None and (listed := _listed(given[0], options)):
        return listed
    keys = [_reference_key(one, options) for one in given]
    if None in keys:
        unknown = given[keys.index(None)][:80]
        raise Unscorable(f"reference {unknown!r} is neither one of the letters {options.names()} nor one option's text")
    return letters_of(keys)


def _reference_key(reference: str, options: OptionSet) -> str | None:
    """Return the option that a reference names: a letter is the letter of an option, whatever the others' texts."""
    text = plain(reference)
    wrapped = _WRAPPED.fullmatch(text)
    if wrapped and options.key(wrapped["key"]):
        return options.key(wrapped["key"])
    by_text = options.by_text(text) if text else None
    labelled = _KEY_AND_TEXT.fullmatch(text)
    if by_text is None and labelled and options.texts:
        key = options.key(labelled[1] or labelled[2] or labelled[3])
        return key if key and same_text(options.texts[key], labelled[4]) else None
    return by_text


def _listed(text: str, options: OptionSet) -> set[str]:
    """Return the keys of a list of letters, empty for any other text; glued letters must be in order (AC, not CAB)."""
    text = _LISTED.sub("", plain(text), count=1).strip("[]. ")
    if _SEVERAL.fullmatch(text):
        found = re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", text)
    elif _GLUED.fullmatch(text) and all(one < next_one for one, next_one in pairwise(text)):
        found = list(text)
    else:
        return set()
    keys = [options.key(letter) for letter in found]
    return set() if None in keys else letters_of(keys)


CHOICE = Verifier(
    judge_choice,
    "1 when the answer picks the reference's option by letter, text or value, and no other, else 0",
    "option matching of VLMEvalKit (can_infer), without its guesses: several or contradictory options pick none",
    quick=decide_choice,
    needs_sympy=True,
)
