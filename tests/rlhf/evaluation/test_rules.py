"""The rules and figures of benchmarks against verdicts of VLMEvalKit's own functions, and by hand.

`agreement.jsonl` holds predictions that we made up and the score that VLMEvalKit's functions of August 2026 (commit
e8e78f05), run apart, gave each: [rule, prediction, answer, options, columns, score]. `figures.jsonl` holds scored rows
and the figure that its rating functions gave.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from rlhf.evaluation.overall import Judged, figure_of
from rlhf.evaluation.rules import NOTHING, RULES, Question, infer_option, prediction_of, references_of

HERE = Path(__file__).parent


def test_every_stored_verdict_of_vlmevalkit_is_ours():
    cases = [json.loads(line) for line in (HERE / "agreement.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = Counter(rule for rule, *_ in cases)
    assert min(counts.values()) >= 50 and len(counts) >= 11, "every family has cases"
    assert {score > 0 for *_, score in cases} == {True, False}
    for rule, prediction, answer, options, columns, score in cases:
        found = RULES[rule](prediction, Question(answer, options, columns)).score or 0.0
        assert found == pytest.approx(score, abs=1e-12), (rule, prediction, answer, options, columns)


def test_figures_are_those_of_vlmevalkit():
    cases = [json.loads(line) for line in (HERE / "figures.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(cases) == 7
    for case in cases:
        values = {"True": 1.0, "False": 0.0}
        rows = [
            Judged(
                row["index"],
                row,
                values[row["score"]] if row["score"] in values else float(row["score"]),
                row.get("extracted"),
                str(number // 4) if case["score"] == "fours" else "",
            )
            for number, row in enumerate(case["rows"])
        ]
        assert figure_of(case["score"], rows).score == pytest.approx(case["figure"]), case["score"]


def test_a_figure_of_no_rows_is_none_and_not_zero():
    assert figure_of("accuracy", []).score is None
    half = [Judged(str(n), {"category": "OCR", "image_path": "a"}, 1.0) for n in range(2)]
    assert figure_of("mme", half).score is None, "categories are missing"
    assert figure_of("mme", half).parts == {"OCR": 200.0}
    assert figure_of("fours", half).score is None


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("(B) dog", "B"),
        ("The answer is b", "B"),
        ("A or B", None),  # two letters stand there
        ("It is a dog.", "B"),
        ("B because " + "long " * 9 + "reasons", None),  # the letter is far from the end
        ("I can't process this file.", "Z"),
        ("", None),
    ],
)
def test_an_option_is_inferred_as_the_protocol_has_it(prediction, letter):
    assert infer_option(prediction, {"A": "cat", "B": "dog"}) == letter


@pytest.mark.parametrize(
    ("completion", "prediction"),
    [
        (r"<think>\boxed{1}</think> so \boxed{2} or \boxed{3}", "2"),
        (r"<think>\boxed{1}</think> nothing", "1"),
        (r"first \boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("Paris.", "Paris."),
    ],
)
def test_the_answer_behind_the_thinking_is_compared(completion, prediction):
    assert prediction_of(completion) == prediction
    assert prediction_of("Paris.", drops_period=True) == "Paris"


def test_a_rule_without_an_answer_says_so_and_a_cell_may_hold_several_references():
    assert RULES["yes_no"]("maybe", Question("Yes")) is NOTHING
    assert RULES["choice"]("neither", Question("A", {"A": "x y", "B": "z w"})) is NOTHING
    assert references_of("['a', 'b']") == ["a", "b"] and references_of("[a") == ["[a"] and references_of("x") == ["x"]
