"""What Chain-of-Thought data sets say, in one form: thoughts, answers, questions without hints."""

import pytest

from model.interface import THINKING_INSTRUCTION
from rewards.answers import parse_completion
from sft.prepare.cleaning import (
    HintCutter,
    NotUsable,
    has_think_tags,
    overlap,
    question_text,
    tokens_of,
    unify,
    unwrapped,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("<think>I add.</think>\\boxed{2}", "<think>I add.</think>\\boxed{2}"),
        ("<think>\nI add.\n</think>\n\nThe answer is 2.", "<think>I add.</think>\\boxed{2}"),
        ("<Thinking>I add.</Thinking> <ANSWER>2</ANSWER>", "<think>I add.</think>\\boxed{2}"),
        ("I add.</think>2", "<think>I add.</think>\\boxed{2}"),
        ("<think><think>I add.</think></think>\\boxed{2}", "<think>I add.</think>\\boxed{2}"),
        (
            "<SUMMARY>s</SUMMARY>\n\n<CAPTION> c </CAPTION>\n<REASONING>r</REASONING>\n<CONCLUSION>B</CONCLUSION>",
            "<think>s\nc\nr</think>\\boxed{B}",
        ),
        (
            "<|begin_of_thought|>q<|end_of_thought|>\n<|begin_of_solution|>So \\boxed{\\frac{1}{2}}.<|end_of_solution|>",
            "<think>q</think>\\boxed{\\frac{1}{2}}",
        ),
        ("◁think▷k◁/think▷ A cat.", "<think>k</think>\\boxed{A cat.}"),
        ("[THINK]k[/THINK]\n#### 1,200", "<think>k</think>\\boxed{1200}"),
        ("48/2 = 24.\nSo 72.\n#### 72", "<think>48/2 = 24.\nSo 72.</think>\\boxed{72}"),
        ("We have x=3, so it is $\\boxed{3}$.", "<think>We have x=3, so it is $3$.</think>\\boxed{3}"),
        ("I add.\nThe answer is: 12", "<think>I add.</think>\\boxed{12}"),
        ("I add. <answer>12</answer>", "<think>I add.</think>\\boxed{12}"),
        ("<think>the \\boxed{4} is wrong</think>\\boxed{5}", "<think>the \\boxed{4} is wrong</think>\\boxed{5}"),
    ],
)
def test_thoughts_and_answers_in_any_tags_become_one_form(said, expected):
    found = unify(said)
    assert found.text == expected and parse_completion(found.text).well_formed
    again = unify(found.text)
    assert (again.thought, again.answer) == (found.thought, found.answer), "cleaning twice changes nothing"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("42", "no_thought"),
        ("<think></think>5", "no_thought"),
        ("\\boxed{5}", "no_thought"),
        ("<answer>5</answer>", "no_thought"),
        ("#### Steps\nI add.\n#### Final answer", "no_thought"),
        ("<think>a</think>", "no_answer"),
        ("<think>cut off", "malformed"),
        ("<think>a</think><think>b</think>5", "malformed"),
        ("Sure! <think>a</think>5", "malformed"),
        ("<think>a</think>5<answer>6</answer> more </think>", "malformed"),
        ("<think>a</think>half } a brace", "malformed"),
    ],
)
def test_what_cannot_be_unified_has_a_reason(said, reason):
    with pytest.raises(NotUsable, match=f"^{reason}$"):
        unify(said)


def test_a_solution_without_tags_is_split_on_request_alone():
    assert unify("I add.\n#### 2").is_split and not unify("<think>I add.</think>2").is_split
    with pytest.raises(NotUsable, match="no_thought"):
        unify("I add.\n#### 2", split_solutions=False)


def test_a_thought_in_a_column_loses_the_tags_around_it():
    assert unwrapped("<thinking> I add. </thinking>") == "I add."
    assert unwrapped("I say <b>so</b>.") == "I say <b>so</b>."
    with pytest.raises(NotUsable, match="malformed"):
        unwrapped("I <think> so")
    assert has_think_tags("x</Thinking>") and has_think_tags("◁think▷") and not has_think_tags("I think so")


def test_overlap_is_the_share_of_the_thoughts_tokens_that_the_answer_repeats():
    assert tokens_of("It's 3.5 cm, 三角") == ["it", "'", "s", "3", ".", "5", "cm", ",", "三", "角"]
    # Five tokens of the thought, of which "a" counts once: a, b and c are repeated.
    assert overlap("a a b c d", "A b c") == pytest.approx(3 / 5)
    assert (overlap("so it is 5", "5"), overlap("5", "5 and more"), overlap("", "5")) == (0.25, 1.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("What is it?\nAnswer the question using a single word or phrase.", "What is it?"),
        ("What?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly.", "What?\nA. x\nB. y"),
        (
            "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, "
            "at the end.\nQuestion: How many?",
            "How many?",
        ),
        ("How many? Please reason step by step, and put your final answer within \\boxed{}.", "How many?"),
        ("Let's think step by step. What is 1+1?", "What is 1+1?"),
        (
            "Count. Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.",
            "Count.",
        ),
        (f"{THINKING_INSTRUCTION} Count.", "Count."),
        ("Count. Answer directly without explanation. Do not explain.", "Count."),
        ("  What should you do step by step?\n", "  What should you do step by step?\n"),
        ("Reason within <think> </think> tags. How many cats?", "How many cats?"),
        ("Put it in \\boxed{}. How many cats?", "How many cats?"),
        ("In HTML, what is <answer>?", "In HTML, what is <answer>?"),
    ],
)
def test_hints_at_the_ends_of_questions_are_cut_and_nothing_else(asked, kept):
    assert HintCutter().cut(asked) == kept


def test_own_hints_and_parts_of_messages():
    cutter = HintCutter([r"antworte kurz\."])
    image, text = {"type": "image", "image": "a.png"}, {"type": "text", "text": "Was? Antworte kurz."}
    asked = [{"role": "system", "content": "Antworte kurz."}, {"role": "user", "content": [image, text]}]
    found = cutter.messages(asked)
    assert found == [asked[0], {"role": "user", "content": [image, {"type": "text", "text": "Was?"}]}]
    assert (question_text(found), cutter.num_cut) == ("Was?", 1)
    [empty] = cutter.messages([{"role": "user", "content": [image, {"type": "text", "text": "Antworte kurz."}]}])
    assert empty["content"] == [image] and question_text([empty]) == ""


def test_long_and_odd_texts_take_no_time():
    HintCutter().cut("a " * 500_000 + "<think> " * 50)
    for text in ("<think>" * 20_000, "<think>" + "</think>" * 20_000, "<answer>" * 20_000, "#" * 100_000):
        with pytest.raises(NotUsable):
            unify(text)
