"""Verifiers of text and of structured text: `exact`, `boolean`, `anls`, `ordered_list`, `json_fields`."""

import re
import unicodedata
from collections.abc import Mapping

from rewards.result import Claim, Unscorable
from rewards.verifiers.numeric import same_quantity
from rewards.verifiers.truth import read_truth
from rewards.verifiers.verifier import (
    UNDECIDED,
    Option,
    Options,
    Undecided,
    Verifier,
    has_no_value,
    parse_json,
    reference_text,
    reference_texts,
    refuse_missing,
)

_KEPT_FORMS = ("<super>", "<sub>", "<fraction>")  # 5² is not 52
_SEPARATORS = re.compile(r"\s*(?:,|;|，|；|、|->|→|>|<|\n)\s*")
_BULLET = re.compile(r"^(?:[-*•]|\(?[0-9]{1,3}[.)、])\s+")
_MAX_EDITS = 4_000_000  # cells of the edit-distance table
_MAX_NESTING = 50


def judge_exact(claim: Claim, options: Options) -> float:
    references = [_normal(text, options) for text in reference_texts(claim)]
    return float(claim.answer is not None and _normal(claim.answer, options) in references)


def judge_boolean(claim: Claim, options: Options) -> float:
    """Give 1 when the answer begins with the reference's yes or no (or a word for it) and never says the other."""
    expected = read_truth(reference_text(claim))
    if expected is None:
        raise Unscorable(f"reference {str(claim.reference)[:80]!r} is neither yes nor no")
    return float(read_truth(claim.answer or "") is expected)


def judge_anls(claim: Claim, options: Options) -> float:
    """Give 1 - edit distance / longer length for the best reference, and 0 below the threshold."""
    references = [" ".join(text.lower().split()) for text in reference_texts(claim)]
    if claim.answer is None:
        return 0.0
    answer = " ".join(claim.answer.lower().split())
    best = max(_similarity(answer, reference, options["threshold"]) for reference in references)
    return best if best >= options["threshold"] else 0.0


def decide_anls(claim: Claim, options: Options) -> float | Undecided:
    """Judge short texts. Long ones take a scorer process: the edit distance costs the product of their lengths."""
    cost = max(len(text) for text in reference_texts(claim)) ** 2
    return judge_anls(claim, options) if cost < 250_000 and len(claim.answer or "") < 20_000 else UNDECIDED


def judge_ordered_list(claim: Claim, options: Options) -> float:
    """Give 1 for the same items in the same order; with score=share, the share of right places of the longer list."""
    expected = None if claim.reference is None else _items(claim.reference)
    if not expected:
        raise Unscorable("expected a list as reference, found nothing")
    if None in expected or has_no_value([claim.reference, expected]):
        raise Unscorable("the reference lists a value that is missing (null or NaN)")
    for text in [claim.reference, *expected]:
        if isinstance(text, str):
            refuse_missing(text)
    found = _items(claim.answer or "") or []
    right = sum(_same_item(one, other) for one, other in zip(found, expected, strict=False))
    share = right / max(len(found), len(expected))
    return share if options["score"] == "share" else float(share == 1.0)


def judge_json_fields(claim: Claim, options: Options) -> float:
    """Give the share of the reference's fields that the answer's object holds with the same value."""
    expected = claim.reference
    if isinstance(expected, str):
        try:
            expected = parse_json(expected)
        except ValueError as error:
            raise Unscorable(f"reference is no JSON object: {error}") from None
    if not isinstance(expected, Mapping) or not expected:
        raise Unscorable(f"expected a JSON object with fields as reference, found {type(expected).__name__}")
    if has_no_value(expected):
        raise Unscorable("the reference holds NaN or infinity, which programs write where a value is missing")
    try:
        found = parse_json(_unfenced(claim.answer or ""))
    except ValueError:
        return 0.0
    if not isinstance(found, Mapping):
        return 0.0
    if options["extra"] == "wrong" and set(found) - set(expected):
        return 0.0
    share = sum(key in found and _same_json(found[key], value) for key, value in expected.items()) / len(expected)
    return share if options["score"] == "share" else float(share == 1.0)


def _unfenced(text: str) -> str:
    """Return what stands between the fences of a code block that is the whole text, else the text."""
    text = text.strip()
    inner = text.removeprefix("```").removesuffix("```").strip()
    fenced = len(text) >= 6 and text.startswith("```") and text.endswith("```")
    return inner.removeprefix("json").strip() if fenced else text


