"""Answers that a policy might write to break a verifier: seeded families, every answer a function of (seed, number)."""

import random
from collections.abc import Callable, Iterator

Answer = tuple[str, str]  # answer, reference


def _power_tower(rng: random.Random) -> Answer:
    base, height = rng.randint(2, 99), rng.randint(3, 6)
    tower = str(rng.randint(5, 99))
    for _ in range(height):
        tower = f"{base}^{{{tower}}}"
    return tower + rng.choice(["", "+1", "\\pi", "!"]), str(rng.randint(0, 99))


def _nested_factorial(rng: random.Random) -> Answer:
    """The innermost is computed; nobody could write down the outer ones."""
    before = rng.choice(["", "-", "x+", "2\\cdot "])
    return f"{before}(({rng.randint(12, 15)}!)!)!+{rng.randint(0, 10**6)}", "3"


def _huge_common_divisor(rng: random.Random) -> Answer:
    """The integers are written out before they are divided: 7^(10^9) takes 350 MB."""
    return f"\\gcd({rng.choice([5, 6, 7, 11, 13])}^{{{rng.randint(10**9, 9 * 10**9)}}},{rng.randint(2, 99)})", "1"


def _factorial(rng: random.Random) -> Answer:
    number = rng.choice([rng.randint(500, 3000), rng.randint(10**5, 10**9)])
    return f"{number}{'!' * rng.randint(1, 3)}", str(rng.randint(1, 99))


def _huge_floor(rng: random.Random) -> Answer:
    wrap = rng.choice(["\\lfloor {} \\rfloor", "\\lceil {} + 0.5 \\rceil", "\\sin({})", "\\log_2({})"])
    return wrap.format(f"{rng.randint(3, 99)}^{{{rng.randint(10**9, 10**10)}}}"), "3"


def _deep_brackets(rng: random.Random) -> Answer:
    depth = rng.choice([rng.randint(10, 60), rng.randint(60, 3000)])
    left, right = rng.choice([("(", ")"), ("{", "}"), ("[", "]"), ("\\left(", "\\right)"), ("((", "))")])
    return f"{left * depth}{rng.randint(1, 999)}{right * depth}", str(rng.randint(1, 999))


def _deep_fractions(rng: random.Random) -> Answer:
    depth = rng.choice([rng.randint(5, 30), rng.randint(30, 400)])
    return f"\\frac{{{rng.randint(1, 99)}}}{{1+" * depth + "x" + "}" * depth, "\\frac{1}{x}"


def _deep_roots(rng: random.Random) -> Answer:
    depth = rng.choice([rng.randint(3, 30), rng.randint(30, 400)])
    return f"\\sqrt{{{rng.randint(2, 99)}+" * depth + "2" + "}" * depth, "2"


def _huge_set(rng: random.Random) -> Answer:
    size = rng.choice([rng.randint(20, 120), rng.randint(120, 4000)])
    items = ",".join(str(rng.randint(0, 10**6)) for _ in range(size))
    return f"\\{{{items}\\}}", "\\{1,2,3\\}"


def _huge_matrix(rng: random.Random) -> Answer:
    side = rng.choice([rng.randint(3, 9), rng.randint(10, 60)])
    rows = "\\\\".join("&".join(str(rng.randint(0, 99)) for _ in range(side)) for _ in range(side))
    return f"\\begin{{pmatrix}}{rows}\\end{{pmatrix}}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"


def _long_sum(rng: random.Random) -> Answer:
    size = rng.choice([rng.randint(20, 80), rng.randint(80, 2000)])
    terms = (f"{rng.randint(1, 99)}{rng.choice('xyzabc')}^{{{rng.randint(1, 99)}}}" for _ in range(size))
    return "+".join(terms), "x+1"


def _bounded_operators(rng: random.Random) -> Answer:
    """Sums, products and integrals that take for ever when carried out."""
    top = 10 ** rng.randint(4, 12)
    power = rng.randint(2, 50)
    forms = [
        f"\\sum_{{k=1}}^{{{top}}} \\frac{{1}}{{k^{{{power}}}+k+1}}",
        f"\\prod_{{k=1}}^{{{top}}} (k^{{{power}}}+1)",
        f"\\int_0^{{{power}}} \\sin(x^{{x}}) e^{{\\cos x^{{{power}}}}} dx",
        f"\\lim_{{x\\to 0}} \\frac{{\\sin^{{{power}}} x - x^{{{power}}}}}{{x^{{{top}}}}}",
    ]
    return rng.choice(forms), "3"


def _giant_number(rng: random.Random) -> Answer:
    size = rng.choice([rng.randint(50, 4000), rng.randint(4000, 100_000)])
    digits = rng.choice("123456789") * size
    forms = [
        digits,
        f"0.{digits}",
        f"1e{digits[:9]}",
        digits + "%",
        ",".join(digits[i : i + 3] for i in range(0, size, 3)),
    ]
    return rng.choice(forms), str(rng.randint(1, 99))


