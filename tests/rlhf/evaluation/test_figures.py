"""Figures of an evaluation: shares of what was judged, their intervals, each data set and mode for itself."""

import pytest

from rlhf.config import EvaluationMode
from rlhf.evaluation.answers import Answer, has_empty_thought, judgement_of
from rlhf.evaluation.figures import figures, result_of, wilson
from rlhf.evaluation.lines import evaluation_lines
from rollouts.rollout import Prompt

THINK, SAMPLED, DIRECT, AUTO = EvaluationMode


def answer(
    prompt: str, right: bool | None, mode=THINK, score: float | None = None, dataset: str = "a", **more
) -> Answer:
    """A completion; None for one that could not be scored."""
    values = {
        "score": score if score is not None or right is None else float(right),
        "reward": None if right is None else float(right),
        "formatted": None if right is None else 1.0,
        "num_tokens": 10,
        "is_cut_off": False,
        **more,
    }
    return Answer(prompt, dataset, mode, right, **values)


def test_an_accuracy_is_a_share_of_what_was_judged():
    found = figures([answer("p", True), answer("p", None), answer("q", False), answer("q", False), answer("r", None)])
    assert found["accuracy"] == 1 / 3 and found["unscorable_share"] == 2 / 5
    assert (found["num_prompts"], found["num_completions"]) == (3, 5)
    assert found["interval"] == wilson(1 / 3, 2)  # prompt r was not judged


@pytest.mark.parametrize("answers", [[], [answer("p", None)]])
def test_a_figure_of_nothing_is_no_number(answers):
    found = figures(answers)
    assert {found[name] for name in ("accuracy", "interval", "score", "reward", "format_rate")} == {None}


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.15, 100, 0.0931, 0.2328)],
)
def test_intervals_are_those_of_wilson(share, count, low, high):
    """Agresti and Coull (1998) and statsmodels' proportion_confint give these to four places."""
    assert wilson(share, count) == pytest.approx([low, high], abs=1e-4)


def test_answers_of_a_verifier_that_grades_have_a_mean():
    """ANLS is such a mean; the share of answers that are right to the letter says another thing."""
    found = figures([answer("p", True), answer("p", False, score=0.6), answer("q", False, score=0.0)])
    assert found["accuracy"] == 1 / 3 and found["score"] == pytest.approx(1.6 / 3)


@pytest.mark.parametrize(
    ("text", "is_empty"),
    [
        ("<think>\n</think> 3", True),
        ("<think>so", False),  # cut off while it thinks
        ("<think>so</think> 3", False),
        ("</think> 3", True),
        ("3", False),
    ],
)
def test_a_thought_that_is_cut_off_is_not_an_empty_one(text, is_empty):
    assert has_empty_thought(text) is is_empty
    found = figures([answer("p", True, is_empty_thought=is_empty, has_tags=True)])
    assert found["empty_think_share"] == float(is_empty)


def test_answers_of_mode_auto_say_who_thought_and_who_decided_rightly():
    """Worked by hand: three of four think, two of them are right, as is the one that does not think; facts of three."""
    yes, no = '<judge>{"requires_reasoning": true}</judge>', '<judge>{"requires_reasoning": false}</judge>'
    said = [
        (f"{yes}<think>a</think>\\boxed{{1}}", True, {"requires_reasoning": True}),
        (f"{no}<think>a</think>\\boxed{{1}}", True, {}),  # thinks against its word
        (f"{yes}<think>a", False, {"requires_reasoning": "true"}),  # cut off; the row is of a table of texts
        (f"{no}\\boxed{{1}}", True, {"requires_reasoning": True}),
    ]
    answers = [
        answer(str(n), right, AUTO, judgement=judgement_of(text, row)) for n, (text, right, row) in enumerate(said)
    ]
    found = figures(answers)
    assert (found["thought_share"], found["accuracy_with_thought"], found["accuracy_without_thought"]) == (
        0.75,
        2 / 3,
        1,
    )
    assert found["decision_accuracy"] == 2 / 3 and found["mode_obedience"] == 0.5
    result = result_of([Prompt("0", [], "1", {})], {DIRECT: [answer("0", True, DIRECT)], AUTO: answers})
    assert result["thought_share"] == 0.75 and result["mode_obedience_auto"] == 0.5 and "mean_length_auto" in result
    lines = evaluation_lines("m", {**result, "max_completion_tokens": 4})
    assert (
        "auto: thinks in 75.0%; accuracy of those 66.7%, of the others 100.0%; decides as the rows say: 66.7%" in lines
    )


def test_data_sets_modes_and_groups_stand_apart():
    asked = [Prompt("p", [], "1", {"family": "x"}), Prompt("q", [], "1", {"family": "y"})]
    answers = {
        THINK: [answer("p", True), answer("q", False, dataset="b")],
        SAMPLED: [
            *(answer("p", right, SAMPLED) for right in (True, False)),
            *(answer("q", False, SAMPLED, dataset="b") for _ in range(2)),
        ],
    }
    result = result_of(asked, answers, num_samples=2, group_by="family")
    assert (result["accuracy_think"], result["accuracy_think_sampled"], result["pass_at_2"]) == (0.5, 1 / 4, 0.5)
    assert "accuracy_direct" not in result and result["majority_answer_rate"] == 1.0
    assert (
        result["by_dataset"]["a"]["think"]["accuracy"] == 1.0 and result["by_dataset"]["b"]["think"]["accuracy"] == 0.0
    )
    assert result["by_group"]["y"]["accuracy_think_sampled"] == 0.0 and result["by_group"]["y"]["num_eval"] == 1


def test_a_person_reads_a_line_for_each_data_set_and_mode_and_how_much_was_cut_off():
    asked = [Prompt("p", [], "1"), Prompt("q", [], "2")]
    answers = {DIRECT: [answer("p", True, DIRECT, is_cut_off=True), answer("q", None, DIRECT, dataset="b")]}
    lines = evaluation_lines("model", {**result_of(asked, answers), "max_completion_tokens": 48})
    assert lines[0] == "model: 2 prompts, at most 48 tokens a completion"
    assert [line for line in lines if not line.startswith(" ")][1:4] == ["a", "b", "all"]
    assert lines[3].split() == ["direct", "100.0%", "20.7%", "-", "100.0%", "1.000", "100.0%", "100.0%", "0.0%", "10.0"]
    assert lines[-1] == "half of a mode and more is cut off at 48 tokens; raise rollouts.max_completion_tokens"
