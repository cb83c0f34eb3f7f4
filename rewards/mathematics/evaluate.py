"""Values of sympy expressions at a point: exact where they are rational, else to as many digits as asked for.

Expressions are never rebuilt: sympy would write out 7^(10^10) in doing so. A number that is too large raises `NoValue`
in exact arithmetic and `Unscorable` in approximate arithmetic.
"""

import contextlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from itertools import product
from math import comb, factorial
from typing import Any, Generic, TypeVar, cast

import sympy
from mpmath import mp
from sympy import Basic, Expr

from rewards.result import Unscorable

MpNumber = Any
"""A real or complex number of mpmath, whose own types cannot be named: its classes are made at run time."""
Number = TypeVar("Number")
Point = Mapping[Basic, Fraction]
"""The value of each symbol."""
MAX_BITS = 1 << 16  # largest size of an exact number
COARSE_DIGITS = 30  # precision where only sympy's own numerics evaluate: integrals, limits, sums without end
_MAX_FACTORIAL = 5_000
_MAX_TERMS = 2_000  # a sum or product with more terms is not carried out
_MAX_ARGUMENT_BITS = 4_000  # exp, sin and powers take time and memory by the size of their argument

_FUNCTIONS: dict[type, Callable[..., MpNumber]] = {
    getattr(sympy, name): getattr(mp, {"Abs": "fabs", "conjugate": "conj"}.get(name, name))
    for name in (
        *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"),
        *("sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh", "exp", "gamma", "factorial", "binomial"),
        *("Abs", "conjugate", "re", "im", "arg", "sign"),
    )
}
_SATURATED = (sympy.tanh, sympy.coth)
_ROUNDED: dict[type, Callable[[MpNumber], MpNumber]] = {sympy.floor: mp.floor, sympy.ceiling: mp.ceil}


class NoValue(ValueError):
    """No finite value, or none that this kind of arithmetic can give."""


class _Arithmetic(ABC, Generic[Number]):
    """The walk over an expression that both kinds of arithmetic share."""

    def __init__(self, point: Point) -> None:
        self._point = dict(point)

    def of(self, expr: Basic) -> Number:
        if isinstance(expr, sympy.Rational):
            return self.number(Fraction(int(expr.p), int(expr.q)))
        if isinstance(expr, sympy.Float):
            return self.number(Fraction(str(expr)))  # as it was written, not its nearest binary number
        if isinstance(expr, sympy.Symbol) and expr in self._point:
            return self.number(self._point[expr])
        if isinstance(expr, sympy.Add):
            return self.add([self.of(term) for term in expr.args])
        if isinstance(expr, sympy.Mul):
            return self.multiply([self.of(factor) for factor in expr.args])
        if isinstance(expr, sympy.Pow):
            return self.power(self.of(expr.base), self.of(expr.exp), expr.exp)
        if isinstance(expr, sympy.UnevaluatedExpr):
            return self.of(expr.args[0])
        if isinstance(expr, (sympy.Sum, sympy.Product)) and (indices := self._indices(expr)) is not None:
            return self._carry_out(expr, indices)
        return self.function(expr)

    @abstractmethod
    def number(self, value: Fraction) -> Number: ...

    @abstractmethod
    def add(self, terms: list[Number]) -> Number: ...

    @abstractmethod
    def multiply(self, factors: list[Number]) -> Number: ...

    @abstractmethod
    def power(self, base: Number, exponent: Number, written: Basic) -> Number: ...

    @abstractmethod
    def function(self, expr: Basic) -> Number: ...

    def _indices(self, expr: sympy.Sum | sympy.Product) -> list[range] | None:
        """Return the ranges of a sum's indices; None where they are not whole, too many, or depend on each other."""
        ranges, terms = [], 1
        for limit in expr.limits:
            try:
                ends = [Exact(self._point).of(bound) for bound in limit[1:]]
            except NoValue:
                return None
            if len(ends) != 2 or any(end.denominator != 1 for end in ends) or ends[1] - ends[0] > _MAX_TERMS:
                return None
            ranges.append(range(int(ends[0]), int(ends[1]) + 1))
            terms *= max(1, len(ranges[-1]))
        return ranges if terms <= _MAX_TERMS else None

    def _carry_out(self, expr: sympy.Sum | sympy.Product, indices: list[range]) -> Number:
        before, values = dict(self._point), []
        names = [limit[0] for limit in expr.limits]
        for chosen in product(*indices):
            self._point.update(zip(names, map(Fraction, chosen), strict=True))
            values.append(self.of(expr.function))
        self._point = before
        return self.add(values) if isinstance(expr, sympy.Sum) else self.multiply(values)


