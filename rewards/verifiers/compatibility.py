"""Verifiers that score as verl does: `gsm8k`, `math_dapo`, `geo3k`. They read the completion with its thinking."""

import re

from rewards.mathematics.answer import compare_plainly, verify_symbolic
from rewards.result import Claim, Unscorable
from rewards.verifiers.verifier import UNDECIDED, Option, Options, Undecided, Verifier, reference_text

_TAIL = 300  # verl's gsm8k and math_dapo look at so many characters at the end
_STRICT_TAIL = 100
_AFTER_HASHES = re.compile(r"#### (-?[0-9.,]+)")
_NUMBERS = re.compile(r"-?[0-9.,]+")
_SAID = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_DROPPED_FIRST = [
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
]  # fmt: skip
_DROPPED = [
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
]  # fmt: skip


def judge_gsm8k(claim: Claim, options: Options) -> float:
    """Give 1 when the number behind the last `####` (flexible: the last number) is the reference to the letter."""
    reference = _gsm8k_reference(reference_text(claim))
    answer = _gsm8k_answer(claim.completion[-_TAIL:], options["method"])
    if answer is None:
        return 0.0
    return 1.0 if answer == reference else options["format_score"]


def judge_math_dapo(claim: Claim, options: Options) -> float:
    """Give 1 when the answer in the last 300 characters equals the reference after verl's normalisation, else -1.

    The answer stands behind the last "Answer:"; without one it is the last box, a fallback that verl got after 29
    January 2026. `method=answer_only` follows verl of that day (commit b178a3c), which has no fallback; `strict_box`
    follows its `strict_box_verify`: the last box of the last 100 characters is the reference to the letter.
    """
    reference, tail = reference_text(claim), claim.completion[-_TAIL:]
    if options["method"] == "strict_box":
        return 1.0 if _last_box(tail[-_STRICT_TAIL:]) == reference else -1.0
    said = _SAID.findall(tail)
    answer = said[-1] if said else None
    if answer is None and options["method"] == "answer":
        answer = _last_box(tail)
    return 1.0 if _normal("[INVALID]" if answer is None else answer) == _normal(reference) else -1.0


def judge_geo3k(claim: Claim, options: Options) -> float:
    """Give (1 - w) for a right last box plus w for `<think>...</think>` before a box, w = format_score."""
    reference = reference_text(claim)
    return _geo3k(claim, options, float(verify_symbolic(_last_box(claim.completion), reference)))


def decide_geo3k(claim: Claim, options: Options) -> float | Undecided:
    verdict = compare_plainly(_last_box(claim.completion) or "", reference_text(claim))
    return UNDECIDED if verdict is None else _geo3k(claim, options, float(verdict))


def _gsm8k_reference(reference: str) -> str:
    """Return what stands behind the #### of a raw GSM8K solution, as verl's preparation of the data does."""
    if "####" not in reference:
        return reference
    found = _AFTER_HASHES.findall(reference)
    if not found:
        raise Unscorable(f"expected a number behind #### in the reference, found {reference[-80:]!r}")
    return found[-1].replace(",", "")


def _gsm8k_answer(tail: str, method: str) -> str | None:
    if method == "strict":
        found = _AFTER_HASHES.findall(tail)
        return found[-1].replace(",", "") if found else None
    numbers = _NUMBERS.findall(tail)
    return next((number for number in reversed(numbers) if number not in ("", ".")), numbers[0]) if numbers else None


def _normal(answer: str) -> str:
    answer = answer.split("=")[-1]
    for old, new in [*_DROPPED_FIRST, *((dropped, "") for dropped in _DROPPED)]:
        answer = answer.replace(old, new)
    answer = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$", answer)
    for command in ("text", "textbf", "overline"):
        answer = re.sub(rf"(\\{command}\{{)(.*?)(\}})", r"\2", answer)
    answer = re.sub(r"(\\boxed\{)(.*)(\})", r"\2", answer)
    answer = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", answer)
    answer = re.sub(r"(sqrt)([^{])", r"sqrt{\2}", answer).replace("$", "")
    return (answer.replace(",", "") if answer.replace(",", "").isdigit() else answer).strip()


def _geo3k(claim: Claim, options: Options, accuracy: float) -> float:
    weight = options["format_score"]
    return (1.0 - weight) * accuracy + weight * _has_form(claim.completion)


def _has_form(text: str) -> float:
    """Match verl's `<think>.*</think>.*\\boxed\\{.*\\}.*` on the whole text, without its backtracking."""
    if not text.startswith("<think>"):
        return 0.0
    position = 0
    for part in ("<think>", "</think>", "\\boxed{", "}"):
        position = text.find(part, position)
        if position < 0:
            return 0.0
        position += len(part)
    return 1.0


def _last_box(text: str) -> str | None:
    """Find the last box of the whole text, none if that one does not close, as MathRuler's `extract_boxed_content`."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for position in range(begin, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[begin:position].strip()
    return None


GSM8K = Verifier(
    judge_gsm8k,
    "1 when the number behind #### is the reference, else format_score (0 without a number)",
    "verl/utils/reward_score/gsm8k.py of 29 January 2026",
    {
        "method": Option("strict", "strict: behind ####; flexible: the last number", ("strict", "flexible")),
        "format_score": Option(0.0, "value of a wrong number", at_least=-1.0, at_most=1.0),
    },
)
MATH_DAPO = Verifier(
    judge_math_dapo,
    'string-exact after normalisation, "Answer:" or else the last box in the last 300 characters: 1, else -1',
    "verl/utils/reward_score/math_dapo.py (after lm-evaluation-harness, Minerva) of 2026, falling back to the box",
    {
        "method": Option(
            "answer",
            'answer: "Answer:", else the last box; answer_only: no box (verl of January 2026); strict_box: box',
            ("answer", "answer_only", "strict_box"),
        )
    },
)
GEO3K = Verifier(
    judge_geo3k,
    "0.9 * accuracy of the last box + 0.1 * form",
    "verl/utils/reward_score/geo3k.py of 29 January 2026; accuracy by `math`, where verl takes MathRuler",
    {"format_score": Option(0.1, "weight of the form", at_least=0.0, at_most=1.0)},
    quick=decide_geo3k,
    needs_sympy=True,
)
