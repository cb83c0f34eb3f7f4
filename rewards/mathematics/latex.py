"""LaTeX formulas to sympy objects by math-verify's grammar (latex2sympy2_extended); nothing is evaluated as code."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antlr4 import Parser
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
    from sympy import Expr

    from rewards.mathematics.values import MathObject

PERCENT_SIGN = "percentsign"  # the symbol that stands for a percent sign inside a formula
MAX_NESTING = 60  # depth of brackets inside brackets; honest answers have less than ten
# The grammar's time grows fast with these; honest answers have no more.
MAX_BARS, MAX_EQUALS, MAX_INTEGRALS, MAX_DIFFERENTIALS = 20, 50, 3, 9
_SIGNS_ONLY = re.compile(r"(?:[-+]\s*){8}")
_TOWER = re.compile(r"(?:\^\s*(?:\\?[a-zA-Z]+(?:_\w)?|[0-9]+)\s*){8}")  # a^b^c^...
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LAST_EQUALS = re.compile(r"(?<![\\<!>])=")
_GROUPED_NUMBER = re.compile(r"\s*-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*")  # numbers that the library would evaluate
_INDEX_I = re.compile(r"_\s*\{\s*i\s*=")  # a sum over i is no complex number
_CURLY_LIST = re.compile(r"(?<![\\_^a-zA-Z}])\{([^{}]*,[^{}]*)\}")
_INTEGER_PARAMETER = re.compile(
    r"(?:[,;]\s*\(?|\()\s*(?:\\text\s*\{\s*(?:where|for|with)?\s*\}\s*)?(?:where |for |with )?"
    r"[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*(?:\\mathbb\s*\{?[ZN]\}?|Z|N)(?:\s*[\^_]\s*\{?[+*]\}?)?\s*\)?\s*$"
)
_SET_BUILDER = re.compile(
    r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\||:|\\vert|\\colon)\s*([^|]*?)\s*\\\}"
)
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))")
# 0.333... and 0.5454... repeat; 0.33... may be any decimal.
_REPEATED = re.compile(r"([0-9]*)\.([0-9]*?)(?:([0-9])\3{2,}|([0-9]{2,}?)\4+)(?:\\[lc]?dots|\.\.\.|…)")
_CASES = re.compile(
    r"(?<![\[(|])(?:\\\{\s*)?\\begin\s*\{(?:cases|aligned|array|gathered)\}(?:\s*\{[lcr|]*\})?(.*?)\\end\s*\{(?:cases|aligned|array|gathered)\}"
)


_PRIMED = re.compile(
    r"((?:\\[a-zA-Z]+|[a-zA-Z]))\s*(?:_\s*(?:\{([^{}]*)\}|([0-9a-zA-Z])))?\s*"
    r"(?:('{1,4})(?!')|\^\s*\{?\s*((?:\\prime\s*){1,4})\}?)"
)
_STRAY_PRIME = re.compile(r"'|\\prime(?![a-zA-Z])|^[^\"]*[0-9]\s?\"[^\"]*$")
_NEGATED = re.compile(r"\\(?:not|lnot|neg)(?![a-zA-Z])|¬")
_SUBSCRIPTED_NUMBER = re.compile(r"(?<![\^_{.0-9a-zA-Z])[0-9]+(?:\.[0-9]+)?\s*_|[0-9.]+\s*_\s*\{?\s*\\text")
_TRANSPOSED = re.compile(r"(?<![\\a-zA-Z])([a-zA-Z])\s*\^\s*(?:T(?![a-zA-Z])|\{\s*(?:T|\\top)\s*\}|\\top(?![a-zA-Z]))")
_RAISED_MARK = re.compile(r"[)}\]]\s*\^\s*\{?\s*(?:T|\\top|\\circ|\*|[+-]\s*(?:\}|$))")
_CUT_OFF = re.compile(r"[0-9]\s*,?\s*(?:\\[lcd]?dots(?![a-zA-Z])|…|\.\.\.)")
_ADJACENT_NUMBERS = re.compile(r"(?<![_^])(?<![0-9.])[0-9.]*[0-9]\s+[0-9]")
_WORD_NAME = re.compile(
    r"^\s*(?!(?:sin|cos|tan|cot|sec|csc|log|exp|min|max|pi|lim|inf)\s*=)([a-zA-Z]{3,}|[A-Z]?I|[A-Z]?E|[EI][A-Z]|e)(?=\s*=)"
)


def _primes_named(letter: re.Match[str]) -> str:
    """Make f' a name of its own, f_{prime}: the grammar drops primes."""
    count = len(letter[4]) if letter[4] else letter[5].count("prime")
    return f"{letter[1]}_{{{letter[2] or letter[3] or ''}{'prime' * count}}}"


