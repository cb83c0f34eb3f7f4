"""Answers in references as other projects write them, and plain references that look alike and stay as they are."""

import json

import pytest

from model.data.config import ReferenceForm
from model.data.references import LEFT, OBJECT, PLAIN, read_reference

auto = ReferenceForm.auto


@pytest.mark.parametrize(
    ("value", "answer", "form"),
    [
        ("We add.\n#### 2", "2", "gsm8k"),
        ("#### 2", "2", "gsm8k"),
        ("She has <<3*400=1200>>1200.\n#### 1,200\n", "1200", "gsm8k"),
        ("#### -0.5", "-0.5", "gsm8k"),
        ("<think>so</think> <answer> 2 </answer>", "2", "answer_tag"),
        ("<answer>a cat</answer>", "a cat", "answer_tag"),
        ("<answer>$\\boxed{2}$</answer>", "$\\boxed{2}$", "answer_tag"),
        ("<answer>\\boxed{\\frac{1}{2}}</answer>", "\\frac{1}{2}", "answer_tag"),
        ("\\boxed{2}", "2", "boxed"),
        ("$\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}", "boxed"),
        ("Adding gives $x = 3$, so the answer is \\[\\boxed{\\{1, 2\\}}.\\]", "\\{1, 2\\}", "boxed"),
        ("<think>is it \\boxed{3}?</think>\\boxed{2}", "2", "boxed"),
        ({"ground_truth": "2", "style": "rule"}, "2", OBJECT),
        ({"ground_truth": "We add.\n#### 2"}, "2", "gsm8k"),
        ({"ground_truth": 24}, "24", OBJECT),
        (2, "2", PLAIN),
        (0.5, "0.5", PLAIN),
    ],
)
def test_solutions_are_read(value, answer, form):
    assert read_reference(value, auto) == (answer, form)


@pytest.mark.parametrize(
    "text",
    [
        "2",
        " 2 ",
        "#### Conclusion",
        "#### 2 apples",
        "x = 1\n#### 2\ny = 3",
        "#### 1\n#### 2",
        "a #### 2",
        "```\n#### 2\n```",
        "# 2",
        "\\boxed{1} or \\boxed{2}",
        "\\boxed{\\boxed{2}}",
        "\\boxed{12} square units",
        "\\boxed{2",
        "\\boxed{}",
        '{"a": "\\\\boxed{1}"}',
        "['\\\\boxed{1}', '2']",
        "the tag <answer> opens, </answer> closes",
        "<answer>1</answer><answer>2</answer>",
        "<answer></answer>",
        "<answer>2",
        "x < 3 and y > 4",
        "<think>so</think> 2",
        "| a | b |\n| 1 | 2 |",
    ],
)
def test_what_is_not_beyond_doubt_stays_to_the_letter(text):
    answer, form = read_reference(text, auto)
    assert answer == text and form in (PLAIN, LEFT)


def test_objects_and_lists_are_answers_of_their_own():
    for value in (
        {"total": "3.50", "shop": "Ä"},
        {"ground_truth": "1", "total": 2},
        ["ITC Limited", "itc ltd"],
        [0, 1],
    ):
        answer, form = read_reference(value, auto)
        assert json.loads(answer) == value and form == PLAIN


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ("plain", "We add.\n#### 2", "We add.\n#### 2"),
        ("gsm8k", "#### 1\n#### two apples", "two apples"),
        ("boxed", "\\boxed{1} or \\boxed{2} units", "2"),
        ("answer_tag", "first <answer>1</answer>, then <answer> \\boxed{2} </answer> it is", "2"),
    ],
)
def test_a_form_by_name_reads_the_last_answer_anywhere(form, text, answer):
    assert read_reference(text, ReferenceForm(form))[0] == answer


@pytest.mark.parametrize("form", ["gsm8k", "boxed", "answer_tag"])
@pytest.mark.parametrize("text", ["2", "####", "\\boxed{2", "</answer><answer>"])
def test_a_form_by_name_refuses_others(form, text):
    with pytest.raises(ValueError, match=f"data.reference_form={form} says"):
        read_reference(text, ReferenceForm(form))


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 300_000, "<answer>" * 300_000, "\n####" * 300_000, "\\boxed{1}" + " $" * 500_000 + "x"]
)
@pytest.mark.parametrize("form", list(ReferenceForm))
def test_hostile_references_take_linear_time(text, form):
    """With quadratic time each of these would take an hour."""
    try:
        read_reference(text, form)
    except ValueError:
        assert form is not auto
