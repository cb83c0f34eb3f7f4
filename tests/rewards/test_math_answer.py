"""Verdicts on mathematical answers: what is decided plainly and what math-verify says through our wrapper."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.math_answer import compare_plainly, verify_symbolic
from rewards.result import Unscorable


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("7", "7", True),
        (" 7 ", "7", True),
        ("7.0", "7", True),
        ("007", "7", True),
        ("+7", "7", True),
        ("-0", "0", True),
        ("-7", "7", False),
        ("8", "7", False),
        ("0.1", "0.10000000000000000000000000001", True),  # decimals may be rounded at the sixth place
        ("0.1", "0.100002", False),
        ("0.0000001", "0.0000003", False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
        ("blue", "blue", True),
        ("\\frac{1}{2}", "\\frac{1}{2}", True),
        ("", "7", False),
        ("  ", "7", False),
        ("", "", None),
        ("7", "", None),
        ("???", "???", None),
        ("1/2", "0.5", True),
        ("1,000", "1000", True),
        ("7.", "7", True),
        ("50\\%", "0.5", True),
        ("5 cm", "5", True),
        ("5 cm", "5 m", False),
        ("\\sqrt{4}", "2", None),
        ("\\text{Even}", "even", True),
        ("1e3", "1000", None),
        ("nan", "7", None),
    ],
)
def test_plain_comparison(answer, reference, verdict):
    assert compare_plainly(answer, reference) is verdict


@given(st.integers(-(10**20), 10**20), st.integers(-(10**20), 10**20))
def test_plain_comparison_of_integers_is_equality(a, b):
    assert compare_plainly(str(a), str(b)) is (a == b)


@given(st.text(), st.text())
def test_plain_comparison_takes_any_text(answer, reference):
    assert compare_plainly(answer, reference) in (True, False, None)


_FORMS = st.sampled_from(
    ["{n}", "{n}.0", "+{n}", "{n}/1", "\\frac{{{n}}}{{1}}", "{n}\\%", "{n} cm", "{n}\\text{{ m}}", "\\${n}", "0.{n}", "{n}/7",
     "\\frac{n}3", "-{n}", "{n}^\\circ", "{n},{n}", "{n}x", "\\text{{a{n}}}", "{n}e2", "x={n}", "{n},000", "{n}.{n}", "word"]
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(_FORMS, _FORMS, st.integers(1, 12), st.integers(1, 12))
def test_plain_comparison_never_contradicts_mathematics(one, other, n, m):
    """What is decided plainly is what parsing and sympy say without it."""
    answer, reference = one.format(n=n), other.format(n=m)
    plain = compare_plainly(answer, reference)
    if plain is not None:
        with patch("rewards.math_answer.compare_plainly", lambda *_: None):
            assert verify_symbolic(answer, reference) is plain


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("\\frac{1}{2}", "0.5"),
        ("0.5", "\\frac{1}{2}"),
        ("\\dfrac{1}{2}", "\\frac12"),
        ("1/2", "0.5"),
        ("3\\frac{1}{2}", "3.5"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("2^{10}", "1024"),
        ("10^3", "1000"),
        ("x+1", "1+x"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x=3", "3"),
        ("3", "x=3"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("(1, 2)", "(1,2)"),
        ("[1,2)", "[1, 2)"),
        ("(-\\infty, 3]", "(-\\infty,3]"),
        ("1{,}000", "1000"),
        ("1,000", "1000"),
        ("7.", "7"),
        (".5", "0.5"),
        ("$\\frac{1}{2}$", "0.5"),
        ("\\text{B}", "B"),
        ("3\\text{ cm}", "3"),
        ("30^\\circ", "30"),
        # math-verify lets a percentage mean the number and the share; where the sign stands must not matter.
        ("50\\%", "50"),
        ("50\\%", "0.5"),
        ("50%", "50"),
        ("50%", "0.5"),
        ("$50$\\%", "0.5"),
        ("$50\\%$", "0.5"),
        ("0.5", "50\\%"),
        ("50%", "50\\%"),
        ("\\frac{1}{2}\\%", "0.005"),
    ],
)
def test_equal_in_latex_without_dollar_signs(answer, reference):
    assert verify_symbolic(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("\\frac{1}{3}", "\\frac{1}{2}"),
        ("\\frac{1}{3}", "0.3333"),
        ("1", "\\frac{1}{2}"),
        ("2", "\\frac{2}{3}"),
        ("2", "2\\sqrt{2}"),
        ("2", "2x"),
        ("-3", "3"),
        ("\\{1,3\\}", "\\{1,2\\}"),
        ("(2,1)", "(1,2)"),
        ("[1,2]", "(1,2)"),
        ("1", "1{,}000"),
        ("51\\%", "0.5"),
        ("\\pi", "3.14159"),
        ("x-1", "x+1"),
        ("y=7", "x=7"),
        ("3 and 4", "3"),
        ("1$ and $7", "7"),
        ("", "\\frac{1}{2}"),
        ("$", "\\frac{1}{2}"),
        ("%", "\\frac{1}{2}"),
        ("seven", "7"),
        ("???", "7"),
        ("\\frac{1}{", "\\frac{1}{2}"),
        ("７+x", "7+y"),  # sympy cannot read a full-width digit: that is the answer's fault
        ("(" * 100, "\\frac{1}{2}"),
    ],
)
def test_wrong_or_unreadable_answers(answer, reference):
    assert not verify_symbolic(answer, reference)


@pytest.mark.parametrize(
    "reference", ["", " ", "$", "???", "\\frac{1}{", "forty two", "Answer is forty two.", "x^", "\\boxed{}"]
)
def test_a_reference_that_is_not_mathematics_cannot_be_scored(reference):
    with pytest.raises(Unscorable, match=r"reference .* does not parse"):
        verify_symbolic("7", reference)


@pytest.mark.parametrize("answer", [None, "", "7", "???", "("])
def test_an_unreadable_reference_is_unscorable_whatever_the_answer(answer):
    with pytest.raises(Unscorable):
        verify_symbolic(answer, "???")


@pytest.mark.parametrize("answer", [None, "", " ", "$"])
def test_no_answer_is_wrong(answer):
    assert verify_symbolic(answer, "x+1") is False


def test_an_answer_nested_beyond_judgement_is_unscorable_not_wrong():
    with pytest.raises(Unscorable, match="nested too deeply"):
        verify_symbolic("(" * 200 + "x" + ")" * 200, "x")


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
@pytest.mark.parametrize("place", ["rewards.math_values._value", "sympy.simplify", "rewards.math_latex._converter"])
def test_exhausted_resources_are_never_a_verdict(monkeypatch, error, place):
    """math-verify turns them into "wrong"."""
    verify_symbolic("\\sqrt{x}+f(x)", "\\sqrt{y}+f(y)")

    def exhaust(*_, **__):
        raise error

    monkeypatch.setattr(place, exhaust)
    with pytest.raises(Unscorable if error is RecursionError else MemoryError):
        verify_symbolic("\\sqrt{x}+f(x)+z", "\\sqrt{y}+f(y)+z")
