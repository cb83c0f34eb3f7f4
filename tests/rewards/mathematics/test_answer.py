"""Verdicts on mathematical answers: what is decided plainly and what math-verify says through our wrapper."""

import contextlib
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.mathematics.answer import compare_plainly, verify_symbolic
from rewards.mathematics.latex import parse_latex
from rewards.result import Claim, Unscorable
from rewards.verifiers.registry import UNDECIDED, decide_quickly, verify


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
        with patch("rewards.mathematics.answer.compare_plainly", lambda *_: None):
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
@pytest.mark.parametrize(
    "place", ["rewards.mathematics.values._evaluate", "sympy.simplify", "rewards.mathematics.latex._converter"]
)
def test_exhausted_resources_are_never_a_verdict(monkeypatch, error, place):
    """math-verify turns them into "wrong"."""
    verify_symbolic("\\sqrt{x}+f(x)", "\\sqrt{y}+f(y)")

    def exhaust(*_, **__):
        raise error

    monkeypatch.setattr(place, exhaust)
    with pytest.raises(Unscorable if error is RecursionError else MemoryError):
        verify_symbolic("\\sqrt{x}+f(x)+z", "\\sqrt{y}+f(y)+z")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        # Values between which the digits of a quick look cannot tell.
        ("10^{-300}", "0"),
        ("7^{-5000}", "0"),
        ("e^{-700}", "0"),
        ("\\sin(10^{-35})", "0"),
        ("2^{900}+1", "2^{900}"),
        ("800!+1", "800!"),
        ("10^{200}+\\sqrt{2}", "10^{200}+\\sqrt{3}"),
        ("\\sqrt{10^{300}+1}", "10^{150}"),
        ("\\pi+10^{-120}", "\\pi"),
        ("\\tanh(90)", "1"),
        ("\\sum_{k=1}^{150}2^k", "2^{151}-3"),
        ("(3a+7b)^{288}", "(3a+7b)^{288}+1"),
        ("(0.5a+7b)^{288}", "(0.5a+7b)^{288}+1"),
        ("x^{400}+x", "x^{400}"),
        ("y=7000x+0.2", "y=7000x+0.3"),
        ("0.5x+7000.2", "0.5x+7000.3"),
        ("x+10^{-35}", "x"),
        ("x>10^{-90}", "x>0"),
        ("10^{35}x+y=1", "10^{35}x+y=2"),
        ("y=10^{-35}x", "y=10^{-36}x"),
        # Numbers that nobody can write out.
        ("10^{-888888888}", "0"),
        ("6^{10^{11}}", "4"),
        ("(10^8)!", "0"),
        ("\\binom{10^8}{10^7}", "7"),
        ("x^{10^8}", "x^{10^8+1}"),
        ("7^{10^{10}}=x", "x=3"),
        ("x>7^{10^{10}}", "x>3"),
        ("6^{10^{11}}+1", "6^{10^{11}}"),
        ("((6!)!)!", "5"),
        ("e^{e^{e^{11}}}+1", "e^{e^{e^{11}}}"),
        ("\\tanh(10^9)", "1"),
        ("x+6^{-10^{11}}", "x"),
        ("(0,6^{10^{11}})", "(0,4)"),
        ("(-1,0)\\cup(1,6^{10^{11}})", "(-1,0)\\cup(1,4)"),
        ("x<-6^{10^{11}}", "(-\\infty,-4)"),
        ("\\{2,6^{10^{11}}\\}", "\\{2,4\\}"),
        ("6^{10^{11}}\\%", "4"),
    ],
)
def test_sizes_never_make_different_values_equal(answer, reference):
    for one, other in ((answer, reference), (reference, answer)):
        with contextlib.suppress(Unscorable):
            assert verify_symbolic(one, other) is False


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("3\\cdot 2^{1500}", "2^{1501}+2^{1500}"),
        ("\\frac{300!}{299!}", "300"),
        ("\\sqrt{10^{300}}", "10^{150}"),
        ("\\frac{1}{\\sqrt{10^{40}+1}-10^{20}}", "\\sqrt{10^{40}+1}+10^{20}"),
        ("\\sin^2(10^{15})+\\cos^2(10^{15})", "1"),
        ("(x+1)^{60}", "(x^2+2x+1)^{30}"),
        ("\\sum_{k=1}^{150}2^k", "2^{151}-2"),
        ("\\sum_{k=1}^{n}k^3", "\\frac{n^2(n+1)^2}{4}"),
        ("6.02\\times 10^{23}", "6.020\\cdot 10^{23}"),
        ("1.5\\cdot 10^{-20}x", "\\frac{3x}{2}\\cdot 10^{-20}"),
        ("y=10^{-35}x", "x=10^{35}y"),
        ("\\lfloor\\log_2 8\\rfloor", "3"),
        ("\\sum_{i=1}^{n}i", "\\frac{n^2+n}{2}"),
        ("\\sqrt[3]{-27}", "-3"),
        ("\\sqrt[3]{-8x}", "-2\\sqrt[3]{x}"),
        ("y=0.004x+7000", "x=250y-1750000"),
        ("0.166667x+2", "\\frac{x}{6}+2"),
        ("6^{10^{11}}", "6^{10^{11}}"),
    ],
)
def test_sizes_never_make_equal_values_different(answer, reference):
    assert verify_symbolic(answer, reference)


@pytest.mark.parametrize("reference", ["nan", "NaN", "inf", "-inf", float("nan"), float("inf")])
def test_what_a_program_writes_for_no_number_is_no_reference(reference):
    for answer in ("nan", "inf", "3", None):
        with pytest.raises(Unscorable):
            verify("math", Claim("", answer, reference), {})
        with pytest.raises(Unscorable):
            if decide_quickly("math", Claim("", answer, reference), {}) is UNDECIDED:
                raise Unscorable


@pytest.mark.parametrize(
    "long", ["\\int x dx" * 4, "\\int 1/2 " + "dx " * 10, "a" + "^a" * 24, "A **" * 24, "a" + "^b_1" * 9]
)
def test_a_formula_that_the_grammar_takes_long_for_is_no_answer(long):
    assert parse_latex(long) is None and verify_symbolic(long, "x") is False


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("\\int_0^1\\int_0^1\\int_0^1 8xyz\\,dx\\,dy\\,dz", "1"),
        ("2^{3^{2^1}}", "512"),
        ("x^9+x^8+x^7+x^6+x^5+x^4+x^3+x^2+x", "x+x^2+x^3+x^4+x^5+x^6+x^7+x^8+x^9"),
    ],
)
def test_integrals_and_powers_of_honest_answers_are_read(answer, reference):
    assert verify_symbolic(answer, reference)


def test_a_very_long_answer_is_refused_at_once():
    answer = "+".join(["x"] * 3000)
    for judge in (verify, decide_quickly):
        with pytest.raises(Unscorable, match="5999 characters are too many"):
            judge("math", Claim("", answer, "x"), {})


@pytest.mark.parametrize("reference", ['{"value": "4"}', '["4", "four"]', '[{"a": 1}]'])
def test_a_reference_that_is_an_object_or_a_list_of_texts_judges_nothing(reference):
    with pytest.raises(Unscorable, match="is an object or a list of texts: give the one answer as a text"):
        verify_symbolic("4", reference)


def test_a_list_of_numbers_is_mathematics():
    assert verify_symbolic("[1, 2]", "[1, 2]") and not verify_symbolic("4", "[1, 2]")
