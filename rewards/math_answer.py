"""Do two mathematical answers mean the same? Equal numbers are decided here, the rest by math-verify's parser and sympy.

`verify_symbolic` may run for ever on hostile input: call it in a worker process with a deadline only. It never
evaluates text as code: only math-verify's LaTeX reading is used, whose parser is a grammar (its other reading goes
through `sympy.parse_expr`, which evaluates).
"""

import re
from typing import Any

from rewards.math_text import MathText, read, spoken_number
from rewards.math_units import same_unit
from rewards.plain_numbers import read_plain, same_value
from rewards.result import Unscorable

UnparsableReference = Unscorable
MAX_QUICK = 300  # characters; longer texts go to a worker
_LAST_EQUALS = re.compile(r"(?<![\\<!>])=")
_OUTER = {"\\{": "set", "{": "group", "(": "parenthesis", "[": "bracket"}
_CURLY_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MAX_NESTING = 60  # brackets inside brackets; honest answers have less than ten


def compare_plainly(answer: str, reference: str) -> bool | None:
    """The verdict when it takes no mathematics, None when it does. Bounded time on any input; never raises.

    Always what `verify_symbolic` would say: equal numbers (exact, or rounded decimals), words against words.
    """
    if len(answer) > MAX_QUICK or len(reference) > MAX_QUICK:
        return None
    gold = read(reference)
    number = read_plain(gold)
    if number is None and not (gold.words and not spoken_number(gold.words)):
        return None
    pred = read(answer)
    if number is not None:
        if not pred.formula.strip():
            return False
        candidate = read_plain(pred)
        if candidate is None:
            return False if pred.words else None
        return same_unit(gold.unit, pred.unit) and same_value(candidate, number, (pred.percent, gold.percent))
    return _same_words(gold, pred)


def verify_symbolic(answer: str | None, reference: str) -> bool:
    """The verdict of mathematics; an answer that is None or cannot be read is wrong.

    Raises `Unscorable` for a reference that is empty or cannot be read, whatever the answer, and for an answer nested
    too deeply to be judged; MemoryError as it comes.
    """
    gold = read(reference)
    try:
        gold_object = _parse_reference(reference, gold)
        if answer is None:
            return False
        plain = compare_plainly(answer, reference)
        return _verify(read(answer), gold, gold_object) if plain is None else plain
    except RecursionError:
        raise Unscorable("nested too deeply to be judged") from None


def check_reference(reference: str) -> None:
    """Raises `Unscorable` where `verify_symbolic` would for the reference's sake."""
    verify_symbolic(None, reference)


