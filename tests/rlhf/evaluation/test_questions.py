"""Rows of VLMEvalKit's tables become questions, or are left out and named; no model is asked here."""

import json
import random
from pathlib import Path

import pytest

from rlhf.evaluation.benchmarks import catalogue
from rlhf.evaluation.overall import Judged, figure_of, means_of
from rlhf.evaluation.questions import Asked, asked_rows, media_digest, write_prompts
from rlhf.evaluation.rules import RULES
from rlhf.evaluation.suite import interval_of
from tests.rlhf.evaluation.test_benchmarks import picture, write_tsv


def asked(folder: Path, name: str, rows: list[dict[str, object]]) -> list[Asked | str]:
    benchmark = catalogue().benchmarks[name]
    write_tsv(folder / f"{benchmark.file}.tsv", rows)
    return [found for _, found in asked_rows(benchmark, catalogue(), folder)]


def test_rows_without_an_image_are_left_out_of_a_table_of_images(tmp_path, capsys):
    row = {"question": "Is it?", "answer": "Yes", "l2-category": "chart"}
    rows: list[dict[str, object]] = [
        {"index": "VD_c_1_0_0_0", "image": "", **row},
        {"index": "VD_c_1_0_1_0", "image": picture(1), **row},
    ]
    (found,) = asked(tmp_path, "hallusionbench", rows)
    assert isinstance(found, Asked) and found.index == "VD_c_1_0_1_0"
    assert "1 rows without an image are left out" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["1", "yes", "maybe"])
def test_an_answer_that_is_neither_yes_nor_no_is_named_and_not_wrong(tmp_path, answer):
    (found,) = asked(
        tmp_path, "pope", [{"index": 1, "image": picture(1), "question": "Is it?", "category": "", "answer": answer}]
    )
    assert found == f"answer: expected Yes or No, found {answer!r}"


def test_the_answer_of_a_choice_is_a_letter_or_the_text_of_one_option(tmp_path):
    row = {"image": picture(1), "question": "Which?", "A": "cat", "B": "dog"}
    answers = ["B", "dog", "B. dog", "(B) dog", "bird", "b"]
    found = asked(tmp_path, "mmstar", [{"index": n, **row, "answer": answer} for n, answer in enumerate(answers)])
    assert [one.question.answer for one in found[:4] if isinstance(one, Asked)] == ["B"] * 4
    assert found[4] == "answer: expected the letter or the text of one option, found 'bird'"
    assert found[5] == "answer: expected the letter or the text of one option, found 'b'"
    open_row = {"index": 1, "image": picture(1), "question": "How many?", "answer": "42"}
    assert str(asked(tmp_path, "realworldqa", [open_row])[0]).startswith("A, B: expected the texts of options")
    (of_mmmu,) = asked(tmp_path, "mmmu", [open_row])
    assert isinstance(of_mmmu, Asked) and of_mmmu.question.options == {"A": "42", "B": "Other Answers"}


def test_tempcompass_names_an_option_by_its_text_and_a_video_in_a_folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "7.mp4").write_bytes(b"x")
    row = {"index": 1, "prefix": "./videos", "video": "7", "suffix": ".mp4", "question": "Which?"}
    rows = [
        {**row, "candidates": "['A. up', 'B. down']", "answer": "B. down"},
        {**row, "candidates": "['Caption A: up', 'Caption B: down']", "answer": "Caption B: down"},
    ]
    found = asked(tmp_path, "tempcompass_choice", rows)
    assert [one.question.answer for one in found if isinstance(one, Asked)] == ["B", "B"]
    benchmark = catalogue().benchmarks["tempcompass_choice"]
    before = media_digest(benchmark, tmp_path)
    write_tsv(tmp_path / "TempCompass_MCQ.tsv", rows[:1])
    for content in (b"x", b"y"):
        (tmp_path / "new.mp4").write_bytes(content)
        (tmp_path / "new.mp4").replace(tmp_path / "videos" / "7.mp4")
        write_prompts(benchmark, catalogue(), tmp_path, tmp_path / "out.jsonl", 0)
        assert [one.read_bytes() for one in (tmp_path / "media").iterdir()] == [content]
    assert media_digest(benchmark, tmp_path) != before, "the video was found"


def test_longvideobench_counts_its_options_from_0(tmp_path):
    row = {"index": 1, "video_path": "./videos/1.mp4", "question": "Who?", "candidates": "['A. Lincoln', 'U. Grant']"}
    found = asked(tmp_path, "longvideobench", [{**row, "correct_choice": 1}, {**row, "correct_choice": 2}])
    assert isinstance(found[0], Asked) and found[0].question.answer == "B"
    assert found[0].question.options == {"A": "A. Lincoln", "B": "U. Grant"}, "these are no letters of options"
    assert found[1] == "correct_choice: expected the letter or the text of one option, found '2'"


def test_the_answer_of_olympiadbench_is_what_its_list_holds(tmp_path):
    row = {"index": 1, "image": picture(1), "question": "How many?", "final_answer": r"['$\\frac{1}{2}$', '3']"}
    (found,) = asked(tmp_path, "olympiadbench", [row])
    assert isinstance(found, Asked) and found.question.answer == r"$\frac{1}{2}$, 3"


