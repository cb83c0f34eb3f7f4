"""Preparation of scorer processes: a zygote imports what verifiers need and runs it once before its first fork."""

import contextlib
import importlib
import logging

from rewards.result import Unscorable

_PAIRS = (
    ("\\frac{1}{2}", "0.5"),
    ("\\sqrt{8}", "2\\sqrt{2}"),
    ("x^2+1", "(x+1)^2"),
    ("[1,2)", "(1,2]"),
    ("(1, -2, 3)", "(1, 2, 3)"),
    ("1<x\\le 2", "(1,2]"),
    ("\\int_0^1 x^2 e^{x} dx", "\\frac{1}{2}"),
    ("\\prod_{k=1}^{3} k", "6"),
    ("\\tan^{-1} x + \\arcsin x", "\\cos 2x"),
    ("1.5 \\times 10^3", "1500"),
    ("30^\\circ", "3\\text{ cm}"),
    ("a_1 \\cdot b^{n-1}", "-f(x)"),
    ("x^2 + \\frac{x}{", "3"),
)
"""Forms of answers whose first reading is slow; the first four are run again in every scorer process."""


_MAX_VARIABLES = 16  # polynomials in more variables are not prepared
_LAZY = ("sympy.integrals.heurisch", "sympy.integrals.manualintegrate", "sympy.integrals.risch", "sympy.sets.setexpr")
"""Modules that sympy imports when it first needs them, which would open files in a scorer process."""


def warm_verifiers() -> None:
    """Prepare a zygote; this takes seconds."""
    for module in _LAZY:
        importlib.import_module(module)
    _make_monomial_code()
    importlib.import_module("rewards.verifiers.registry")
    from rewards.mathematics.answer import verify_symbolic, warm_up

    logging.disable(logging.WARNING)
    warm_up()
    for answer, reference in _PAIRS:
        with contextlib.suppress(Unscorable):
            verify_symbolic(answer, reference)


def touch_verifiers() -> None:
    """Prepare a new scorer process: the first use copies pages that it shares with the zygote, outside of any task."""
    from rewards.mathematics.answer import verify_symbolic

    for answer, reference in _PAIRS[:4]:
        verify_symbolic(answer, reference)


def _make_monomial_code() -> None:
    """Make sympy generate the code of its polynomials now, a piece for each number of variables."""
    from sympy.polys.monomials import MonomialOps

    for num_variables in range(1, _MAX_VARIABLES):
        operations = MonomialOps(num_variables)
        for name in ("mul", "pow", "mulpow", "ldiv", "div", "lcm", "gcd"):
            getattr(operations, name)()
