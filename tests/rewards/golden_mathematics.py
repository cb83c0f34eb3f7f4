"""Golden cases of `math`: identities that hold by construction and near-misses that fail by construction.

A verdict follows from how a pair was built (a value spelled in two ways; a value changed), never from our verifier.
"""

import random
from collections.abc import Iterator
from fractions import Fraction

import sympy
from sympy import Rational, latex, sqrt

Pair = tuple[str, str, str, bool]  # family, answer, reference, verdict
x, y = sympy.symbols("x y")


def mathematics(rng: random.Random) -> Iterator[Pair]:
    for family in (
        rationals, decimals, groups, surds, polynomials, rational_functions, trigonometry, powers, lists, intervals,
        tuples, matrices, equations, inequalities, units, percentages, complex_numbers, words, chinese, layout, kinds,
        styles, sizes,
    ):  # fmt: skip
        for answer, reference, verdict in family(rng):
            yield family.__name__, answer, reference, verdict


def rationals(rng):
    for _ in range(35):
        a, b = rng.randint(1, 60), rng.randint(2, 40)
        value = Fraction(a, b)
        if value.denominator == 1:
            continue
        n, d = value.numerator, value.denominator
        k = rng.randint(2, 5)
        forms = [
            f"\\frac{{{n}}}{{{d}}}",
            f"\\dfrac{{{n}}}{{{d}}}",
            f"\\tfrac{{{n}}}{{{d}}}",
            f"{n}/{d}",
            f"$\\frac{{{n}}}{{{d}}}$",
        ]
        forms += [
            f"\\frac{{{k * n}}}{{{k * d}}}",
            f"\\left(\\frac{{{n}}}{{{d}}}\\right)",
            f"{n} \\div {d}",
            f"\\displaystyle\\frac{{{n}}}{{{d}}}",
        ]
        if n > d:
            forms += [f"{n // d}\\frac{{{n % d}}}{{{d}}}", f"{n // d} {n % d}/{d}"]
        if n < 10 and d < 10:
            forms.append(f"\\frac{n}{d}".replace("\x0c", "\\f"))
        for answer in rng.sample(forms, 3):
            yield answer, rng.choice(forms), True
        for wrong in (
            f"\\frac{{{n + 1}}}{{{d}}}",
            f"\\frac{{{d}}}{{{n}}}",
            f"-\\frac{{{n}}}{{{d}}}",
            str(n),
            f"{n}.{d}",
        ):
            if wrong != f"{n}.{d}" or Fraction(wrong) != value:
                yield wrong, rng.choice(forms), False


def decimals(rng):
    for _ in range(25):
        digits = rng.randint(1, 9999) * 10 + rng.randint(1, 9)
        value = Fraction(digits, 1000)
        text = f"{digits // 1000}.{digits % 1000:03d}"
        yield text + "0", text, True
        yield f"\\frac{{{value.numerator}}}{{{value.denominator}}}", text, True
        yield f"{digits} \\times 10^{{-3}}", text, True
        yield f"+{text}", text, True
        yield f"{(digits + 1) // 1000}.{(digits + 1) % 1000:03d}", text, False
        yield f"{digits} \\times 10^{{-2}}", text, False
        yield f"-{text}", text, False
    for n, d in ((1, 3), (2, 7), (5, 6), (7, 11)):
        yield f"{n / d:.6f}", f"\\frac{{{n}}}{{{d}}}", True
        yield f"{n / d:.2f}", f"\\frac{{{n}}}{{{d}}}", False
    yield "0.\\overline{3}", "\\frac{1}{3}", True
    yield "0.1\\overline{6}", "\\frac{1}{6}", True
    yield "0.\\overline{3}", "0.3", False
    yield "0.0000001", "0.0000003", False
    yield "0.0000001", "0", False
    yield "1.6 \\times 10^{-19}", "1.60\\times 10^{-19}", True
    yield "1.6 \\times 10^{-19}", "1.6\\times 10^{-20}", False


def groups(rng):
    for _ in range(25):
        n = rng.randint(1_000, 99_999_999)
        comma = f"{n:,}"
        for answer in (
            comma,
            comma.replace(",", "{,}"),
            comma.replace(",", "\\,"),
            comma.replace(",", ",\\!"),
            f"\\${comma}",
        ):
            yield answer, str(n), True
        yield f"{n:,.2f}", str(n), True
        yield f"{n + 1000:,}", str(n), False
        yield comma.split(",")[0], str(n), False
        yield comma.replace(",", ".", 1), str(n), False
    yield "1 000", "1000", True
    yield "(100,200)", "(100, 200)", True
    yield "(100,200)", "100200", False
    yield "2 million", "2000000", True
    yield "2 million", "2", False


