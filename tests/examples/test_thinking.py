"""The data of the Thinking miniature, and its judge of thoughts."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from examples.thinking.judge import checks, thought
from examples.thinking.task import HIGHEST, Family, Question, how_many
from examples.thinking.write import NUM_FRAMES, write

FILES = ("basics", "worked", "cot", "direct", "train", "general", "validation", "test")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thinking") / "data"
    write(folder, seed=0, share=0.04)
    return folder


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


QUESTIONS = [
    (Question(Family.digits, "", ("3", "8", "5")), "16", "385:3+8=11,11+5=16"),
    (Question(Family.digits, "", ("0", "4")), "4", "04:0+4=04"),
    (
        Question(Family.pictures, how_many("vehicles"), ("car", "fish", "bus"), "vehicles"),
        "2",
        "car, fish, bus:car 1, fish 1, bus 2",
    ),
    (Question(Family.charts, "", ("red 3", "blue 5", "green 1")), "9", "red 3, blue 5, green 1:3+5=08,08+1=09"),
    (Question(Family.words, "", ("O", "A", "R")), "RAO", "OAR:R-A-O"),
    (Question(Family.reading, "", ("red 3", "blue 5"), HIGHEST), "blue", "red 3, blue 5:blue"),
    (Question(Family.reading, "", ("red 3", "blue 5"), "red"), "3", "red 3, blue 5:3"),
    (Question(Family.reading, "", ("star",)), "star", "star:star"),
]


@pytest.mark.parametrize(("question", "answer", "worked"), QUESTIONS)
def test_answers_and_worked_thoughts_by_hand(question, answer, worked):
    assert (question.answer, question.worked) == (answer, worked)


def completion(question: Question, thinking: str, answer: str):
    meta = {"family": question.family.value, "shown": list(question.shown), "asked": question.asked}
    return SimpleNamespace(meta=meta, thinking=thinking, answer=answer, reference=question.answer)


class TestJudge:
    @pytest.mark.parametrize(("question", "answer", "worked"), QUESTIONS)
    def test_a_worked_thought_passes_all_checks(self, question, answer, worked):
        assert checks(completion(question, worked, answer)) == (True, True, True)
        assert thought(completion(question, worked, answer)) == 1

    @pytest.mark.parametrize(
        ("thinking", "answer", "expected"),
        [
            ("385", "16", (False, True, True)),  # it stops at the reading
            ("385:3+8=12,12+5=17", "17", (False, True, False)),  # a wrong step
            ("386:3+8=11,11+6=17", "17", (True, False, True)),  # it misread a digit
            ("385:3+8=11,11+5=16", "15", (True, True, False)),  # the answer is another
            ("", "16", (False, False, False)),
            ("3x5:1", "16", (False, False, False)),
            ("385:3+8=11,11+5=16", None, (True, True, False)),
        ],
    )
    def test_each_check_fails_alone(self, thinking, answer, expected):
        assert checks(completion(QUESTIONS[0][0], thinking, answer)) == expected

    def test_a_reading_that_no_bar_has_is_no_reading(self):
        question = QUESTIONS[5][0]
        assert checks(completion(question, "red, blue:blue", "blue")) == (False, False, False)
        assert checks(completion(QUESTIONS[3][0], "red ²:0", "0"))[0] is False


def test_every_file_is_there_and_every_image_opens(written):
    for name in FILES:
        found = rows(written, name)
        assert found and len({row["id"] for row in found}) == len(found)
        for row in found:
            for message in row.get("messages", []):
                parts = message["content"] if isinstance(message["content"], list) else []
                for part in parts:
                    if part["type"] == "image":
                        with Image.open(written / part["image"]) as image:
                            assert image.height == 32
    assert Counter(row["family"] for row in rows(written, "test")).keys() == {"digits", "pictures", "charts", "words"}
    assert {row["dataset"] for row in rows(written, "general")} == {"general"}


def test_references_are_the_answers_of_what_is_shown(written):
    for row in rows(written, "train") + rows(written, "general"):
        question = Question(Family(row["family"]), "", tuple(row["shown"]), row["asked"])
        assert row["reference"] == question.answer
        assert len(row["shown"]) == NUM_FRAMES or row["family"] != "pictures"


def test_thoughts_are_untidy_and_of_two_writers(written):
    found = rows(written, "cot")
    said = [row["messages"][-1]["content"] for row in found]
    assert any(text.startswith("<thinking>") for text in said) and any(text.startswith("<think>") for text in said)
    assert any(row["messages"][0]["role"] == "system" for row in found)
    assert any(row["id"].endswith("again") for row in found)
    thoughts = [text.partition(">")[2].partition("<")[0] for text in said]
    assert any(":" in text for text in thoughts) and any(":" not in text for text in thoughts)


def test_the_same_seed_writes_the_same_and_another_one_does_not(written, tmp_path):
    write(tmp_path / "again", seed=0, share=0.04)
    write(tmp_path / "other", seed=1, share=0.04)
    for name in FILES:
        again, other = ((tmp_path / place / f"{name}.jsonl").read_bytes() for place in ("again", "other"))
        assert (written / f"{name}.jsonl").read_bytes() == again != other
    with pytest.raises(ValueError, match="share: expected"):
        write(tmp_path / "none", seed=0, share=0.001)