class Exact(_Arithmetic[Fraction]):
    """Rational numbers of at most `MAX_BITS`; `NoValue` for all else."""

    def number(self, value: Fraction) -> Fraction:
        if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
            raise NoValue
        return value

    def add(self, terms: list[Fraction]) -> Fraction:
        return reduce(lambda total, term: self.number(total + term), terms, Fraction(0))

    def multiply(self, factors: list[Fraction]) -> Fraction:
        return reduce(lambda total, factor: self.number(total * factor), factors, Fraction(1))

    def power(self, base: Fraction, exponent: Fraction, written: Basic) -> Fraction:
        if base in (0, 1) and exponent > 0:
            return base
        if exponent.denominator != 1 and base > 0:
            base, exponent = self._root(base, exponent.denominator), Fraction(exponent.numerator)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or bits * abs(exponent) > MAX_BITS or (base == 0 and exponent < 0):
            raise NoValue
        return base ** int(exponent)

    def _root(self, base: Fraction, degree: int) -> Fraction:
        if degree > MAX_BITS:
            raise NoValue
        roots = [sympy.integer_nthroot(part, degree) for part in (base.numerator, base.denominator)]
        if not all(is_whole for _, is_whole in roots):
            raise NoValue
        return Fraction(int(roots[0][0]), int(roots[1][0]))

    def function(self, expr: Basic) -> Fraction:
        if expr.is_Atom or not isinstance(expr, (sympy.Abs, sympy.factorial, sympy.binomial, sympy.Mod, *_ROUNDED)):
            raise NoValue
        one, *rest = [self.of(argument) for argument in expr.args]
        if isinstance(expr, sympy.Abs):
            return abs(one)
        if isinstance(expr, sympy.floor):
            return Fraction(one.__floor__())
        if isinstance(expr, sympy.ceiling):
            return Fraction(one.__ceil__())
        if isinstance(expr, sympy.Mod) and rest[0] != 0:
            return one % rest[0]
        whole = all(number.denominator == 1 and number >= 0 for number in (one, *rest))
        if isinstance(expr, sympy.factorial) and whole and one <= _MAX_FACTORIAL:
            return Fraction(factorial(int(one)))
        if isinstance(expr, sympy.binomial) and whole:
            few = min(rest[0], one - rest[0])
            if few * one.numerator.bit_length() <= MAX_BITS:
                return Fraction(comb(int(one), int(rest[0])))
        raise NoValue


def exactly(expr: Basic) -> Fraction | None:
    """Return the rational number that a constant is, None where it is none or too long."""
    try:
        return Exact({}).of(expr)
    except NoValue:
        return None