def surds(rng):
    for _ in range(25):
        a, b = rng.randint(2, 12), rng.choice([2, 3, 5, 6, 7, 10, 11])
        yield f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{{{b}}}", True
        yield f"{a}\\sqrt{b}", f"{a}\\sqrt{{{b}}}", True
        yield f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b}}}", f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}", True
        yield f"{b}^{{1/2}}", f"\\sqrt{{{b}}}", True
        yield f"\\sqrt{{{b}}} + {a}", f"{a}+\\sqrt{{{b}}}", True
        yield (
            f"\\frac{{1}}{{\\sqrt{{{a * a * b + 1}}} - {a}}}".replace(str(a * a * b + 1), str(a * a + 1)),
            f"\\sqrt{{{a * a + 1}}}+{a}",
            True,
        )
        yield f"{a}\\sqrt{{{b + 1}}}", f"{a}\\sqrt{{{b}}}", False
        yield f"{a + 1}\\sqrt{{{b}}}", f"{a}\\sqrt{{{b}}}", False
        yield f"{a}", f"{a}\\sqrt{{{b}}}", False
        yield f"\\sqrt[3]{{{b}}}", f"\\sqrt{{{b}}}", False
        yield f"{float(a * sqrt(b)):.3f}", f"{a}\\sqrt{{{b}}}", False


def polynomials(rng):
    for _ in range(25):
        a, b, c = rng.randint(1, 9), rng.randint(-9, 9), rng.choice([-4, -3, -2, 2, 3, 5])
        factored = (a * x + b) * (x - c)
        expanded = sympy.expand(factored)
        terms = [latex(term) for term in expanded.as_ordered_terms()[::-1]]
        shuffled = "+".join(terms).replace("+-", "-").replace("+ -", "-")
        product = f"({latex(a * x + b)})({latex(x - c)})"
        yield product, latex(expanded), True
        yield shuffled, latex(expanded), True
        yield latex(expanded), product, True
        yield latex(expanded + x), latex(expanded), False
        yield latex(expanded + 1), product, False
        yield latex(-expanded), latex(expanded), False
        yield latex(expanded.subs(x, y)), latex(expanded), False


def rational_functions(rng):
    for _ in range(12):
        a, b = rng.sample(range(-6, 7), 2)
        together = f"\\frac{{{latex(sympy.expand(2 * x - a - b))}}}{{({latex(x - a)})({latex(x - b)})}}"
        apart = f"\\frac{{1}}{{{latex(x - a)}}}+\\frac{{1}}{{{latex(x - b)}}}"
        yield apart, together, True
        yield together, apart, True
        yield apart.replace("+\\frac", "-\\frac"), together, False
        yield f"\\frac{{1}}{{{latex(x - a)}}}", together, False


def trigonometry(rng):
    for k in (1, 2, 3, 4):
        yield f"2\\sin({k}x)\\cos({k}x)", f"\\sin({2 * k}x)", True
        yield f"1-2\\sin^2({k}x)", f"\\cos({2 * k}x)", True
        yield f"\\sec^{{2}}({k}x)-1", f"\\tan^2({k}x)", True
        yield f"\\sin^2({k}x)+\\cos^2({k}x)", "1", True
        yield f"2\\sin({k}x)\\cos({k}x)", f"\\cos({2 * k}x)", False
        yield f"1+2\\sin^2({k}x)", f"\\cos({2 * k}x)", False
        yield f"\\sin({k}x)", f"\\sin({k + 1}x)", False
    for angle, value in (
        ("\\frac{\\pi}{6}", "\\frac{1}{2}"),
        ("\\frac{\\pi}{4}", "\\frac{\\sqrt{2}}{2}"),
        ("\\pi", "0"),
    ):
        yield f"\\sin({angle})", value, True
        yield f"\\sin({angle})", f"1+{value}", False
    yield "\\pi", "3.14159", False
    yield "\\frac{22}{7}", "\\pi", False
    yield "2π", "2\\pi", True


