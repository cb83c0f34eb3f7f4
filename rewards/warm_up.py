"""What a zygote does before its first fork: import what verifiers need and run it once."""

import contextlib
import importlib
import logging

from rewards.result import Unscorable

_PAIRS = (
    ("\\frac{1}{2}", "0.5"),
    ("\\sqrt{8}", "2\\sqrt{2}"),
    ("x^2+1", "(x+1)^2"),
    ("2x+3y=5", "y=\\frac{5-2x}{3}"),
    ("x^3-1=0", "x=1"),
    ("\\{1,2\\}", "\\{2,3\\}"),
    ("[1,2)", "(1,2]"),
    ("(1, -2, 3)", "(1, 2, 3)"),
    ("(-\\infty,2)\\cup(3,4)", "(3,4)\\cup(-\\infty,2]"),
    ("1<x\\le 2", "(1,2]"),
    ("x\\ge 3", "x>3"),
    ("x \\in [1, 3]", "[1,3)"),
    ("\\int_0^1 x^2 e^{x} dx", "\\frac{1}{2}"),
    ("\\sum_{k=1}^{10} k", "55"),
    ("\\prod_{k=1}^{3} k", "6"),
    ("\\lim_{x\\to 0} \\frac{\\sin x}{x}", "1"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}"),
    ("\\sin 2x", "2\\sin x\\cos x"),
    ("\\tan^{-1} x + \\arcsin x", "\\cos x"),
    ("\\log_2 8", "4"),
    ("\\ln x + e^{2x}", "\\ln(2x)"),
    ("5! + \\binom{5}{2}", "131"),
    ("|x-1|", "|1-x|"),
    ("\\lfloor 2.5 \\rfloor + \\lceil 0.5 \\rceil", "3"),
    ("e^{i\\pi} + 2i", "2i - 1"),
    ("2\\pi r", "\\pi r"),
    ("50\\%", "0.5"),
    ("1,000", "1000"),
    ("1.5 \\times 10^3", "1500"),
    ("30^\\circ", "30"),
    ("3\\text{ cm}", "3"),
    ("x = 1, y = 2", "x = 2, y = 1"),
    ("\\text{east}", "west"),
    ("a_1 + b^{n-1}", "f(x)"),
    ("x = \\pm 2", "\\{2, -2\\}"),
    ("3\\frac{1}{2}", "3.5"),
    ("\\overline{AB} \\cdot 2", "\\emptyset"),
    ("12 \\bmod 5", "2"),
    ("x^2 + \\frac{x}{", "3"),
)


def warm_verifiers() -> None:
    """For seconds, once."""
    importlib.import_module("rewards.verifiers.registry")
    from rewards.math_answer import verify_symbolic, warm_up

    logging.disable(logging.WARNING)
    warm_up()
    for answer, reference in _PAIRS:
        with contextlib.suppress(Unscorable):
            verify_symbolic(answer, reference)


def touch_verifiers() -> None:
    """In a new worker: the first use copies the pages that it shares with the zygote, which is not a task's time."""
    from rewards.math_answer import verify_symbolic

    for answer, reference in _PAIRS[:4]:
        verify_symbolic(answer, reference)
