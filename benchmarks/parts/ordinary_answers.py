"""Answers as models write them, with references: seeded, no two pairs equal, right and wrong ones in every kind."""

import random
from collections.abc import Callable
from fractions import Fraction

Pair = tuple[str, str]  # answer, reference


def _signed(number: int) -> str:
    return f"+{number}" if number >= 0 else str(number)


def _fraction(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _integers(rng: random.Random, right: bool) -> Pair:
    number = rng.randint(-9999, 99999)
    shown = number if right else number + rng.randint(1, 9)
    return rng.choice([str(shown), f"{shown}.0"]), str(number)


def _decimals(rng: random.Random, right: bool) -> Pair:
    number = rng.randint(1, 99999)
    shown = number if right else number + rng.randint(1, 99)
    return f"{shown / 100:.2f}", f"{number / 100:.3f}"


def _thousands(rng: random.Random, right: bool) -> Pair:
    number = rng.randint(1000, 9_999_999)
    return f"{number if right else number + rng.randint(1, 9):,}", str(number)


def _units(rng: random.Random, right: bool) -> Pair:
    number = rng.randint(2, 9999)
    unit = rng.choice(["cm", "m", "kg", "km"])
    return f"{number if right else number + 1}\\text{{ {unit}}}", f"{number}\\text{{ {unit}}}"


def _percent(rng: random.Random, right: bool) -> Pair:
    number = rng.randint(1, 9999)
    return f"{(number if right else number + 3) / 10:g}\\%", f"{number / 10:g}\\%"


def _reduced(rng: random.Random, right: bool) -> Pair:
    value = Fraction(rng.randint(1, 60), rng.randint(2, 60)) * rng.choice([1, -1])
    factor = rng.randint(2, 9)
    top = value.numerator * factor + (0 if right else rng.choice([-1, 1]))
    return f"{'-' if top < 0 else ''}\\frac{{{abs(top)}}}{{{value.denominator * factor}}}", _fraction(value)


def _fraction_as_decimal(rng: random.Random, right: bool) -> Pair:
    denominator = rng.choice([2, 4, 5, 8, 16, 20, 25, 40])
    top = rng.randint(1, 400)
    while top % denominator == 0:
        top += 1
    return f"{(top if right else top + 1) / denominator}", f"\\frac{{{top}}}{{{denominator}}}"


def _surd(rng: random.Random, right: bool) -> Pair:
    outside, inside = rng.randint(2, 15), rng.choice([2, 3, 5, 6, 7, 10, 11, 13])
    under = outside * outside * inside + (0 if right else rng.choice([1, 2, -1]))
    return f"\\sqrt{{{under}}}", f"{outside}\\sqrt{{{inside}}}"


def _rationalised(rng: random.Random, right: bool) -> Pair:
    top, inside = rng.randint(1, 30), rng.choice([2, 3, 5, 6, 7, 10, 11, 13, 14, 15])
    return (
        f"\\frac{{{top}}}{{\\sqrt{{{inside}}}}}",
        f"\\frac{{{top if right else top + 1}\\sqrt{{{inside}}}}}{{{inside}}}",
    )


def _factored(rng: random.Random, right: bool) -> Pair:
    a, b = rng.choice([-1, 1]) * rng.randint(1, 12), rng.choice([-1, 1]) * rng.randint(1, 12)
    letter = rng.choice("xyt")
    middle = a + b + (0 if right else 1)
    return f"({letter}{_signed(a)})({letter}{_signed(b)})", f"{letter}^2{_signed(middle)}{letter}{_signed(a * b)}"


def _reordered(rng: random.Random, right: bool) -> Pair:
    a, b, c = (rng.randint(2, 30) for _ in range(3))
    return f"{c if right else c + 1}+{b}x+{a}x^2", f"{a}x^2+{b}x+{c}"


def _interval(rng: random.Random, right: bool) -> Pair:
    low = rng.randint(-30, 30)
    high = low + rng.randint(1, 20)
    left, end = rng.choice("(["), rng.choice(")]")
    shown = high * 2 + (0 if right else 1)
    return f"{left}{low}, \\frac{{{shown}}}{{2}}{end}", f"{left}{low},{high}{end}"


def _union(rng: random.Random, right: bool) -> Pair:
    low = rng.randint(-30, 30)
    high = low + rng.randint(1, 20)
    answer = f"({high},\\infty)\\cup(-\\infty,{low if right else low - 1})"
    return answer, f"(-\\infty,{low})\\cup({high},\\infty)"


def _tuple(rng: random.Random, right: bool) -> Pair:
    a, b, c = (rng.randint(-40, 40) for _ in range(3))
    return f"({a}, {2 * b if right else 2 * b + 1}/2, {c})", f"({a},{b},{c})"


def _set(rng: random.Random, right: bool) -> Pair:
    items = rng.sample(range(-50, 50), 3)
    shown = [str(item) for item in items] if right else [str(item + 1) for item in items]
    rng.shuffle(shown)
    return f"\\{{{', '.join(shown)}\\}}", f"\\{{{','.join(map(str, sorted(items)))}\\}}"


def _assignment(rng: random.Random, right: bool) -> Pair:
    value = Fraction(rng.randint(1, 200), rng.randint(2, 30))
    letter = rng.choice("xyn")
    shown = value if right else value + 1
    return f"{letter}=\\frac{{{2 * shown.numerator}}}{{{2 * shown.denominator}}}", _fraction(value)


def _power(rng: random.Random, right: bool) -> Pair:
    base, power = rng.randint(2, 12), rng.randint(2, 8)
    return f"{base}^{{{power}}}", str(base**power + (0 if right else 1))


def _pi(rng: random.Random, right: bool) -> Pair:
    top, bottom = rng.randint(1, 60), rng.randint(2, 40)
    return f"\\frac{{{top}\\pi}}{{{bottom}}}", f"\\frac{{{top if right else top + 1}}}{{{bottom}}}\\pi"


def _matrix(rng: random.Random, right: bool) -> Pair:
    a, b, c, d = (rng.randint(-30, 30) for _ in range(4))
    shown = d if right else d + 1
    answer = f"\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {shown} \\end{{pmatrix}}"
    return answer, f"\\begin{{pmatrix}}{a}&\\frac{{{2 * b}}}{{2}}\\\\{c}&{d}\\end{{pmatrix}}"


def _logarithm(rng: random.Random, right: bool) -> Pair:
    base, power = rng.randint(2, 9), rng.randint(2, 9)
    return f"\\log_{{{base}}} {base**power}", str(power if right else power + 1)


PLAIN: list[Callable[[random.Random, bool], Pair]] = [_integers, _decimals, _thousands, _units, _percent]
SYMBOLIC: list[Callable[[random.Random, bool], Pair]] = [
    _reduced, _fraction_as_decimal, _surd, _rationalised, _factored, _reordered, _interval, _union, _tuple, _set,
    _assignment, _power, _pi, _matrix, _logarithm,
]  # fmt: skip


def ordinary_answers(
    kinds: list[Callable[[random.Random, bool], Pair]], count: int, seed: int, seen: set[Pair]
) -> list[tuple[str, Pair]]:
    """(kind, (answer, reference)), kinds in turn, about half of them right; none that is in `seen`, which grows."""
    rng = random.Random(seed)
    made: list[tuple[str, Pair]] = []
    while len(made) < count:
        kind = kinds[len(made) % len(kinds)]
        pair = kind(rng, rng.random() < 0.5)
        if pair not in seen:
            seen.add(pair)
            made.append((kind.__name__.strip("_"), pair))
    return made
