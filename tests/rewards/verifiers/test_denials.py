"""What stands beside a right answer may make it another: `choice`, `boolean` and `count` pay none of these."""

import pytest

from rewards.result import Claim
from rewards.verifiers.registry import decide_quickly, verify

ANIMALS = ["cat", "dog", "bird"]


def value(name, answer, reference, **columns):
    claim = Claim(answer, answer, reference, columns)
    found = verify(name, claim, {})
    assert decide_quickly(name, claim, {}) in (found,) or name == "choice"
    return found


@pytest.mark.parametrize(
    "answer",
    [
        "~A", "$~A$", "~(A)", "!A", "¬A", "A'", "A’", "'A", 'A"', "A''", "(A)'", "A^c", "no A", "non-A", "~cat", "!cat", "¬cat", "no cat", "No cat.", "non-cat", "non cat", "There is no cat", "anti-cat", "cat'", "cat-like",
        "a fake cat", "zero cats, no cat", "hardly a cat", "nothing like a cat", "far from a cat", "The answer is ~A", "The answer is A'",
    ],
)  # fmt: skip
def test_an_option_that_is_denied_or_altered_is_not_picked(answer):
    assert value("choice", answer, "A", options=ANIMALS) == 0.0


@pytest.mark.parametrize(
    "answer",
    ["A", "'A'", '"A"', "“A”", "'(A)'", "A~", "A.~cat", "(A)~cat", "the~cat", "'cat'", '"cat"', "It is a cat.", "the cat's"],
)  # fmt: skip
def test_an_option_in_quotes_or_behind_a_fixed_space_is_picked(answer):
    assert value("choice", answer, "A", options=ANIMALS) == 1.0


@pytest.mark.parametrize("answer", ["no change", "There is no change", "B"])
def test_an_option_may_hold_a_denial_itself(answer):
    assert value("choice", answer, "B", options=["growth", "no change"]) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "yes, not", "yes (incorrect)", "yes (wrong)", "yes, untrue", "yes, never", "yes never", "yes, there are none", "yes, there is nothing", "yes, nope", "yes, it can't", "yes, it won’t", "yes, it is impossible",
        "yes, it is unlikely", "yes, nothing", "yes, nobody", "yes, without", "yes, I'm lying", "yes, I am joking", "yes, that is a lie", "yes, maybe", "yes, it might be", "yes, if only", "yes, the opposite", "Yes. Not really.",
        "yes, it lacks one", "true, kidding", "correct, hardly", "yes; zero", "yes, you wish", "yes, as if", "是的，不可能", "是的，图中没有猫", "对，开玩笑的",
    ],
)  # fmt: skip
def test_a_yes_that_other_words_take_back_is_none(answer):
    assert value("boolean", answer, "yes") == 0.0


@pytest.mark.parametrize(
    "answer", ["no, I'm lying", "no, maybe", "no, just kidding", "no, if at all", "no, cat", "no, surely yes"]
)
def test_a_no_that_other_words_take_back_is_none(answer):
    assert value("boolean", answer, "no") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Yes, indeed.", "yes"), ("yes, of course", "yes"), ("Yes, certainly!", "yes"), ("Yes, a dog sits there", "yes"), ("yes, in the corner", "yes"), ("Yes, we can see a dog", "yes"), ("是的，没错", "yes"),
        ("No, there are none.", "no"), ("no, never", "no"), ("No, nothing", "no"), ("No, it cannot", "no"), ("No, certainly not", "no"), ("不是，没有猫", "no"),
        ("Yes. The man in the picture stands beside a long red car in the street. He does not wear a hat.", "yes"),
    ],
)  # fmt: skip
def test_a_yes_or_no_that_other_words_leave_standing(answer, reference):
    assert value("boolean", answer, reference) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "3+", "3 +", "3?", "3 ?", "three?", "\\neq 3", "\\ne 3", "≠3", "≠ 3", "no 3", "no three", "non-3", "3rd", "3D", "3x", "3-legged", "three-legged dogs", "3多", "3 多个", "3 pairs", "three pairs", "3 couples",
        "twice 3", "thrice three", "double 3", "neither 3", "nor 3", "without 3", "!3", "¬3", "#3", "3 is excluded", "three is ruled out", "3, wrong", "3 (incorrect)", "\\cancel{3}", "\\sout{3}", "\\bcancel{3}", "\\lnot 3",
        "\\overline{3}", "3'", "3 more", "another 3", "3对", "三双", "\\gtrsim 3",
    ],
)  # fmt: skip
def test_a_three_that_is_denied_or_altered_is_no_count(answer):
    assert value("count", answer, 3) == 0.0


@pytest.mark.parametrize(
    "answer", ["3", "3.", "\\text{3}", "\\mathbf{3}", "$3$", "**3**", "'3'", '"3"', "(3)", "3, three", "There are 3 dogs.", "3 dogs are in no hurry", "3只"]
)  # fmt: skip
def test_a_three_in_styles_and_quotes_is_a_count(answer):
    assert value("count", answer, 3) == 1.0
