"""`choice` reads letters, option texts and free text, and never guesses."""

import pytest

from rewards.result import Claim, Unscorable
from rewards.verifiers.choices import pick
from rewards.verifiers.option_set import OptionSet
from rewards.verifiers.registry import verify

LENGTHS = {"A": "10 cm", "B": "12 cm", "C": "1.12 cm", "D": "not enough information"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("The answer is (B) 12 cm", "B"),
        ("The answer is (B) 12 cm.", "B"),
        ("So we choose option C.", "C"),
        ("After some work, the correct answer is **B**.", "B"),
        ("(B)", "B"),
        ("b", "B"),
        ("B) because the triangle is right-angled", "B"),
        ("It is 12 cm long", "B"),
        ("It is 1.12 cm long", "C"),
        ("The answer is D, not enough information", "D"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("I pick B", "B"),
        ("正确答案是 B。", "B"),
        ("A triangle of 12 cm", "B"),
        ("12 CM", "B"),
        ("12\\,\\text{cm}", "B"),
        ("12cm", "B"),
        ("Ｂ", "B"),
        ("'B'", "B"),
        ("B is the correct answer.", "B"),
        ("option b is right", "B"),
        ("Answer: b", "B"),
        ("B is not the correct answer", None),
        ("B is correct and C is correct", None),
        ("B is right? No, C.", None),
        ("The answer is 112 cm", None),
        ("The answer is (A) or (B)", None),
        ("The answer is A. Wait, the answer is B.", None),
        ("The answer is not B", None),
        ("B is wrong", None),
        ("(B) 10 cm", None),
        ("10 cm or 12 cm", None),
        ("The answer is B: 10 cm", None),
        ("A, B, C and D are all possible", None),
        ("I think so", None),
        ("A good question", None),
        ("Option E", None),
        ("maybe B", None),
        ("It could be B or C", None),
        ("", None),
    ],
)
def test_what_a_text_picks(text, key):
    assert pick(text, OptionSet(LENGTHS)) == key


def test_options_that_are_formulas_are_picked_by_their_value():
    given = {"A": "$\\frac{2}{5}$", "B": "$\\frac{3}{4}$", "C": "75\\%", "D": "0.4 kg"}
    for text, key in (("\\dfrac{3}{4}", "B"), ("\\frac34", "B"), ("75%", "C"), ("0.75", None), ("0.4", None)):
        assert pick(text, OptionSet(given)) == key


@pytest.mark.parametrize(
    ("reference", "options"),
    [
        ("B", ["10", "12"]),
        ("12", ["10", "12"]),
        ("(B)", {"A": "10", "B": "12"}),
        ("B. 12", {"a": "10", "b": "12"}),
        ("b", ["A. 10", "B. 12"]),
        (12, [10, 12]),
    ],
)
def test_references_and_options_in_all_their_forms(reference, options):
    for answer, value in (("B", 1.0), ("12", 1.0), ("A", 0.0), ("10", 0.0), ("C", 0.0)):
        assert verify("choice", Claim(answer, answer, reference, {"options": options}), {}) == value


@pytest.mark.parametrize("options", ["ab", 5, {"first": "a"}, [], ["x"] * 27])
def test_options_of_another_form_are_unscorable(options):
    with pytest.raises(Unscorable, match="options"):
        verify("choice", Claim("A", "A", "A", {"options": options}), {})


def test_several_right_options():
    claim = Claim("", "A and C", ["A", "C"], {"options": ["1", "2", "3"]})
    assert verify("choice", claim, {}) == 1.0
    for wrong in ("A", "A, B", "ABC", "all of them"):
        assert verify("choice", Claim("", wrong, ["A", "C"], {"options": ["1", "2", "3"]}), {}) == 0.0
