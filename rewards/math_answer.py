"""Do two mathematical answers mean the same? Equal numbers are decided here, the rest by math-verify.

`verify_symbolic` may run for ever on hostile input: call it in a worker process with a deadline only.
"""

import re
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?")


class UnparsableReference(ValueError):
    """The reference answer is not mathematics; the prompt cannot be scored."""


def compare_plainly(answer: str, reference: str) -> bool | None:
    """True or False when both are plain decimal numbers or the texts are equal; None when it takes mathematics."""
    answer, reference = answer.strip(), reference.strip()
    if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(reference):
        return Decimal(answer) == Decimal(reference)
    if answer and answer == reference:
        return True
    return False if not answer else None


def verify_symbolic(answer: str, reference: str) -> bool:
    """math-verify on both sides wrapped as LaTeX, so that bare LaTeX is not read up to its first number.

    Raises `UnparsableReference`, and whatever math-verify's comparison raises; an answer that does not parse is wrong.
    """
    gold = _parse(reference)
    if all(isinstance(reading, str) for reading in gold):  # math-verify hands back text that it cannot parse
        raise UnparsableReference(f"reference {reference[:80]!r} does not parse as mathematics")
    candidate = _parse(answer)
    if not candidate:
        return False
    from math_verify import verify

    return bool(verify(gold, candidate, timeout_seconds=None, raise_on_error=True))


def _parse(text: str) -> list:
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # says at every call that deadlines are ours
    text = text.strip().strip("$").strip()
    # math-verify reads a percent sign behind the dollars only; between them it drops it or fails to parse.
    formula, percent = (text.rstrip("%\\$ "), "%") if text.endswith("%") else (text, "")
    return parse(f"${formula}${percent}", parsing_timeout=0, raise_on_error=False) if formula else []