def powers(rng):
    for base in (2, 3, 5, 7):
        for k in rng.sample(range(2, 9), 3):
            yield f"{base}^{{{k}}}", str(base**k), True
            yield f"\\log_{{{base}}}{{{base**k}}}", str(k), True
            yield f"{k}\\ln {base}", f"\\ln {base**k}", True
            yield f"{base}^{{{k}}}", str(base**k + 1), False
            yield f"{k}{base}", f"{base}^{{{k}}}", base**k == int(f"{k}{base}")
            yield f"{base}^{{{k + 1}}}", f"{base}^{{{k}}}", False
    yield "e^{2}e^{3}", "e^5", True
    yield "e^{2}+e^{3}", "e^5", False
    yield "10^{40}+1", "10^{40}", False
    yield "5!", "120", True
    yield "5!", "5", False
    yield "\\binom{6}{2}", "15", True


def lists(rng):
    for _ in range(30):
        values = rng.sample(range(-20, 40), rng.randint(2, 5))
        shuffled = rng.sample(values, len(values))
        joined = ",".join(map(str, values))
        yield f"\\{{{', '.join(map(str, shuffled))}\\}}", f"\\{{{joined}\\}}", True
        yield ", ".join(map(str, shuffled)), ", ".join(map(str, values)), True
        yield " \\text{ and } ".join(map(str, values)), ", ".join(map(str, values)), True
        yield ", ".join(f"x={value}" for value in values), ", ".join(map(str, values)), True
        yield ", ".join(map(str, [*values[:-1], 77])), ", ".join(map(str, values)), False
        yield ", ".join(map(str, values[:-1])), ", ".join(map(str, values)), False
        yield ", ".join(map(str, [*values, 78])), ", ".join(map(str, values)), False
        yield f"\\{{{', '.join(map(str, [*values, 79]))}\\}}", f"\\{{{joined}\\}}", False
    for a, b in ((3, 2), (1, 5), (0, 7)):
        yield f"{a}+\\sqrt{{{b}}}, {a}-\\sqrt{{{b}}}", f"{a} \\pm \\sqrt{{{b}}}", True
        yield f"{a} \\pm \\sqrt{{{b}}}", f"{a}-\\sqrt{{{b}}}, {a}+\\sqrt{{{b}}}", True
        yield f"{a}+\\sqrt{{{b}}}", f"{a} \\pm \\sqrt{{{b}}}", False
        yield f"{a} \\pm \\sqrt{{{b + 1}}}", f"{a} \\pm \\sqrt{{{b}}}", False
    yield "\\emptyset", "\\varnothing", True
    yield "\\{0\\}", "\\emptyset", False


def intervals(rng):
    brackets = [("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")]
    for _ in range(30):
        a = rng.randint(-9, 5)
        b = a + rng.randint(1, 9)
        (opening, closing), other = rng.sample(brackets, 2)
        reference = f"{opening}{a}, {b}{closing}"
        left, right = ("<" if opening == "(" else "\\le"), ("<" if closing == ")" else "\\leq")
        yield f"\\left{opening}{a},{b}\\right{closing}", reference, True
        yield f"x \\in {reference}", reference, True
        yield f"{a} {left} x {right} {b}", reference, True
        yield f"{other[0]}{a},{b}{other[1]}", reference, False
        yield f"{opening}{a},{b + 1}{closing}", reference, False
        yield f"{opening}{a - 1},{b}{closing}", reference, False
        union = f"(-\\infty, {a}{closing if closing == ']' else ')'} \\cup [{b}, \\infty)"
        yield union.replace("\\infty)", "+\\infty)"), union, True
        yield f"[{b}, \\infty) \\cup (-\\infty, {a}{closing if closing == ']' else ')'}", union, True
        yield union.replace("\\cup [", "\\cup ("), union, False
        yield f"({a}, \\infty)", union, False
    yield "\\mathbb{R}", "(-\\infty, \\infty)", True
    yield "\\mathbb{R} \\setminus \\{0\\}", "(-\\infty,0)\\cup(0,\\infty)", True
    yield "\\{x \\mid x > 2\\}", "(2, \\infty)", True
    yield "x < -2 \\text{ or } x > 2", "(-\\infty,-2)\\cup(2,\\infty)", True
    yield "\\{x \\mid x > 3\\}", "(2, \\infty)", False