class Approximate(_Arithmetic[MpNumber]):
    """Real and complex numbers to `mp.dps` digits, which the caller sets.

    `low` and `high` are the least and greatest exponent of 2 that any value on the way had; `absorbed` is the greatest
    distance of such exponents among the terms of one sum. Together they say how many digits it takes to lose no term.
    `coarse` says that some part could be computed to `COARSE_DIGITS` only, `real` that no part was a complex number.
    With `rounding`, every decimal is larger by half a unit of its last place.
    """

    def __init__(self, point: Point, rounding: bool = False) -> None:
        super().__init__(point)
        self.low = self.high = self.absorbed = 0
        self.coarse = False
        self.real = True
        self._rounding = rounding

    def of(self, expr: Basic) -> MpNumber:
        value = super().of(expr)
        if not mp.isfinite(value):
            raise NoValue
        if self._rounding and isinstance(expr, sympy.Float):
            value += self.number(rounding_of(expr))
        self.real = self.real and not mp.im(value)
        if value:
            size = mp.mag(value)
            self.low, self.high = min(self.low, size), max(self.high, size)
        return value

    def number(self, value: Fraction) -> MpNumber:
        return mp.mpf(value.numerator) / value.denominator

    def add(self, terms: list[MpNumber]) -> MpNumber:
        sizes = [mp.mag(term) for term in terms if term]
        self.absorbed = max(self.absorbed, max(sizes) - min(sizes)) if sizes else self.absorbed
        return sum(terms, self.number(Fraction(0)))

    def multiply(self, factors: list[MpNumber]) -> MpNumber:
        return reduce(operator.mul, factors, self.number(Fraction(1)))

    def power(self, base: MpNumber, exponent: MpNumber, written: Basic) -> MpNumber:
        """The cube root of -8 is -2: an odd root of a negative number is the real one, as schools have it."""
        if not base:
            if mp.re(exponent) < 0:
                raise NoValue
            return mp.mpf(not exponent)
        _refuse_immense(exponent, mp.mag(base))
        if not mp.im(base) and mp.re(base) < 0 and not written.free_symbols:
            share = exactly(written)
            if share is not None and share.denominator > 1 and share.denominator % 2:
                return (-1) ** (share.numerator % 2) * mp.power(-mp.re(base), exponent)
        return mp.power(base, exponent)

    def function(self, expr: Basic) -> MpNumber:
        kind = type(expr)
        if isinstance(expr, sympy.NumberSymbol):
            return expr._to_mpmath(mp.prec)
        if expr is sympy.I:
            return mp.j
        if kind is sympy.log:
            values = [mp.log(self._nonzero(argument)) for argument in expr.args]
            if len(values) == 2 and not values[1]:
                raise NoValue
            return values[0] / values[1] if len(values) == 2 else values[0]
        if kind in _FUNCTIONS:
            values = [self.of(argument) for argument in expr.args]
            _refuse_immense(*values)
            if kind in _SATURATED:  # tanh(100) differs from 1 by e^-200
                self.low = min(self.low, -3 * int(abs(mp.re(values[0]))))
            try:
                return _FUNCTIONS[kind](*values)
            except (ValueError, ZeroDivisionError):  # a pole
                raise NoValue from None
        if kind in _ROUNDED:
            return self._rounded(self.of(expr.args[0]), _ROUNDED[kind])
        if kind is sympy.Mod:
            value, divisor = (self.of(argument) for argument in expr.args)
            if not divisor:
                raise NoValue
            return value - divisor * self._rounded(value / divisor, mp.floor)
        return self._by_sympy(expr)

    def _see_constants(self, expr: Basic) -> None:
        """Measure the numbers inside of what sympy evaluates: 1 + 10^-40 is 1 to the digits that it computes."""
        for part in sympy.preorder_traversal(expr):
            if isinstance(part, sympy.Rational):
                self.low = min(self.low, -int(part.q).bit_length())
                self.high = max(self.high, int(part.p).bit_length())
            elif isinstance(part, sympy.Pow) and not part.free_symbols:
                with contextlib.suppress(NoValue):
                    self.of(part)

    def _nonzero(self, expr: Basic) -> MpNumber:
        value = self.of(expr)
        if not value:
            raise NoValue
        return value

    def _rounded(self, value: MpNumber, direction: Callable[[MpNumber], MpNumber]) -> MpNumber:
        """Round. A value within half of the digits of a whole number is taken for it: log_2(8) may come out below 3."""
        if mp.mag(value) > mp.prec // 2:
            raise Unscorable("a number is too large to be rounded to a whole one")
        whole = mp.nint(value)
        return whole if abs(value - whole) < mp.mpf(2) ** (-mp.prec // 2) else direction(value)

    def _by_sympy(self, expr: Basic) -> MpNumber:
        self.coarse = True
        self._see_constants(expr)
        if self._rounding:
            expr = expr.xreplace(
                {one: one + sympy.Rational(*_ratio(rounding_of(one))) for one in expr.atoms(sympy.Float)}
            )
        point: dict[Basic, Basic | float] = {
            symbol: sympy.Rational(value.numerator, value.denominator) for symbol, value in self._point.items()
        }
        try:
            value = sympy.N(cast(Expr, expr).evalf(COARSE_DIGITS, subs=point) if point else expr, COARSE_DIGITS)
            parts = value.as_real_imag()
        except (MemoryError, RecursionError):
            raise
        except Exception:  # sympy's refusals have no common type
            raise NoValue from None
        if not all(part.is_Number and part.is_finite for part in parts):
            raise NoValue
        real, imaginary = (part._to_mpmath(mp.prec) for part in parts)
        return mp.mpc(real, imaginary) if imaginary else mp.mpf(real)


def rounding_of(decimal: sympy.Float) -> Fraction:
    """Return half a unit of the last place that a decimal was written with, at most half of the sixth place."""
    places = len(str(decimal).partition("e")[0].partition(".")[2].rstrip("0"))
    return min(Fraction(1, 2 * 10 ** max(6, places)), abs(Fraction(str(decimal))) / 20_000)


def _ratio(value: Fraction) -> tuple[int, int]:
    return value.numerator, value.denominator


def _refuse_immense(*values: MpNumber) -> None:
    if any(mp.mag(value) > _MAX_ARGUMENT_BITS for value in values if value):
        raise Unscorable("a number is too large to be computed")
