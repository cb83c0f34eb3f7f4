"""Verdicts on mathematical answers: what is decided plainly and what math-verify says through our wrapper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.math_answer import UnparsableReference, compare_plainly, verify_symbolic


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
        ("0.1", "0.10000000000000000000000000001", False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
        ("blue", "blue", True),
        ("\\frac{1}{2}", "\\frac{1}{2}", True),
        ("", "7", False),
        ("  ", "7", False),
        ("", "", False),
        ("7", "", None),
        ("1/2", "0.5", None),
        ("1,000", "1000", None),
        ("7.", "7", None),
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
    verdict = compare_plainly(answer, reference)
    assert verdict is (True if answer.strip() and answer.strip() == reference.strip() else verdict)
    assert answer.strip() or verdict is False


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


@pytest.mark.parametrize("reference", ["", " ", "$", "???", "\\frac{1}{", "北京", "x^"])
def test_a_reference_that_is_not_mathematics_cannot_be_scored(reference):
    with pytest.raises(UnparsableReference, match=r"reference .* does not parse"):
        verify_symbolic("7", reference)