def tuples(rng):
    for _ in range(20):
        values = rng.sample(range(-20, 40), rng.randint(2, 4))
        reference = f"({', '.join(map(str, values))})"
        yield f"\\left({','.join(map(str, values))}\\right)", reference, True
        yield f"({', '.join(f'{2 * value}/2' for value in values)})", reference, True
        yield f"(x,y) = {reference}" if len(values) == 2 else reference, reference, True
        yield f"({', '.join(map(str, values[::-1]))})", reference, False
        yield f"({', '.join(map(str, [*values[:-1], 91]))})", reference, False
        yield f"({', '.join(map(str, [*values, 0]))})", reference, False


def matrices(rng):
    for _ in range(15):
        entries = rng.sample(range(-9, 20), 4)

        def spell(kind, values):
            return f"\\begin{{{kind}}} {values[0]} & {values[1]} \\\\ {values[2]} & {values[3]} \\end{{{kind}}}"

        reference = spell("pmatrix", entries)
        yield spell("bmatrix", entries), reference, True
        yield spell("pmatrix", [f"\\frac{{{2 * entries[0]}}}{{2}}", *entries[1:]]), reference, True
        yield spell("pmatrix", [entries[0], entries[2], entries[1], entries[3]]), reference, False
        yield spell("pmatrix", [*entries[:3], entries[3] + 1]), reference, False
    yield "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}", True
    yield "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}", False


def equations(rng):
    for _ in range(20):
        m, c, k = rng.randint(2, 9), rng.randint(1, 9), rng.randint(2, 5)
        reference = f"y = {m}x + {c}"
        yield f"y={c}+{m}x", reference, True
        yield f"{m}x - y + {c} = 0", reference, True
        yield f"{k}y = {k * m}x + {k * c}", reference, True
        yield f"x = \\frac{{y-{c}}}{{{m}}}", reference, True
        yield f"{m}x+{c}", reference, True
        yield f"y={m}x-{c}", reference, False
        yield f"y={m + 1}x+{c}", reference, False
        yield f"x={m}y+{c}", reference, False
        yield f"y={m}x", reference, False
        yield f"x = {m}", str(m), True
        yield str(m), f"x = {m}", True
        yield f"x = {m + 1}", str(m), False
        yield f"y = {m}", f"x = {m}", False
        yield f"{m}+{c}={m + c}", str(m + c), True
        yield f"{m}+{c}={m + c + 1}", str(m + c + 1), False
    yield "x^2+y^2=4", "(x)^2+(y)^2-4=0", True
    yield "x^2+y^2=4", "x^2+y^2=2", False
    yield "a^2+b^2=25", "25", True
    yield "f(2)=25", "25", True
    yield "|AB| = 25", "25", True
    yield "2x+3=25", "25", False
    yield "\\frac{240}{x-2}-\\frac{240}{x}=10", "10\\%", False
    yield "3x-1=7=2", "2", False
    yield "x(y-1)=0", "x(y-2)=0", False


def inequalities(rng):
    for _ in range(20):
        a, k = rng.randint(1, 20), rng.randint(2, 6)
        yield f"{a} < x", f"x > {a}", True
        yield f"{k}x > {k * a}", f"x > {a}", True
        yield f"-x < -{a}", f"x>{a}", True
        yield f"x \\geq {a}", f"x >= {a}", True
        yield f"({a}, \\infty)", f"x>{a}", True
        yield f"x < {a}", f"x > {a}", False
        yield f"x \\geq {a}", f"x > {a}", False
        yield f"x > {a + 1}", f"x > {a}", False
        yield f"x = {a}", f"x > {a}", False
        yield str(a), f"x > {a}", False


def units(rng):
    spelled = [
        ("cm", "\\text{ cm}", "m"),
        ("km/h", "\\text{ km/h}", "cm"),
        ("kg", "\\mathrm{~kg}", "g"),
        ("min", "\\text{ minutes}", "hours"),
    ]
    for _ in range(12):
        n = rng.randint(2, 400)
        for unit, tex, other in spelled:
            yield f"{n} {unit}", str(n), True
            yield f"{n}{tex}", f"{n} {unit}", True
            yield str(n), f"{n}{tex}", True
            yield f"{n + 1}{tex}", f"{n} {unit}", False
            yield f"{n} {other}", f"{n} {unit}", False
        yield f"{n}\\text{{ cm}}^2", f"{n}", True
        yield f"{n}\\text{{ cm}}^2", f"{n} square centimeters", True
        yield f"{n}\\text{{ cm}}^3", f"{n}\\text{{ cm}}^2", False
        yield f"{n}^\\circ", str(n), True
        yield f"{n}°", f"{n}^{{\\circ}}", True
        yield f"{n} apples", str(n), True
        yield f"{n}\\pi \\text{{ cm}}^2", f"{n}\\pi", True
        yield f"{n}t", str(n), False