def _named_constant(name: re.Match) -> str:
    return "\\pi " if name[1] == "pi" else "\\infty "


_NAMED_SUBSCRIPT = re.compile(r"_\s*\{\s*\\(?:text\s*\{\s*([a-zA-Z]+)\s*\}|(max|min))\s*\}|_\s*\\(max|min)(?![a-zA-Z])")


def _subscript_name(name: re.Match) -> str:
    return f"_{{{name[1] or name[2] or name[3]}}}"


_REWRITES = [
    # Combinations as Chinese textbooks write them.
    (re.compile(r"(?<![\\a-zA-Z0-9])C_\{?([0-9]+)\}?\^\{?([0-9]+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\overline\s*\{([A-Z]{2})\}"), r"\1"),
    (re.compile(r"\\langle(?![a-zA-Z])|\\lparen(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])|\\rparen(?![a-zA-Z])"), ")"),
    (re.compile(r"\\(?:lbrace|rbrace)(?![a-zA-Z])"), lambda brace: "\\{" if brace[0] == "\\lbrace" else "\\}"),
    (re.compile(r"\\lvert(?![a-zA-Z])|\\rvert(?![a-zA-Z])"), "|"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![a-zA-Z])"), r"\\leq "),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![a-zA-Z])"), r"\\geq "),
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\(?:R|reals|Reals)(?![a-zA-Z])"), r"\\mathbb{R}"),
    (re.compile(r"\\operatorname\s*\{(sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan)\}"), r"\\\1 "),
    (re.compile(r"(?:\\|(?<![\\a-zA-Z]))sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"(?<![\\a-zA-Z])(sqrt|sin|cos|tan|ln|log|arctan|arcsin|arccos)(?=\s*[({0-9])"), r"\\\1"),
    (re.compile(r"(?<![\\a-zA-Z])(pi|infty|infinity|inf)(?![a-zA-Z])"), _named_constant),
    (re.compile(r"\\text\s*\{\s*(?:undefined|DNE)\s*\}"), r"\\text{undefined}"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log "),
    (_NAMED_SUBSCRIPT, _subscript_name),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\(frac|binom)\s*([0-9])\s+([0-9])(?![0-9])"), r"\\\1{\2}{\3}"),
    (re.compile(r"\\not\s*="), r"\\ne "),
    (re.compile(r"\\not\s*\\in(?![a-zA-Z])"), r"\\notin "),
    (re.compile(r"\\sqrt\s*([0-9]{2,})(?![0-9.])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![0-9./}])([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)(?![0-9.])"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"(?<=[0-9.])[eE]([+-]?[0-9]{1,3})(?![0-9a-zA-Z.])"), r"\\cdot 10^{\1}"),
    (re.compile(r"\\mathrm\s*\{~*([a-zA-Z])\}|\\text\s*\{\s*([a-z])\s*\}"), lambda letter: letter[1] or letter[2]),
    (re.compile(r"\\mp(?![a-zA-Z])"), r"\\pm "),
    (re.compile(r"(?<=[0-9}])\s*\\?%"), rf"\\cdot\\text{{{PERCENT_SIGN}}}"),
]  # fmt: skip


def parse_latex(formula: str, lowercase: bool = False) -> "MathObject | None":
    """Return the sympy object of a formula, None where it is not mathematics.

    Raises RecursionError above `MAX_NESTING` nested brackets; MemoryError is not caught.
    """
    from latex2sympy2_extended import NormalizationConfig, normalize_latex

    deepest, left_open = _nesting(formula)
    if deepest > MAX_NESTING and left_open:
        return None  # the grammar has no use for a bracket without its partner
    if deepest > MAX_NESTING:
        raise RecursionError(f"more than {MAX_NESTING} nested brackets")
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="all", equations=False
    )
    rewritten = _rewrite(formula)
    if _takes_long(rewritten) or _means_otherwise(rewritten):
        return None
    text = normalize_latex(rewritten, config)
    parsed = _read(text, lowercase)
    if parsed is None and "\\pm" in text:
        parsed = _read(_expand_signs(text), lowercase)
    if parsed is None and "," not in text and ";" not in text:
        parts = _LAST_EQUALS.split(text)
        parsed = _read(parts[-1], lowercase) if len(parts) > 1 else None
    return parsed


def split_ratio(formula: str) -> list[str] | None:
    """Return the parts of a ratio of three and more (1:2:3), else None. Names before it (a:b:c=) are dropped."""
    if formula.count(":") < 2 or len(formula) > 200:
        return None
    parts = [part.strip() for part in formula.rpartition("=")[2].split(":")]
    return parts if len(parts) > 2 and all(parts) and not any("," in part for part in parts) else None


def _takes_long(formula: str) -> bool:
    """Tell whether the grammar would take long to find out what a formula means, more than a second or so."""
    integrals = formula.count("\\int")
    differentials = _COMMAND.sub(" ", formula).count("d") if integrals else 0
    counts = (formula.count("|"), formula.count("="), integrals, differentials)
    limits = (MAX_BARS, MAX_EQUALS, MAX_INTEGRALS, MAX_DIFFERENTIALS)
    too_many = any(count > most for count, most in zip(counts, limits, strict=True))
    return too_many or _SIGNS_ONLY.search(formula) is not None or _TOWER.search(formula) is not None


def _means_otherwise(formula: str) -> bool:
    """Tell whether a formula holds what the grammar would drop or misread: a stray prime, a negation, 7_8, 1 2."""
    found = (_STRAY_PRIME, _NEGATED, _SUBSCRIPTED_NUMBER, _ADJACENT_NUMBERS, _RAISED_MARK, _CUT_OFF)
    return any(pattern.search(formula) for pattern in found)


def split_list(text: str) -> list[str]:
    """Return the parts of a text between commas and semicolons that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth <= 0 and character in ",;":
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _rewrite(formula: str) -> str:
    formula = _TRANSPOSED.sub(r"\1_{top}", formula)
    formula = _WORD_NAME.sub(r"\\text{named \1}", _PRIMED.sub(_primes_named, formula))
    formula = _INTEGER_PARAMETER.sub("", formula)
    formula = _SET_BUILDER.sub(lambda built: built[2], formula)
    formula = _REPEATED.sub(lambda dots: f"{dots[1]}.{dots[2]}\\overline{{{dots[3] or dots[4]}}}", formula)
    formula = _REPEATING.sub(_repeating_fraction, formula)
    formula = _CASES.sub(_system, formula)
    for pattern, replacement in _REWRITES:
        formula = pattern.sub(replacement, formula)
    whole = _CURLY_LIST.fullmatch(formula)
    return whole[1] if whole else formula


def _repeating_fraction(digits: re.Match) -> str:
    period = digits[3] or digits[4]
    fixed, places = (digits[1] or "0") + digits[2], len(digits[2])
    top = int(fixed + period) - int(fixed)
    return f"\\frac{{{top}}}{{{(10 ** len(period) - 1) * 10**places}}}"


def _system(lines: re.Match) -> str:
    """Turn a system of equations into a list of them; a piecewise function, which has columns, is left alone."""
    if "&" in lines[1].replace("&=", "="):
        return lines[0]
    return ",".join(part.strip(" ,") for part in lines[1].replace("&", "").split("\\\\") if part.strip(" ,"))


def _expand_signs(text: str) -> str:
    """Turn a, b \\pm c into a, b + c, b - c: the grammar knows the sign at the top of an element only."""
    inner = text[2:-2] if text.startswith("\\{") and text.endswith("\\}") else text
    parts = []
    for part in split_list(inner):
        head, sign, tail = part.partition("\\pm")
        parts += [f"{head}+{tail}".replace("\\pm", "+"), f"{head}-{tail}".replace("\\pm", "-")] if sign else [part]
    return ",".join(parts)


def _read(text: str, lowercase: bool) -> "MathObject | None":
    from sympy import Basic, MatrixBase, S

    # ANTLR's two stages: a parse by its quick prediction is the right one; where that fails, the full one has the word.
    parsed = None
    for quick in (True, False):
        try:
            parsed = _converter(text, lowercase, quick).parse(text)
            break
        except (MemoryError, RecursionError):
            raise
        except Exception:  # the parser's and sympy's refusals have no common type
            continue
    if not isinstance(parsed, (Basic, MatrixBase)) or parsed in (S.NaN, S.ComplexInfinity):
        return None
    return _with_imaginary_unit(parsed)


def _converter(text: str, lowercase: bool, quick: bool) -> "_Latex2Sympy":
    from antlr4 import PredictionMode
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
    from math_verify.grader import should_treat_as_complex
    from sympy import Float, Integer, binomial

    class Converter(_Latex2Sympy):
        def create_parser(self, latex_str: str) -> "Parser":
            parser = super().create_parser(latex_str)
            parser._interp.predictionMode = PredictionMode.SLL if quick else PredictionMode.LL
            return parser

        def parse(self, latex_str: str) -> "MathObject | None":
            grouped = _GROUPED_NUMBER.fullmatch(latex_str)
            return self.parse_number(latex_str.strip()) if grouped else super().parse(latex_str)

        def parse_number(self, text: str) -> "Expr":
            """Read digits as data: the library hands them to `sympy.Number`, which compiles and evaluates them."""
            digits = text.replace(",", "")
            return Integer(int(digits)) if digits.lstrip("-").isdigit() else Float(digits)

        def convert_binom(self, binom: Any) -> "Expr":
            """Leave a binomial uncomputed, unlike the library: (10^9 over 10^8) is a number of gigabytes."""
            return binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)

    config = ConversionConfig(lowercase_symbols=lowercase)
    return Converter(is_real=_INDEX_I.search(text) is not None or not should_treat_as_complex(text), config=config)


def _with_imaginary_unit(parsed: "MathObject") -> "MathObject":
    """Replace the letter i, as the grammar reads it, by the imaginary unit; a summation index stays a letter."""
    from sympy import Eq, Expr, I, MatrixBase, Product, Set, Sum, Symbol, Tuple

    if isinstance(parsed, Eq) and isinstance(parsed.lhs, Symbol) and parsed.lhs.name != "i":
        value = _with_imaginary_unit(parsed.rhs)
        return parsed if value == parsed.rhs else Eq(parsed.lhs, value, evaluate=False)
    if not isinstance(parsed, (Expr, MatrixBase, Set, Tuple)):
        return parsed

    letters = {
        symbol for symbol in getattr(parsed, "free_symbols", ()) if isinstance(symbol, Symbol) and symbol.name == "i"
    }
    if not letters or parsed.atoms(Sum, Product):
        return parsed
    return parsed.xreplace(dict.fromkeys(letters, I))


def _nesting(formula: str) -> tuple[int, int]:
    """Return the (deepest nesting, number of brackets left open)."""
    deepest = depth = 0
    for character in formula:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest, depth
