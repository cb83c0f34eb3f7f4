"""`sft.prepare free_response`: which multiple choice becomes free response, and what stays as it is."""

import json
from pathlib import Path

import pytest

from model.data.sources import DataFolders
from model.interface import Mode
from rewards.verifiers.option_set import OptionSet
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from sft.prepare.config import FreeResponseConfig, Others
from sft.prepare.free_response import is_number_or_formula, listed_options, make, without_options
from tests.rlhf.prompt_data import png, write_jsonl

LISTED = "How many dots?\nOptions:\nA. 3\nB. 4\nC. 5"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rewrite(tmp_path):
    """Rewrites rows; gives (rows that are written, summary)."""

    def run(rows: list[dict], **settings) -> tuple[list[dict], dict]:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        make(FreeResponseConfig(prompts=[str(path)], out=str(tmp_path / "out"), **settings))
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        found = lines(tmp_path / "out" / "prompts.jsonl")
        assert summary["num_rows"] == len(found) + len(lines(tmp_path / "out" / "dropped.jsonl"))
        return found, summary

    return run


@pytest.mark.parametrize(
    "option",
    [
        "5",
        "-1/2",
        "5 cm",
        "60 degrees",
        "$\\frac{1}{2}$",
        "x+1",
        "12%",
        "(2, 3)",
        "\\sqrt{3}",
        "3 apples",
        "2:3",
        "60°",
    ],
)
def test_numbers_and_formulas_can_be_asked_for_without_options(option):
    assert is_number_or_formula(option)


@pytest.mark.parametrize(
    "option",
    [
        "",
        "A",
        "x",
        "blue",
        "None of the above",
        "True",
        "Cannot be determined",
        "decreases by 3",
        "Group 3",
        "H2O",
        "two",
    ],
)
def test_words_letters_and_molecules_cannot(option):
    assert not is_number_or_formula(option)


@pytest.mark.parametrize(
    ("question", "kept", "options"),
    [
        (LISTED, "How many dots?", {"A": "3", "B": "4", "C": "5"}),
        ("Find x.\n(A) 3 (B) 4", "Find x.", {"A": "3", "B": "4"}),
        ("Find x. (A) 3; (B) 4;", "Find x.", {"A": "3", "B": "4"}),
        ("Find x.\nChoices:\n(A) 3 cm\n(B) 4 cm\n", "Find x.", {"A": "3 cm", "B": "4 cm"}),
        ("If (A) holds, then?", "If (A) holds, then?", {}),
        ("A. 3\nIs it?", "A. 3\nIs it?", {}),
    ],
)
def test_options_at_the_end_of_a_question_are_read_and_stripped(question, kept, options):
    assert listed_options(question) == options
    assert without_options(question, OptionSet(options)) == kept


def test_the_text_of_the_right_option_becomes_the_reference_and_rl_reads_it(rewrite, tmp_path, tiny):
    (tmp_path / "a.png").write_bytes(png(0))
    rows = [
        {
            "id": "a",
            "question": f"{LISTED}\nAnswer with the option's letter from the given choices directly.",
            "answer": "B",
        },
        {
            "id": "b",
            "question": "How many?",
            "options": ["3", "4"],
            "answer": "(A)",
            "image": "a.png",
            "dataset": "dots",
        },
        {
            "id": "c",
            "messages": [{"role": "user", "content": "<image>How long?\n(A) 3 cm\n(B) 4 cm"}],
            "images": ["a.png"],
        },
        {"id": "d", "question": "How long?", "choices": {"A": "$x^2$", "B": "y"}, "reference": "x^2", "level": 2},
    ]
    rows[2]["reference"] = "B"
    found, summary = rewrite(rows)
    assert [row["reference"] for row in found] == ["4", "3", "4 cm", "$x^2$"]
    asked = [row["messages"][0]["content"] for row in found]
    image = {
        "type": "image",
        "image": next((tmp_path / "out" / "media").iterdir()).relative_to(tmp_path / "out").as_posix(),
    }
    assert asked == [
        "How many dots?",
        [image, {"type": "text", "text": "How many?"}],
        [image, {"type": "text", "text": "How long?"}],
        "How long?",
    ]
    assert [row["dataset"] for row in found] == [f"{name}-free_response" for name in ("rows", "dots", "rows", "rows")]
    assert found[0]["multiple_choice"]["letter"] == "B" and "C. 5" in found[0]["multiple_choice"]["question"]
    assert found[3]["level"] == 2 and not {"options", "choices"} & {name for row in found for name in row}
    assert (summary["rewritten"], summary["left_as_they_are"]) == (4, {})
    limits = RolloutConfig(max_prompt_tokens=96)
    again = PromptSet(tmp_path / "out" / "prompts.jsonl", tiny[1], Mode.think, limits, None, DataFolders())
    assert [row.prompt.reference for row in again.items] == ["4", "3", "4 cm", "$x^2$"]


LEFT = {
    "no_multiple_choice": {"question": "1+1?", "answer": "2"},
    "no_right_option": {"question": LISTED, "answer": "7"},
    "no_number_or_formula": {"question": "Colour?\nA. red\nB. blue", "answer": "A"},
    "asks_about_options": {"question": "Which of the following is prime?\nA. 4\nB. 5", "answer": "B"},
    "options_within_question": {"question": "A. 4\nB. 5\nWhat is more?", "answer": "B"},
}


def test_what_cannot_be_rewritten_stays_as_it_is_or_is_dropped(rewrite, tmp_path):
    found, summary = rewrite([*LEFT.values(), {"question": LISTED, "answer": "B"}])
    assert summary["left_as_they_are"] == dict.fromkeys(sorted(LEFT), 1) and summary["rewritten"] == 1
    assert [row["messages"][0]["content"] for row in found[:5]] == [row["question"] for row in LEFT.values()]
    assert [row["reference"] for row in found[:5]] == [row["answer"] for row in LEFT.values()]
    found, summary = rewrite([*LEFT.values(), {"question": LISTED, "answer": "B"}], others=Others.drop)
    assert summary["dropped"] == dict.fromkeys(sorted(LEFT), 1) and len(found) == 1
    assert [row["reason"] for row in lines(tmp_path / "out" / "dropped.jsonl")] == list(LEFT)


def test_nothing_left_and_unreadable_rows_are_refused(rewrite, tmp_path):
    with pytest.raises(ValueError, match="expected some rows to be left, found none"):
        rewrite([LEFT["no_multiple_choice"]], others=Others.drop)
    with pytest.raises(ValueError, match=r"1 of 2 rows cannot be used"):
        rewrite([LEFT["no_multiple_choice"], {"question": 5}])
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["dropped"] == {"unreadable": 1}
    with pytest.raises(ValueError, match="expected objects with role and content, found 'hi'"):
        rewrite([{"messages": ["hi"], "answer": "A"}] * 2)
    odd = {"messages": [{"role": "user", "content": [{"type": "text"}, 5]}], "answer": "A"}
    assert rewrite([odd])[1]["left_as_they_are"] == {"no_multiple_choice": 1}