def percentages(rng):
    for _ in range(12):
        n = rng.randint(2, 98)
        yield f"{n}\\%", f"{n}\\%", True
        yield f"{n}%", str(n), True
        yield f"{n}\\%", f"\\frac{{{n}}}{{100}}", True
        yield f"{n} percent", f"{n}\\%", True
        yield f"{n / 100:.2f}", f"{n}\\%", True
        yield f"{n / 100:.2f}", str(n), False
        yield f"{n + 1}\\%", f"{n}\\%", False
        yield f"{n / 100:.2f}\\%", f"{n}\\%", False


def complex_numbers(rng):
    for _ in range(12):
        a, b = rng.randint(1, 9), rng.randint(2, 9)
        yield f"{b}i+{a}", f"{a}+{b}i", True
        yield f"({a}+{b}i)({a}-{b}i)", str(a * a + b * b), True
        yield f"{a}-{b}i", f"{a}+{b}i", False
        yield f"{b}+{a}i", f"{a}+{b}i", a == b
        yield str(a), f"{a}+{b}i", False


def words(rng):
    names = ["Evelyn", "Monday", "ellipse", "odd", "isosceles", "Carla", "circle", "even", "parallel", "decreasing"]
    for name in names:
        other = names[(names.index(name) + 3) % len(names)]
        yield name, f"\\text{{{name}}}", True
        yield f"\\text{{{name.lower()}}}", f"\\text{{{name}}}", True
        yield f"\\textbf{{{name}}}", name, True
        yield other, f"\\text{{{name}}}", False
        yield name[::-1], name, False
        yield "7", f"\\text{{{name}}}", False
    yield "\\text{no solution}", "\\text{no solution}", True
    yield "\\text{(B)}", "B", True
    yield "C", "\\text{B}", False


def chinese(rng):
    for n in rng.sample(range(2, 400), 12):
        yield f"{n}元", str(n), True
        yield f"{n}个", str(n), True
        yield f"{n}厘米", f"{n}\\text{{ cm}}", True
        yield f"答案是{n}", str(n), True
        yield f"{n}平方厘米", f"{n}\\text{{ cm}}^2", True
        yield f"{n}或{n + 1}", f"{n}, {n + 1}", True
        yield f"（{n}，{n + 1}）", f"({n}, {n + 1})", True
        yield f"{n + 1}元", str(n), False
        yield f"{n}米", f"{n}\\text{{ cm}}", False
        yield f"{n}或{n + 1}", f"{n}, {n + 2}", False
    yield "偶函数", "偶函数", True
    yield "奇函数", "偶函数", False


def layout(rng):
    for n in rng.sample(range(2, 900), 10):
        for answer in (f" {n} ", f"${n}$", f"$${n}$$", f"\\({n}\\)", f"\\boxed{{{n}}}", f"{n}.", f"**{n}**", f"\\mathbf{{{n}}}", f"n = {n}", f"{{{n}}}", f"\\left({n}\\right)", f"\\quad {n}"):  # fmt: skip
            yield answer, str(n), True
        for answer in ("", " ", "$", f"{n}{n}", f"{n}, {n + 1}", f"{n} \\text{{ or }} {n + 1}", f"x{n}", f"\\frac{{{n}}}{{", "?", f"{n}$ and ${n + 1}", f"not {n}", f"{n} or not {n}"):  # fmt: skip
            yield answer, str(n), False


def kinds(rng):
    for a in rng.sample(range(1, 20), 6):
        b = a + 3
        yield f"\\{{{a},{b}\\}}", f"({a},{b})", False
        yield f"[{a},{b}]", f"\\{{{a},{b}\\}}", False
        yield f"{a}", f"\\{{{a},{b}\\}}", False
        yield f"{a}:{b}", f"{a}:{b}", True
        yield f"{a}:{b}", f"{b}:{a}", False
        yield f"{a}x", f"{a}y", False
        yield f"{a}", f"{a}x", False
        yield f"R+{a}r", f"{a}r+R", True
        yield f"R+{a}r", f"{a + 1}r", False
        yield f"x_{{{a}}}", f"x_{a}" if a < 10 else f"x_{{{a}}}", True
        yield f"x_{{{a}}}", f"x_{{{b}}}", False
        yield f"|{a}-{b}|", str(b - a), True
        yield f"{Rational(a, b)}", f"\\frac{{{a}}}{{{b}}}", True