def warm_up() -> None:
    """Trigger every lazy import and cache of the parser and of sympy, so that judging opens no file later."""
    pairs = [
        ("\\frac{1}{2}x^{2}+\\sqrt{3}", "0.5x^2+\\sqrt3"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&5\\end{bmatrix}"),
        ("(-\\infty,1)\\cup[2,3]", "x<1\\text{ or }2\\le x\\le 3"),
        ("y=2x+1", "xy=3"),
        ("\\{1,\\sqrt{2}\\}", "1,\\sqrt2"),
        ("\\sin(x)^2+\\cos(x)^2+\\ln(x)+e^{i\\pi}", "1+\\log_2 x"),
        ("\\int_0^1 x dx+\\sum_{k=1}^{3}k+n!+\\binom{5}{2}+|x|+\\lim_{x\\to 0}x", "f(x)+\\lfloor x\\rfloor+x\\bmod 3"),
        ("x^2=4", "x\\in\\{-2,2\\}"),
        ("50\\%", "\\pm\\frac{1}{2}"),
        ("x^2-1>0", "(1,2]"),
        ("f(x)", "g(x)"),
        ("\\mathbb{R}\\setminus\\{0\\}", "x\\ne 0"),
    ]
    for one, other in pairs:
        for answer, reference in ((one, other), (other, one), (one, one)):
            try:
                verify_symbolic(answer, reference)
            except Unscorable:
                continue


def _verify(pred: MathText, gold: MathText, gold_object: object) -> bool:
    if gold.words or pred.words:
        return _same_words(gold, pred)
    if not pred.formula or not same_unit(gold.unit, pred.unit) or _other_kind(gold.formula, pred.formula):
        return False
    pred_object = _parse(pred.formula)
    if pred_object is None:
        return False
    from rewards.math_compare import percentage, same

    sides = _one_case(gold_object, pred_object)
    return same(*(percentage(side) if text.percent else side for side, text in zip(sides, (gold, pred), strict=True)))


def _parse_reference(reference: str, gold: MathText) -> object:
    if gold.words:
        if spoken_number(gold.words):
            raise Unscorable(f"reference {reference[:80]!r} does not parse as mathematics: write the number in digits")
        return None
    parsed = _parse(gold.formula) if gold.formula else None
    if parsed is None:
        raise Unscorable(f"reference {reference[:80]!r} does not parse as mathematics")
    return parsed


def _same_words(gold: MathText, pred: MathText) -> bool:
    one, other = (side.words or side.formula.casefold() for side in (gold, pred))
    return bool(one) and one == other


def _other_kind(one: str, other: str) -> bool:
    """A set in braces is not a tuple or interval in brackets; math-verify takes {1,2} for (1,2)."""
    kinds = {_outer(one), _outer(other)}
    return kinds in ({"set", "parenthesis"}, {"set", "bracket"})


def _outer(formula: str) -> str | None:
    """What encloses the whole formula, if that is one pair of brackets around a list."""
    opening = next((mark for mark in _OUTER if formula.startswith(mark)), None)
    if opening is None or "," not in formula:
        return None
    depth = 0
    plain = formula.replace("\\{", "(").replace("\\}", ")")
    for position, character in enumerate(plain):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return _OUTER[opening] if position == len(plain) - 1 else None
    return None


def _parse(formula: str) -> object | None:
    """The sympy object of a formula, None where it is not mathematics."""
    from latex2sympy2_extended import NormalizationConfig, normalize_latex

    if _nesting(formula) > _MAX_NESTING:
        raise RecursionError
    bare_list = _CURLY_LIST.fullmatch(formula)
    formula = bare_list[1] if bare_list else formula
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="all", equations=False
    )
    text = normalize_latex(formula, config)
    parsed = _read_latex(text)
    if parsed is None and "," not in text and ";" not in text:
        parts = _LAST_EQUALS.split(text)
        parsed = _read_latex(parts[-1]) if len(parts) > 1 else None
    return parsed


def _read_latex(text: str) -> object | None:
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from math_verify.grader import should_treat_as_complex
    from sympy import Basic, MatrixBase, nan, zoo

    try:
        parsed = latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # the parser's and sympy's refusals have no common type
        return None
    return parsed if isinstance(parsed, (Basic, MatrixBase)) and parsed not in (nan, zoo) else None


def _nesting(formula: str) -> int:
    deepest = depth = 0
    for character in formula:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _one_case(gold: Any, pred: Any) -> tuple[Any, Any]:
    """X is x unless a letter occurs in both cases (R - r)."""
    from sympy import Symbol

    symbols = [getattr(side, "free_symbols", set()) for side in (gold, pred)]
    if not all(isinstance(symbol, Symbol) for side in symbols for symbol in side):
        return gold, pred
    lower = [{symbol: symbol.name.lower() for symbol in side} for side in symbols]
    mixed = any(len(set(side.values())) < len(side) for side in lower)
    if mixed or {symbol.name for symbol in symbols[0]} == {symbol.name for symbol in symbols[1]}:
        return gold, pred
    changes = [{symbol: Symbol(name, real=symbol.is_real) for symbol, name in side.items()} for side in lower]
    return gold.xreplace(changes[0]), pred.xreplace(changes[1])
