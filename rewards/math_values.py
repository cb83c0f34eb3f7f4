"""Equality of sympy expressions by their values: exact for rational numbers, to 30 digits at fixed points otherwise."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import sympy
from sympy import S, Symbol
from sympy.concrete.expr_with_limits import ExprWithLimits

from rewards.plain_numbers import PlainNumber, same_number

_DIGITS = 30
_MANY_DIGITS = 150
_CLOSE = sympy.Float("1e-22", _DIGITS)  # relative; what is left of 30 digits after ordinary cancellation
_CLOSE_DECIMAL = sympy.Float("2e-6", _DIGITS)  # relative; for expressions that hold rounded decimals
# Neither integers nor simple fractions, so that periodic and stepwise functions differ somewhere; both signs.
_POINTS = ["0.73908513321", "2.23703126543", "-1.61180339887", "5.43656365691", "-0.36787944117", "11.0901699437"]
_COUNTS = ["5", "8", "3", "12", "7", "10"]  # for sums and products whose ends are symbols
_ENOUGH = 3


def equal_expressions(one: Any, other: Any) -> bool:
    """Whether two expressions have the same value for every value of their symbols.

    Symbols take the values of `_POINTS`, shifted for each symbol. A point where either side has no finite value does
    not count; if too few are left, `simplify` decides. MemoryError and RecursionError go up to the caller.
    """
    if one == other:
        return one not in (S.NaN, S.ComplexInfinity)
    if _is_infinite(one) or _is_infinite(other):
        return False
    if isinstance(one, sympy.Rational) and isinstance(other, sympy.Rational):
        return False
    symbols = sorted(_symbols(one) | _symbols(other), key=str)
    decimal = bool(_atoms(one, sympy.Float) or _atoms(other, sympy.Float))
    if not symbols:
        return _equal_constants(one, other, decimal)
    agreed = 0
    counted = bool(_atoms(one, ExprWithLimits) or _atoms(other, ExprWithLimits))
    for point in _points(symbols, _COUNTS if counted else _POINTS):
        values = [_value(side, point) for side in (one, other)]
        if None in values:
            continue
        if not _close(values[0], values[1], decimal):
            return False
        agreed += 1
        if agreed == _ENOUGH:
            return True
    return _simplifies_to_zero(one, other)


def is_constant_multiple(one: Any, other: Any, positive: bool = False) -> bool:
    """Whether one = c * other with a real constant c that is not zero (above zero if `positive`)."""
    symbols = sorted(_symbols(one) | _symbols(other), key=str)
    ratios = []
    for point in _points(symbols) if symbols else iter([{}]):
        values = [_value(side, point) for side in (one, other)]
        if None in values:
            continue
        if abs(values[0]) < _CLOSE or abs(values[1]) < _CLOSE:
            if (abs(values[0]) < _CLOSE) != (abs(values[1]) < _CLOSE):
                return False
            continue
        ratios.append(values[0] / values[1])
        if len(ratios) == _ENOUGH:
            break
    if not ratios or (symbols and len(ratios) < _ENOUGH):
        return False
    decimal = bool(_atoms(one, sympy.Float) or _atoms(other, sympy.Float))
    first = ratios[0]
    if abs(sympy.im(first)) > _CLOSE * abs(first) or (positive and sympy.re(first) <= 0):
        return False
    return all(_close(first, ratio, decimal) for ratio in ratios[1:])


def _equal_constants(one: Any, other: Any, decimal: bool) -> bool:
    values = [_value(side, {}) for side in (one, other)]
    if None in values:
        return _simplifies_to_zero(one, other)
    if not decimal:
        return _close(values[0], values[1], decimal) and _equal_to_many_digits(one, other)
    if any(value.is_real is not True for value in values):
        return _close(values[0], values[1], decimal)
    numbers = [PlainNumber(_fraction(side, value), True) for side, value in zip((one, other), values, strict=True)]
    return same_number(*numbers)


def _equal_to_many_digits(one: Any, other: Any) -> bool:
    """10^40 + 1 and 10^40 agree to 30 digits."""
    try:
        values = [sympy.N(side, _MANY_DIGITS) for side in (one, other)]
        gap, noise = abs(values[0] - values[1]), sympy.Float(10, _MANY_DIGITS) ** (20 - _MANY_DIGITS)
        return bool(gap <= noise * max(abs(values[0]), abs(values[1])) or gap <= noise)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy's refusals have no common type
        return True


def _fraction(side: Any, value: Any) -> Fraction:
    if isinstance(side, sympy.Rational):
        return Fraction(int(side.p), int(side.q))
    return Fraction(str(value))


def _close(one: Any, other: Any, decimal: bool) -> bool:
    scale = max(abs(one), abs(other))
    # Cancellation to zero (sin 2x - 2 sin x cos x) leaves noise far below the size of what was added up.
    return bool(
        scale < sympy.Float("1e-25", _DIGITS) or abs(one - other) <= (_CLOSE_DECIMAL if decimal else _CLOSE) * scale
    )


def _points(symbols: list[Symbol], numbers: Sequence[str] = _POINTS) -> Iterator[dict[Symbol, Any]]:
    step = S.One if numbers is _COUNTS else sympy.Rational(1, 7)
    for index in range(len(numbers)):
        yield {
            symbol: sympy.Rational(numbers[(index + shift) % len(numbers)]) + shift * step
            for shift, symbol in enumerate(symbols)
        }


def _value(expr: Any, point: dict[Symbol, Any]) -> Any:
    """A finite number, or None where there is none (a pole, an unknown function, a sum with an open end)."""
    try:
        value = expr.evalf(_DIGITS, subs=point) if point else expr.evalf(_DIGITS)
        if not value.is_Number and not (value.is_Add or value.is_Mul or value == S.ImaginaryUnit):
            return None
        value = sympy.N(value, _DIGITS)
        finite = value.is_number and value.is_finite and not value.free_symbols
        return value if finite and sympy.im(value).is_Number and sympy.re(value).is_Number else None
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy's refusals have no common type
        return None


def _simplifies_to_zero(one: Any, other: Any) -> bool:
    try:
        return sympy.simplify(one - other).is_zero is True
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy's refusals have no common type
        return False


def _symbols(expr: Any) -> set[Any]:
    return {symbol for symbol in getattr(expr, "free_symbols", set()) if isinstance(symbol, Symbol)}


def _atoms(expr: Any, kind: type) -> Any:
    return expr.atoms(kind) if hasattr(expr, "atoms") else ()


def _is_infinite(expr: Any) -> bool:
    return expr in (S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)