def styles(rng):
    """How models dress the same value."""
    for n in rng.sample(range(13, 90), 8):
        m = n + rng.randint(1, 9)
        yield f"\\text{{{n} coins}}", str(n), True
        yield f"\\text{{\\${n}}}", str(n), True
        yield f"\\text{{The answer is {n}}}", str(n), True
        yield f"{n}^{{\\text{{th}}}}", str(n), True
        yield f"{n}\\text{{th}}", str(m), False
        yield f"{n}\\ \\text{{km}}/\\text{{h}}", str(n), True
        yield f"{n}\\ \\text{{km}}/\\text{{h}}", f"{n}\\text{{ m/s}}", False
        yield f"{n}\\,\\mathrm{{m\\,s^{{-2}}}}", str(n), True
        yield f"{n} \\pmod{{{m + 80}}}", str(n), True
        yield f"{n} \\pmod{{{m + 80}}}", f"{n} \\pmod{{{m + 81}}}", False
        yield f"x \\equiv {n} \\pmod{{{m + 80}}}", f"x\\equiv {n}\\pmod {{{m + 80}}}", True
        yield f"x \\equiv {n} \\pmod{{{m + 80}}}", f"x\\equiv {m}\\pmod {{{m + 80}}}", False
        yield f"{n}+{m}\\mathrm{{i}}", f"{m}i+{n}", True
        yield f"{n}+{m}\\mathrm{{i}}", str(n + m), False
        yield f"Q({n}, {m})", f"({n},{m})", True
        yield f"Q({n}, {m})", f"({m},{n})", False
        yield f"q({n}, {m})", f"({n},{m})", False
        yield f"\\text{{Figure {n}}}", f"Figure {n}", True
        yield f"\\text{{Figure {n}}}", f"\\text{{Figure {m}}}", False
        yield f"x<-{n}\\text{{ or }}x>{n}", f"|x|>{n}", True
        yield f"x<-{n}\\text{{ or }}x>{m}", f"|x|>{n}", False
        yield f"-{n}<x<{n}", f"|x|<{n}", True
    for hour, minute in ((3, 20), (10, 45), (11, 5)):
        time = f"{hour}:{minute:02d}"
        yield f"{time} PM", f"{time}\\text{{ p.m.}}", True
        yield f"\\text{{{time} PM}}", time, True
        yield f"{time} PM", f"{time} AM", False
        yield f"{time} PM", f"{hour}:{minute + 1:02d}", False
    yield from (
        ("\\text{D}", "(D)", True), ("\\textbf{(D)}", "D", True), ("(D)", "(E)", False), ("C_9^4", "126", True),
        ("C_9^4", "94", False), ("0.777\\ldots", "\\frac{7}{9}", True), ("0.5454\\ldots", "0.5454", False),
        ("0.1222\\dots", "\\frac{11}{90}", True), ("0.777\\ldots", "0.777", False), ("\\overline{PQ}", "PQ", True),
        ("\\overline{PQ}", "PR", False),
    )  # fmt: skip


def sizes(rng):
    """Values too far apart, or too close, for a fixed number of digits."""
    for n in rng.sample(range(30, 480), 10):
        yield f"10^{{-{n}}}", "0", False
        yield f"10^{{-{n}}}", f"10^{{-{n + 1}}}", False
        yield f"7^{{{n}}}+1", f"7^{{{n}}}", False
        yield f"7^{{{n}}}+7^{{{n}}}", f"2\\cdot 7^{{{n}}}", True
        yield f"\\pi+10^{{-{n}}}", "\\pi", False
        yield f"\\sqrt{{10^{{{2 * n}}}}}", f"10^{{{n}}}", True
        yield f"\\sqrt{{10^{{{2 * n}}}+1}}", f"10^{{{n}}}", False
        yield f"x+10^{{-{n}}}", "x", False
        yield f"x>10^{{-{n}}}", "x>0", False
        yield f"(x+2y)^{{{n}}}+1", f"(x+2y)^{{{n}}}", False
        yield f"(x^2+2xy+y^2)^{{{n}}}", f"(x+y)^{{{2 * n}}}", True
        yield f"{n}!", f"{n}\\cdot {n - 1}!", True
        yield f"{n}!+1", f"{n}!", False
        yield f"y=10^{{{n}}}x+1", f"y=10^{{{n}}}x", False
        yield f"e^{{-{n}}}", "0", False