def test_rows_of_refcoco_are_named_by_split_and_index(tmp_path):
    row = {"index": 0, "image": picture(1), "question": "box?", "answer": "[0, 0, 1, 1]"}
    rows = [{**row, "category": "RefCOCO val"}, {**row, "category": "RefCOCO+ test A"}, {**row, "category": "RefCOCOg"}]
    found = asked(tmp_path, "refcoco", rows)
    assert [one.index for one in found if isinstance(one, Asked)] == ["RefCOCO_val_0", "RefCOCO+_testA_0", "RefCOCOg_0"]


def test_a_reference_without_a_box_is_named_and_a_box_may_be_in_shares(tmp_path):
    row = {"index": 0, "image": picture(1), "question": "box?", "category": "RefCOCO val"}
    right, wrong = asked(tmp_path, "refcoco", [{**row, "answer": "[0, 0, 0.5, 1]"}, {**row, "answer": "left"}])
    assert wrong == "answer: expected a box of four numbers, found 'left'" and isinstance(right, Asked)
    assert RULES["grounding"]("[0, 0, 0.5, 1]", right.question).score == 1.0, "without a size, as VLMEvalKit has it"


def test_a_table_without_a_column_that_its_figure_is_made_of_is_refused(tmp_path):
    row = {"index": 1, "image": picture(1), "question": "Is it?", "answer": "Yes"}
    for name, missing in [("mme", "category, image_path"), ("wemath", "key"), ("dynamath", "qid")]:
        with pytest.raises(ValueError, match=f"expected columns {missing}, found index, image"):
            asked(tmp_path, name, [row])


def test_only_the_rows_of_the_split_are_asked(tmp_path):
    row = {"image": picture(1), "question": "Which?", "A": "cat", "B": "dog", "answer": "A"}
    found = asked(
        tmp_path, "mmmu", [{"index": n, **row, "split": split} for n, split in enumerate(("dev", "validation"))]
    )
    assert [one.index for one in found if isinstance(one, Asked)] == ["1"]


def test_columns_are_those_of_the_first_line_whatever_the_first_row_holds(tmp_path):
    rows = [
        {"index": 1, "image": picture(1), "question": "How?", "answer": ""},
        {"index": 2, "image": picture(1), "question": "How?", "answer": "so"},
    ]
    first, second = asked(tmp_path, "chartqa", rows)
    assert first == "answer: expected a text, found nothing" and isinstance(second, Asked)
    with pytest.raises(ValueError, match=r"expected columns answer, image or image_path, found index, question"):
        asked(tmp_path, "chartqa", [{"index": 1, "question": "How?"}])


def test_an_index_of_another_form_and_an_image_without_a_name_are_named(tmp_path, capsys):
    row = {"image": picture(1), "question": "Which?", "A": "cat", "B": "dog", "answer": "A"}
    assert asked(tmp_path, "mmbench_v11", [{"index": "x1", **row}]) == ["index: expected a whole number, found 'x1'"]
    assert asked(tmp_path, "hallusionbench", [{"index": "1_2", **row, "answer": "Yes", "l2-category": "c"}]) == [
        "index: expected one such as x_y_z_SET_FIGURE_QUESTION, found '1_2'"
    ]
    write_tsv(tmp_path / "ChartQA_TEST.tsv", [{"index": 1, "image_path": "", "question": "How?", "answer": "so"}] * 2)
    with pytest.raises(ValueError, match=r"2 of 2 rows cannot be used"):
        write_prompts(catalogue().benchmarks["chartqa"], catalogue(), tmp_path, tmp_path / "out.jsonl", 1)
    unread = [json.loads(line) for line in (tmp_path / "out.unread.jsonl").read_text().splitlines()]
    assert unread[0]["reason"] == "image_path: expected the image's file, found nothing"


def fours(*scores: float, first: int = 0) -> list[Judged]:
    return [Judged(str(n), {}, score, None, str(n // 4)) for n, score in enumerate(scores, first)]


def test_a_row_that_is_missing_moves_no_other_row_of_four():
    assert figure_of("fours", fours(1, 1, 1, first=1) + fours(1, 1, 1, 1, 0, 1, 1, 1, first=4)).score == 50.0
    assert figure_of("fours", fours(1, 1, 1, first=1)).score is None


def test_the_interval_of_a_figure_is_that_of_its_units():
    rows = [Judged(str(n), {}, float(n < 3), None, str(n % 1_000_000)) for n in (0, 1_000_000, 1, 2)]
    assert means_of("circular", rows) == ([0.0, 1.0, 1.0], [1, 1, 1])
    assert figure_of("circular", rows).score == pytest.approx(200 / 3)
    assert means_of("accuracy", rows) == ([1.0, 1.0, 1.0], [2, 1, 1])
    assert means_of("pope", rows) is None


def test_the_interval_of_a_figure_that_is_no_mean_is_as_wide_as_its_spread():
    """One split has the spread of a share; where ten rows belong together it is wider by the square root of ten."""
    rng = random.Random(0)
    alone = [Judged(str(n), {"split": "test"}, float(rng.random() < 0.5)) for n in range(2000)]
    together = [Judged(str(n), {"split": "test"}, alone[n // 10].score, None, f"u{n // 10}") for n in range(2000)]
    for rows, width in ((alone, 2 * 196 * 0.5 / 2000**0.5), (together, 2 * 196 * 0.5 / 200**0.5)):
        value = figure_of("splits", rows).score
        low, high = interval_of("splits", rows, value) or (0.0, 0.0)
        assert high - low == pytest.approx(width, rel=0.25) and low + high == pytest.approx(2 * (value or 0.0))
    assert interval_of("splits", alone[:1], 100.0) is None and interval_of("mme", [], None) is None