def _normal(text: str, options: Options) -> str:
    text = " ".join("".join(map(_compatible, unicodedata.normalize("NFC", text))).split())
    return text.casefold().rstrip(".。") if options["case"] == "ignore" else text


def _compatible(character: str) -> str:
    """Return the Unicode compatibility form, but leave superscripts, subscripts and fractions as they are."""
    if character.isascii() or unicodedata.decomposition(character).startswith(_KEPT_FORMS):
        return character
    return unicodedata.normalize("NFKC", character)


def _similarity(answer: str, reference: str, threshold: float) -> float:
    longer = max(len(answer), len(reference))
    if not longer or answer == reference:
        return 1.0
    if 1 - abs(len(answer) - len(reference)) / longer < threshold:
        return 0.0
    if len(answer) * len(reference) > _MAX_EDITS:
        raise Unscorable(f"texts of {len(answer)} and {len(reference)} characters are too long for an edit distance")
    return 1 - _edit_distance(answer, reference) / longer


def _edit_distance(one: str, other: str) -> int:
    previous = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        current = [i]
        for j, right in enumerate(other, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def _items(value: object) -> list[object] | None:
    if isinstance(value, (list, tuple)):
        return list(value)
    text = str(value).strip()
    if text.startswith("["):
        try:
            parsed = parse_json(text)
            return parsed if isinstance(parsed, list) else None
        except ValueError:
            text = text.strip("[]")
    lines = [_BULLET.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else _SEPARATORS.split(lines[0] if lines else "")
    return [part.strip(" \"'()[]") for part in parts if part.strip(" \"'()[]")]


def _same_item(one: object, other: object) -> bool:
    if isinstance(one, (str, int, float)) and isinstance(other, (str, int, float)):
        left, right = (" ".join(str(side).casefold().split()) for side in (one, other))
        return left == right or same_quantity(left, right)
    return _same_json(one, other)


def _same_json(one: object, other: object, depth: int = 0) -> bool:
    """Compare texts without regard to case and spaces, and numbers by value, not as their text; true is not 1."""
    if depth > _MAX_NESTING:
        return False
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if isinstance(one, str) and isinstance(other, str):
        return " ".join(one.casefold().split()) == " ".join(other.casefold().split())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same_json(a, b, depth + 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) == set(other) and all(_same_json(one[key], other[key], depth + 1) for key in one)
    return one is None and other is None


_CASE = Option("ignore", "whether upper and lower case differ (and a final full stop)", ("ignore", "keep"))
EXACT = Verifier(
    judge_exact,
    "1 when the answer is one of the references but for spaces, Unicode form and case, else 0",
    "exact match of SQuAD and lm-evaluation-harness (ignore_case), Unicode compatibility form added",
    {"case": _CASE},
)
BOOLEAN = Verifier(
    judge_boolean,
    "1 when the answer says yes or no (true/false, correct/incorrect, 是/否, 对/错) as the reference does, else 0",
    "yes/no scoring of MME and POPE, refusing answers that say both",
)
ANLS = Verifier(
    judge_anls,
    "normalised Levenshtein similarity to the nearest reference, 0 below the threshold",
    "ANLS of ST-VQA and DocVQA (Biten et al. 2019; Mathew et al. 2021), threshold 0.5",
    {"threshold": Option(0.5, "similarities below it count 0", at_least=0.0, at_most=1.0)},
    quick=decide_anls,
)
_SCORE = Option("exact", "exact: all or nothing; share: the share that is right", ("exact", "share"))
ORDERED_LIST = Verifier(
    judge_ordered_list,
    "1 when the answer lists the reference's items in its order, else 0",
    "exact order, as in sorting and ranking tasks; share counts right places by the longer list, so padding costs",
    {"score": _SCORE},
)
JSON_FIELDS = Verifier(
    judge_json_fields,
    "share of the reference's JSON fields that the answer has with equal values",
    "field accuracy of key information extraction (SROIE, CORD)",
    {
        "score": Option("share", "share of right fields, or exact: all or nothing", ("share", "exact")),
        "extra": Option("ignore", "whether fields beyond the reference's make the answer wrong", ("ignore", "wrong")),
    },
)
