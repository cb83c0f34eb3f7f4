"""Completions of mode auto taken apart: well-formed ones, and every way to be malformed that we know."""

import json

import pytest

from rewards.answers import AnswerRule, extract, parse_completion
from rewards.result import Claim
from rewards.score import main
from rewards.sections import parse_sections
from rewards.verifiers.registry import verify

YES, NO = '<judge>{"requires_reasoning": true}</judge>', '<judge>{"requires_reasoning": false}</judge>'
THOUGHT, BOX = "<think>3 and 4</think>", "\\boxed{7}"


@pytest.mark.parametrize(
    ("text", "decision", "thinking", "answer"),
    [
        (f"{YES}{THOUGHT}{BOX}", True, "3 and 4", "7"),
        (f"{NO}{BOX}", False, "", "7"),
        (f"\n{YES}\n\n{THOUGHT}\n{BOX}\n", True, "3 and 4", "7"),
        (f' <judge>\n{{"why": "seen at once", "requires_reasoning": false}}\n</judge> {BOX} ', False, "", "7"),
    ],
)
def test_a_well_formed_completion_is_taken_apart(text, decision, thinking, answer):
    found = parse_sections(text)
    assert (found.requires_reasoning, found.thinking, found.answer) == (decision, thinking, answer)
    assert found.well_formed and found.obeys and found.keeps_its_word
    assert parse_completion(text).thinking == thinking and extract(text) == answer


@pytest.mark.parametrize(
    ("text", "decision", "keeps"),
    [
        (f"{YES}{BOX}", True, False),  # says that it must think, and does not
        (f"{YES}<think> </think>{BOX}", True, False),
        (f"{NO}{THOUGHT}{BOX}", False, False),  # thinks although it need not
        (f"{NO}<think></think>{BOX}", False, True),  # an empty thought is none, and a tag too many
        (f"{YES}<think>3 and", True, True),  # cut off
        (f"{YES}{THOUGHT}", True, True),  # no answer
        (f"{YES}{THOUGHT}{BOX} and more", True, True),
        (f"{YES} so {THOUGHT}{BOX}", True, True),
        (f"{NO}The answer is {BOX}", False, True),
        (f"{NO}\\boxed{{}}", False, True),
        (f"{NO}\\boxed{{7", False, True),
        (NO, False, True),
    ],
)
def test_a_decision_counts_where_the_rest_is_malformed(text, decision, keeps):
    found = parse_sections(text)
    assert (found.requires_reasoning, found.keeps_its_word, found.well_formed) == (decision, keeps, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        BOX,
        f"{THOUGHT}{BOX}",
        f"{THOUGHT}{NO}{BOX}",  # not first
        f"so {NO}{BOX}",
        f"{NO}{NO}{BOX}",
        f"{YES}{NO}{BOX}",
        f"<judge>{NO}</judge>{BOX}",  # one in the other
        f"{NO}{BOX}</judge>",
        f"{YES}<think>{NO}</think>{BOX}",
        f'<judge>{{"requires_reasoning": false}}{BOX}',  # does not close
        f"<judge></judge>{BOX}",
        f"<judge>no</judge>{BOX}",
        f"<judge>false</judge>{BOX}",
        f'<judge>["requires_reasoning"]</judge>{BOX}',
        f'<judge>{{"requires_reasoning": "false"}}</judge>{BOX}',
        f'<judge>{{"requires_reasoning": 0}}</judge>{BOX}',
        f'<judge>{{"requires_reasoning": null}}</judge>{BOX}',
        f'<judge>{{"requires_reasoning": true, "requires_reasoning": false}}</judge>{BOX}',
        f'<judge>{{"is_judgment_correct": true}}</judge>{BOX}',
        f"<judge>{'[' * 100_000}</judge>{BOX}",
        f'<JUDGE>{{"requires_reasoning": false}}</JUDGE>{BOX}',
    ],
)
def test_what_is_no_single_readable_judge_section_is_no_decision(text):
    found = parse_sections(text)
    assert found.requires_reasoning is None
    assert not (found.well_formed or found.obeys or found.keeps_its_word)


@pytest.mark.parametrize("rule", [AnswerRule.boxed, AnswerRule.answer_line, AnswerRule.last_number, AnswerRule.bare])
def test_an_answer_in_a_judge_section_is_none(rule):
    for text in (
        "<judge>Answer: \\boxed{7}</judge>",
        "<judge>\\boxed{7}</judge><judge>\\boxed{7}</judge> ",
        "<judge>\\boxed{7}",
    ):
        assert extract(text, [rule]) is None and parse_completion(text).answer is None


def test_the_format_is_what_the_prompt_asked_for():
    """In thinking mode a judge section must not buy the way out of thinking."""
    for text, think, auto in (
        (f"{NO}{BOX}", 0.0, 1.0),
        (f"{YES}{THOUGHT}{BOX}", 0.0, 1.0),
        (f"{THOUGHT}{BOX}", 1.0, 0.0),
    ):
        assert verify("format", Claim(text, "7"), {}) == think
        assert verify("format", Claim(text, "7", mode="auto"), {}) == auto


def test_lines_of_runs_evaluations_and_generations_say_the_mode_that_their_form_is_judged_by(tmp_path):
    rows = [
        {"completion": f"{NO}{BOX}", "reference": "7"},
        {"completion": f"{NO}{BOX}", "reference": "7", "prompt_mode": "auto"},
        {"completion": f"{NO}{BOX}", "reference": "7", "mode": "auto"},
        {"completion": f"{THOUGHT}{BOX}", "reference": "7", "mode": "think_sampled"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--verifier", "format", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main([*arguments, "--workers", "1"]) == 0
    assert [json.loads(line)["value"] for line in (tmp_path / "out.jsonl").open()] == [0.0, 1.0, 1.0, 1.0]


def test_many_sections_are_read_in_one_pass():
    """One pass for each section would not end within the minutes that a test may take."""
    for text in ("<judge></judge>" * 500_000, "<judge>" * 1_000_000, f"{YES}{'<think>' * 500_000}{BOX}"):
        assert not parse_sections(text).well_formed
