"""Equality of sympy expressions by their values: exact for rational numbers, else to as many digits as it takes.

"Equal" is said only of values computed to more digits than separate the largest and the smallest number on the way,
so that no term can hide behind another (10^40 + 1 is not 10^40). Where that takes too many digits, values that differ
are different and others cannot be judged: `Unscorable`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import sympy
from mpmath import mp
from mpmath.libmp import to_rational
from sympy import Basic, Expr, MatrixBase, S, Symbol
from sympy.concrete.expr_with_limits import ExprWithLimits

from rewards.mathematics.evaluate import COARSE_DIGITS, Approximate, MpNumber, NoValue, Point, exactly
from rewards.mathematics.plain_numbers import PlainNumber, same_number
from rewards.result import Unscorable

_QUICK_DIGITS = 40  # a first look, which also measures how many digits it takes
_MAX_SPAN = 1_000  # decimal exponents between the largest and the smallest number on the way
_BITS_PER_DIGIT = 3.3219280948873626
_CLOSE_DECIMAL = 2e-6  # largest distance of expressions that hold rounded decimals, by the largest number on the way
_MAX_ABSORBED_BITS = 7  # `_CLOSE_DECIMAL` compares less than four digits of a term that is smaller by more bits
_COARSE_SPAN, _COARSE_KNOWN = 10, COARSE_DIGITS - 10
_TOO_FAR_APART = "numbers too different in size to be compared"
# Neither integers nor simple fractions, so that periodic and stepwise functions differ somewhere; both signs.
_POINTS = [
    *("0.73908513321", "2.23703126543", "-1.61180339887", "-3.27951044813", "5.43656365691", "-0.36787944117"),
    *("11.0901699437", "0.04142135623", "-0.00729735257", "-2.71228182846"),
]
# Points where some numbers are too large to be judged, which then do not count; factorials are not computed there.
_FAR = ["-41.0270110237", "137.035999084", "98765.4321", "-76543.2109", "314159265.359", "-271828182.846"]
_SLOW = (sympy.factorial, sympy.gamma, sympy.binomial)
_COUNTS = ["5", "8", "3", "12", "7", "10"]  # values of symbols that are the ends of sums and products
_ENOUGH = 3

MathObject = Basic | MatrixBase
"""A formula as sympy has it; its matrices of elements are no `Basic`."""


@dataclass(frozen=True)
class _Values:
    """The values of several expressions at one point; exponents are decimal."""

    numbers: list[MpNumber]
    gap: MpNumber  # first minus last
    span: int  # how far the exponents of the largest and the smallest number on the way are apart
    high: int  # exponent of the largest number on the way
    absorbed: bool  # a term of a sum was too small beside the others to be seen in it
    coarse: bool  # some part was computed to `COARSE_DIGITS` only
    real: bool  # no complex number occurred


def equal_expressions(one: MathObject, other: MathObject) -> bool:
    """Tell whether two expressions have the same value for every value of their symbols.

    Symbols take the values of `_POINTS`, shifted for each symbol. A point where either side has no finite value does
    not count; if too few are left, `simplify` decides. `Unscorable` where numbers are too large to tell; MemoryError
    and RecursionError go up to the caller.
    """
    if one == other:
        return one not in (S.NaN, S.ComplexInfinity)
    if not isinstance(one, sympy.Expr) or not isinstance(other, sympy.Expr) or _is_infinite(one) or _is_infinite(other):
        return False
    symbols = _symbols(one, other)
    decimal = _has_decimals(one, other)
    if not symbols:
        return _equal_constants(one, other, decimal)
    return _equal_functions(one, other, symbols, False) or (decimal and _equal_functions(one, other, symbols, True))


def _equal_functions(one: Expr, other: Expr, symbols: list[Symbol], decimal: bool) -> bool:
    """Tell whether two expressions agree at all points; with `decimal`, apart from the rounding of decimals.

    The points have both signs and several magnitudes. Points at which both sides take complex numbers on the way do not
    count where there are others: log x^3 is 3 log x, but log x^2 is not 2 log x, which has no real value below zero.
    """
    agreed, hidden = 0, False
    counted = bool(one.atoms(ExprWithLimits) or other.atoms(ExprWithLimits))
    points = list(_points(symbols, _COUNTS if counted else _POINTS))
    real = [point for point in points if _is_real(one, point) or _is_real(other, point)]
    for point in real or points:
        try:
            equal = _close_decimals(one, other, point) if decimal else _equal_at(one, other, point)
        except NoValue:
            continue
        hidden |= equal is None
        if equal is False:
            return False
        agreed += equal is True
    if agreed >= _ENOUGH:
        near = counted or decimal or one.has(*_SLOW) or other.has(*_SLOW)
        return near or not any(_differ_far_away(one, other, point) for point in _points(symbols, _FAR))
    if hidden and not agreed:
        raise Unscorable(_TOO_FAR_APART)
    return hidden or _simplifies_to_zero(one, other)


def _differ_far_away(one: Expr, other: Expr, point: Point) -> bool:
    try:
        return (_is_real(one, point) or _is_real(other, point)) and _equal_at(one, other, point) is False
    except (NoValue, Unscorable):
        return False


def _is_real(expr: Expr, point: Point) -> bool:
    """Tell whether a value is real, with all that is computed on the way."""
    if expr.has(S.ImaginaryUnit):
        return False
    try:
        return _evaluate([expr], point, _QUICK_DIGITS).real
    except NoValue:
        return False


def is_constant_multiple(one: Expr, other: Expr, positive: bool = False) -> bool:
    """Tell whether one = c * other with a real constant c that is not zero (above zero if `positive`)."""
    symbols = _symbols(one, other)
    looks = []
    for point in _points(symbols) if symbols else iter([{}]):
        try:
            looks.append((point, _evaluate((one, other), point, _QUICK_DIGITS)))
        except NoValue:
            continue
    enough = _ENOUGH if symbols else 1
    if _proportional(one, other, looks, positive, enough, decimal=False):
        return True
    if not _has_decimals(one, other):
        return False
    seen = [(point, quick) for point, quick in looks if not quick.absorbed]
    equal = _proportional(one, other, seen or looks, positive, 1 if seen else enough, decimal=True)
    if equal and not seen:
        raise Unscorable(_TOO_FAR_APART)
    return equal


def _proportional(
    one: Expr, other: Expr, looks: list[tuple[Point, _Values]], positive: bool, enough: int, decimal: bool
) -> bool:
    span = max((quick.span for _, quick in looks), default=0)
    coarse = any(quick.coarse for _, quick in looks)
    if span > (_COARSE_SPAN if coarse else _MAX_SPAN):
        raise Unscorable(_TOO_FAR_APART)
    known = _COARSE_KNOWN if coarse else 6 * span + 30
    # Pairs of numbers with the same ratio, each with the decimal exponent of the largest number on the way to them.
    ratios: list[tuple[MpNumber, MpNumber, int]] = []
    with mp.workdps(2 * known + 20):
        for point, _ in looks:
            values = _evaluate((one, other), point, mp.dps)
            zero = [abs(number) <= mp.mpf(10) ** (values.high - known) for number in values.numbers]
            if zero[0] != zero[1]:
                return False
            ratios += [] if zero[0] else [(*values.numbers, values.high)]
        if len(ratios) < enough:
            return False
        first, second, high = ratios[0]
        ratio = first / second
        if abs(mp.im(ratio)) > mp.mpf(10) ** -20 * abs(ratio) or (positive and mp.re(ratio) <= 0):
            return False
        for top, bottom, higher in ratios[1:]:
            gap = abs(first * bottom - top * second)
            if gap > (_CLOSE_DECIMAL * abs(first * bottom) if decimal else mp.mpf(10) ** (high + higher - known)):
                return False
    return True


def refuse_immense(*objects: MathObject) -> None:
    """Raise `Unscorable` where sympy would write out a power, factorial or the like that is too large or too small."""
    for one in objects:
        for constant in one.atoms(sympy.Pow, sympy.factorial, sympy.binomial, sympy.exp):
            if constant.free_symbols:
                continue
            try:
                span = _evaluate([constant], {}, _QUICK_DIGITS).span
            except NoValue:
                continue
            if span > _MAX_SPAN:
                raise Unscorable(_TOO_FAR_APART)


def _equal_constants(one: Expr, other: Expr, decimal: bool) -> bool:
    left, right = exactly(one), exactly(other)
    try:
        if left is None or right is None:
            if not decimal or not _are_real(one, other):
                return _equal_at(one, other, {})
            left, right = _fraction(one), _fraction(other)
    except NoValue:
        return _simplifies_to_zero(one, other)
    return same_number(PlainNumber(left, decimal), PlainNumber(right, decimal))


def _are_real(*sides: Expr) -> bool:
    return all(not mp.im(_evaluate([side], {}, _QUICK_DIGITS).numbers[0]) for side in sides)


def _fraction(expr: Expr) -> Fraction:
    """Return the value of a real constant, to more digits than two decimals may differ by."""
    quick = _evaluate([expr], {}, _QUICK_DIGITS)
    if quick.span > _MAX_SPAN:
        raise Unscorable(_TOO_FAR_APART)
    number = _evaluate([expr], {}, _QUICK_DIGITS + 2 * quick.span).numbers[0]
    return Fraction(*to_rational(mp.re(number)._mpf_))


def _equal_at(one: Expr, other: Expr, point: Point) -> bool:
    quick = _evaluate((one, other), point, _QUICK_DIGITS)
    if quick.span <= _COARSE_SPAN and _apart(quick, _COARSE_KNOWN):
        return False
    if quick.coarse or quick.span > _MAX_SPAN:
        if quick.span > _COARSE_SPAN and not _surely_apart(one, other, point):
            raise Unscorable(_TOO_FAR_APART)
        return quick.span <= _COARSE_SPAN
    known = 3 * quick.span + 30
    # Twice as many digits: the root of what should be zero is known to half of them.
    return not _apart(_evaluate((one, other), point, 2 * known + 20), known)


def _apart(values: _Values, known: int) -> bool:
    """Tell whether two numbers differ by more than what is unknown when `known` digits of the largest number are."""
    with mp.workdps(_QUICK_DIGITS):
        return abs(values.gap) > mp.mpf(10) ** (values.high - known)


def _surely_apart(one: Expr, other: Expr, point: Point) -> bool:
    """Tell whether the values differ, and by the same when computed to more digits."""
    rough, fine = (_evaluate((one, other), point, digits) for digits in (2 * _QUICK_DIGITS, 4 * _QUICK_DIGITS))
    scale = max(map(abs, fine.numbers))
    return abs(fine.gap) > scale / 10**10 and abs(fine.gap - rough.gap) * 1000 < abs(fine.gap)


def _close_decimals(one: Expr, other: Expr, point: Point) -> bool | None:
    """Tell whether decimals agree; None where they do, but a part of them is too small to be seen."""
    values = _evaluate((one, other), point, _QUICK_DIGITS)
    if abs(values.gap) > min(_CLOSE_DECIMAL * mp.mpf(10) ** values.high, _roundings(one, other, point, values)):
        return False
    return None if values.absorbed else True


def _roundings(one: Expr, other: Expr, point: Point, values: _Values) -> MpNumber:
    """Return by how much the rounding of its decimals may change a side, the larger of both."""
    with mp.workdps(_QUICK_DIGITS):
        arithmetic = Approximate(point, rounding=True)
        moved = [abs(arithmetic.of(side) - number) for side, number in zip((one, other), values.numbers, strict=True)]
        return max(moved)


def _evaluate(sides: Sequence[Basic], point: Point, digits: int) -> _Values:
    with mp.workdps(digits):
        arithmetic = Approximate(point)
        numbers = [arithmetic.of(side) for side in sides]
        low, high = (int(bits / _BITS_PER_DIGIT) for bits in (arithmetic.low, arithmetic.high))
        absorbed = arithmetic.absorbed > _MAX_ABSORBED_BITS
        gap = numbers[0] - numbers[-1]
        return _Values(numbers, gap, high - low, high + 1, absorbed, arithmetic.coarse, arithmetic.real)


def _points(symbols: list[Symbol], numbers: Sequence[str] = _POINTS) -> Iterator[Point]:
    step = Fraction(1) if numbers is _COUNTS else Fraction(1, 7)
    for index in range(len(numbers)):
        yield {
            symbol: Fraction(numbers[(index + shift) % len(numbers)]) + shift * step
            for shift, symbol in enumerate(symbols)
        }


def _simplifies_to_zero(one: Expr, other: Expr) -> bool:
    refuse_immense(one, other)
    try:
        return sympy.simplify(one - other).is_zero is True
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy's refusals have no common type
        return False


def _symbols(*sides: Expr) -> list[Symbol]:
    return sorted({symbol for side in sides for symbol in side.free_symbols if isinstance(symbol, Symbol)}, key=str)


def _has_decimals(*sides: Expr) -> bool:
    return any(side.atoms(sympy.Float) for side in sides)


def _is_infinite(expr: object) -> bool:
    return expr in (S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)