def _unicode_junk(rng: random.Random) -> Answer:
    ranges = [(0x20, 0x7F), (0x300, 0x370), (0x600, 0x700), (0x2000, 0x2FFF), (0x4E00, 0x5000), (0x1D400, 0x1D800)]
    text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.choice([20, 200, 5000])))
    return text + rng.choice(["", "\ud800", "\x00", "\u202e", "\u200b" * 100]), rng.choice(["3", "\\frac{1}{2}"])


def _broken_latex(rng: random.Random) -> Answer:
    pieces = [
        "\\frac{",
        "}",
        "{",
        "\\sqrt[",
        "]",
        "^",
        "_",
        "\\left(",
        "\\right",
        "$",
        "\\begin{matrix}",
        "&",
        "\\\\",
        "1",
        "x",
    ]
    return "".join(rng.choice(pieces) for _ in range(rng.choice([5, 30, 300]))), "\\frac{1}{2}"


def _python(rng: random.Random) -> Answer:
    number = rng.randint(0, 10**9)
    forms = [
        f"__import__('os').system('touch {number}')",
        f"().__class__.__base__.__subclasses__()[{number % 500}]",
        f"eval('{number}**{number}')",
        f"(lambda f: f(f, {number}))(lambda f, n: f(f, n + 1))",
        f"\\text{{exec('while True: {number}')}}",
        f"[0]*{number}",
        f"{number}**{number}**{number}",
        f"open('/dev/zero').read({number})",
    ]
    return rng.choice(forms), "3"


def _intervals(rng: random.Random) -> Answer:
    size = rng.choice([rng.randint(3, 10), rng.randint(10, 60), rng.randint(60, 400)])
    bounds = [(rng.randint(-999, 999), rng.choice(["", "+x", "\\pi"])) for _ in range(size)]
    parts = (f"{rng.choice('([')}{low},{low + rng.randint(1, 9)}{tail})" for low, tail in bounds)
    return "\\cup".join(parts), "(0,1)"


def _algebra(rng: random.Random) -> Answer:
    """Large powers of sums and nests of functions, each a little different from the reference."""
    letters = rng.sample("abcdefghxyz", rng.randint(2, 9))
    power = rng.randint(5, 400)
    inner = "+".join(f"{rng.randint(1, 9)}{letter}" for letter in letters)
    nest = "x"
    for _ in range(rng.randint(2, 12)):
        nest = rng.choice(["\\sin({})", "\\sqrt{{{}+1}}", "\\ln(1+{})", "e^{{{}}}", "({})^{{-1}}", "|{}|"]).format(nest)
    forms = [
        (f"({inner})^{{{power}}}", f"({inner})^{{{power}}}+1"),
        (nest, f"{nest}+0.001x"),
        (f"{nest}={inner}", "x=1"),
    ]
    return rng.choice(forms)


def _inequalities(rng: random.Random) -> Answer:
    degree = rng.randint(3, 40)
    terms = "+".join(f"{rng.randint(1, 99)}x^{{{rng.randint(1, degree)}}}" for _ in range(rng.randint(2, 8)))
    last, relation = rng.choice(["\\sqrt{x}", "\\sin x", "x^{99}", "7^{x}"]), rng.choice("><=")
    return f"{terms}-{last}{relation}0", "x^2>2"


def _repeats(rng: random.Random) -> Answer:
    text = rng.choice(["\\boxed{3}", "3 ", "=3", "the answer is 3. ", "\\frac12", "$", "- ", "\\cdot 3", "\\pm 1,"])
    return text * rng.choice([30, 300, 5000]), "3"


FAMILIES: dict[str, tuple[Callable[[random.Random], Answer], int]] = {
    "power towers": (_power_tower, 2),
    "nested factorials": (_nested_factorial, 1),
    "huge common divisors": (_huge_common_divisor, 3),
    "factorials": (_factorial, 4),
    "huge floors": (_huge_floor, 1),
    "deep brackets": (_deep_brackets, 4),
    "deep fractions": (_deep_fractions, 3),
    "deep roots": (_deep_roots, 3),
    "huge sets": (_huge_set, 2),
    "huge matrices": (_huge_matrix, 3),
    "long sums": (_long_sum, 1),
    "sums, products, integrals": (_bounded_operators, 1),
    "giant numbers": (_giant_number, 3),
    "unicode junk": (_unicode_junk, 40),
    "broken LaTeX": (_broken_latex, 42),
    "python": (_python, 42),
    "unions of intervals": (_intervals, 1),
    "algebra": (_algebra, 3),
    "inequalities": (_inequalities, 1),
    "repeats": (_repeats, 26),
}
"""How an answer is made, and the family's weight. What mostly ends at the deadline weighs little: a quarter of a second
each adds up."""


def hostile_answers(count: int, seed: int) -> Iterator[tuple[str, Answer]]:
    """(family, (answer, reference)) of distinct answers, families mixed by their weights."""
    rng = random.Random(seed)
    names = list(FAMILIES)
    weights = [weight for _, weight in FAMILIES.values()]
    seen: set[int] = set()
    while len(seen) < count:
        name = rng.choices(names, weights)[0]
        made = FAMILIES[name][0](rng)
        if hash(made) not in seen:
            seen.add(hash(made))
            yield name, made
