"""Public data sets become prompts: what is kept, what is counted, what is refused.

`tests/e2e/test_command_ends.py` ends conversions in every phase.
"""

import json
import os
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from conf.cli import load_config
from model.corpus.lines import placed_items
from model.data.convert.config import DATA_SETS, ConvertConfig
from model.data.convert.layouts import SETS
from model.data.convert.prompt import LeftOut, is_choice, judged, options_in, question_text
from model.data.convert.write import convert
from model.interface import Mode
from rewards.result import Claim
from rewards.verifiers.registry import VERIFIERS, verify
from rlhf.config import DataConfig
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from tests.model.data import published

ROOT = Path(__file__).resolve().parents[3]
WRONG = {
    "math": "1234567",
    "choice": "Z",
    "boolean": "perhaps",
    "count": "77",
    "exact": "a zebra",
    "anls": "a zebra",
    "relaxed": "-1",
}


def converted(folder: Path, name: str, source: Path, **settings) -> Path:
    out = folder / "out"
    convert(ConvertConfig(dataset=name, source=str(source), out=str(out), **settings))
    return out


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def scored(row: dict, answer: str) -> float | None:
    return verify(row["verifier"], Claim(answer, answer, row["reference"], row), {})


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "model.data.convert", *arguments]
    return subprocess.run(program, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(("name", "write"), published.FOLDERS, ids=lambda one: getattr(one, "__name__", ""))
class TestPublishedLayouts:
    def test_every_row_gets_its_verifier_and_reference(self, tmp_path, name, write):
        expected = write(tmp_path / "source")
        out = converted(tmp_path, name, tmp_path / "source")
        splits = {path.stem: rows_of(path) for path in out.glob("*.jsonl")}
        assert {split: [(r["verifier"], r["reference"]) for r in rows] for split, rows in splits.items()} == expected
        for rows in splits.values():
            assert len({row["id"] for row in rows}) == len(rows)
            assert all(row["dataset"] == SETS[name].name_of(name, row["verifier"]) for row in rows)
            assert all((out / image).is_file() for row in rows for image in row["images"])

    def test_verifiers_tell_right_from_wrong(self, tmp_path, name, write):
        write(tmp_path / "source")
        out = converted(tmp_path, name, tmp_path / "source")
        for row in (row for path in out.glob("*.jsonl") for row in rows_of(path)):
            right = row["reference"] if isinstance(row["reference"], list) else [row["reference"]]
            assert [scored(row, answer) for answer in right] == [1.0] * len(right), row
            assert scored(row, WRONG[row["verifier"]]) == 0.0, row
            if row["verifier"] == "choice":
                others = [letter for letter in row["options"] if letter != row["reference"]]
                assert [scored(row, letter) for letter in others] == [0.0] * len(others)

    def test_a_run_reads_the_prompts(self, tmp_path, tiny, name, write):
        """The images stand in the prompt, and the verifier's options reach rewards."""
        expected = write(tmp_path / "source")
        out = converted(tmp_path, name, tmp_path / "source")
        for split, prompts in expected.items():
            path = out / f"{split}.jsonl"
            opened = PromptSet(path, tiny[1], Mode.think, RolloutConfig(), DataConfig(max_bad_rows=0))
            assert len(opened) == len(prompts)
            for number, row in enumerate(rows_of(path)):
                task = opened[number]
                assert len(task.tokens.images) == len(row["images"])
                assert task.prompt.meta.get("options") == row.get("options")

    def test_the_summary_adds_up(self, tmp_path, name, write):
        expected = write(tmp_path / "source")
        summary = summary_of(converted(tmp_path, name, tmp_path / "source"))
        assert summary["dataset"] == name
        for split, counts in summary["splits"].items():
            assert counts["prompts"] == sum(counts["verifiers"].values()) == len(expected.get(split, []))
            assert counts["rows"] == counts["prompts"] + counts["bad_rows"] + sum(counts["left_out"].values())
            assert counts["file"] == (f"{split}.jsonl" if split in expected else None)


def test_every_verifier_is_one_of_the_registry():
    assert set(DATA_SETS) == set(SETS) == {name for name, _ in published.FOLDERS}
    assert {verifier for one in SETS.values() for verifier in one.verifiers} <= VERIFIERS.keys()


def test_the_printed_overrides_train(tmp_path):
    """They compose with RL's own command line, and name every data set of the rows."""
    published.mathv360k(tmp_path / "source")
    config = ConvertConfig("mathv360k", str(tmp_path / "source"), str(tmp_path / "out"))
    last = convert(config)[-1]
    given = last.removeprefix("for a run: ")
    assert given.startswith(f"prompts={tmp_path / 'out' / 'train.jsonl'} 'reward.datasets=")
    rl, _ = load_config("rlhf", ["checkpoint=c", "run.dir=r", *shlex.split(given)])
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert rl.reward.datasets == {row["dataset"]: row["verifier"] for row in rows}


def test_a_folder_that_datasets_saved_has_its_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    row = {"image": None, "question": "Which?", "choices": ["cat", "dog"], "answer": 1, "hint": ""}
    saved = DatasetDict(train=Dataset.from_list([row, row]), test=Dataset.from_list([row]))
    saved.save_to_disk(tmp_path / "source")
    out = converted(tmp_path, "scienceqa", tmp_path / "source")
    assert [row["id"] for row in rows_of(out / "train.jsonl")] == ["scienceqa-train-1", "scienceqa-train-2"]
    assert [row["reference"] for row in rows_of(out / "test.jsonl")] == ["B"]


class TestImages:
    def test_files_get_a_second_name_and_are_not_copied(self, tmp_path):
        published.mathv360k(tmp_path / "source")
        out = converted(tmp_path, "mathv360k", tmp_path / "source")
        names = {name for row in rows_of(out / "train.jsonl") for name in row["images"]}
        assert names == {"images/data_images/TabMWP/images/1.png", "images/data_images/FigureQA/images/1.png"}
        for name in names:
            assert os.path.samefile(out / name, tmp_path / "source" / name.removeprefix("images/"))

    def test_files_are_copied_where_the_disk_has_no_second_names(self, tmp_path, monkeypatch):
        published.mathv360k(tmp_path / "source")
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
        out = converted(tmp_path, "mathv360k", tmp_path / "source")
        name = rows_of(out / "train.jsonl")[0]["images"][0]
        assert (out / name).read_bytes() == (tmp_path / "source" / name.removeprefix("images/")).read_bytes()

    def test_names_that_lead_out_of_the_source_are_bad_rows(self, tmp_path):
        published.image(tmp_path / "secret.png")
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "<CONCLUSION>2</CONCLUSION>"}]
        good = {"image": "a.png", "conversations": turns}
        published.image(tmp_path / "source" / "a.png")
        names = ["../secret.png", str(tmp_path / "secret.png"), "http://x.y/a.png", "a\0.png", "n" * 300 + ".png", ""]
        published.lines(tmp_path / "source" / "train.jsonl", [good, *({**good, "image": name} for name in names)])
        out = converted(tmp_path, "llava_cot", tmp_path / "source", max_bad_rows=6)
        assert len(rows_of(out / "train.jsonl")) == 1
        assert summary_of(out)["splits"]["train"]["bad_rows"] == 6
        reasons = rows_of(tmp_path / "out.bad_rows.jsonl")
        assert [row["row"] for row in reasons] == [2, 3, 4, 5, 6, 7]

    def test_what_is_no_image_is_a_bad_row(self, tmp_path):
        row = {"images": [{"bytes": b"no image", "path": None}], "problem": "<image>x?", "answer": "1"}
        good = {**row, "images": [published.struct()]}
        published.parquet(tmp_path / "source" / "train.parquet", [row, good])
        out = converted(tmp_path, "geometry3k", tmp_path / "source", max_bad_rows=1)
        assert [one["id"] for one in rows_of(out / "train.jsonl")] == ["geometry3k-train-2"]


class TestRefused:
    def refusal(self, tmp_path: Path, name: str, source: Path, **settings) -> str:
        with pytest.raises(ValueError) as refused:
            converted(tmp_path, name, source, **settings)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*sailvl2-partial"))
        return str(refused.value)

    def test_another_layout_with_its_columns(self, tmp_path):
        published.geometry3k(tmp_path / "source")
        text = self.refusal(tmp_path, "mmk12", tmp_path / "source")
        assert "train-00000-of-00001.parquet: expected the columns that MMK12 is published with, (id, question," in text
        assert "found answer, choices, ground_truth, id, images, problem; name the folder of that data set" in text

    def test_a_folder_without_the_files(self, tmp_path):
        (tmp_path / "source").mkdir()
        text = self.refusal(tmp_path, "mathv360k", tmp_path / "source")
        assert (
            "expected *.parquet, a folder that save_to_disk wrote, train_samples_all_tuning.json, found nothing" in text
        )

    def test_two_forms_of_a_split(self, tmp_path):
        """lmms-lab/ScienceQA holds the whole set and the part with images side by side."""
        for form in ("ScienceQA-FULL", "ScienceQA-IMG"):
            published.scienceqa(tmp_path / "source" / form)
        text = self.refusal(tmp_path, "scienceqa", tmp_path / "source")
        assert "found ScienceQA-FULL/data, ScienceQA-IMG/data, which are several forms of the data set" in text
        converted(tmp_path, "scienceqa", tmp_path / "source" / "ScienceQA-IMG")

    def test_too_many_bad_rows(self, tmp_path):
        """Nothing is left but the file that names them."""
        published.mathv360k(tmp_path / "source")
        (tmp_path / "source" / "data_images" / "TabMWP" / "images" / "1.png").unlink()
        text = self.refusal(tmp_path, "mathv360k", tmp_path / "source")
        assert "2 of 5 rows cannot be used, max_bad_rows=0.01 allows 0" in text
        assert [row["row"] for row in rows_of(tmp_path / "out.bad_rows.jsonl")] == [1, 2]

    def test_a_set_without_answers(self, tmp_path):
        published.docvqa(tmp_path / "source")
        (tmp_path / "source" / "DocVQA" / "validation-00000-of-00001.parquet").unlink()
        assert "expected rows that give prompts, found 1 no answer" in self.refusal(
            tmp_path, "docvqa", tmp_path / "source"
        )

    def test_a_folder_with_files_in_it_is_not_written_over(self, tmp_path):
        published.geometry3k(tmp_path / "source")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("")
        with pytest.raises(ValueError, match=r"out: expected a new folder, found .* with files in it"):
            converted(tmp_path, "geometry3k", tmp_path / "source")

    def test_a_folder_inside_the_source(self, tmp_path):
        published.geometry3k(tmp_path / "source")
        with pytest.raises(ValueError, match="out: expected a folder outside of source"):
            convert(ConvertConfig("geometry3k", str(tmp_path / "source"), str(tmp_path / "source" / "out")))

    @pytest.mark.parametrize(
        "content", ["[1, 2", '{"rows": []}', "", "[" * 100_000, '{"questions": [{"question": "x"}']
    )
    def test_damaged_json(self, tmp_path, content):
        (tmp_path / "source" / "questions").mkdir(parents=True)
        (tmp_path / "source" / "questions" / "CLEVR_train_questions.json").write_text(content)
        self.refusal(tmp_path, "clevr", tmp_path / "source")

    def test_a_misspelt_name_on_the_command_line(self, tmp_path):
        process = command("geometri3k", f"source={tmp_path}", f"out={tmp_path / 'out'}")
        assert process.returncode == 2 and process.stdout == ""
        assert process.stderr.endswith("found geometri3k; did you mean geometry3k?\n")


def test_authors_spellings_name_the_sets():
    for title in DATA_SETS.values():
        assert ConvertConfig(dataset=title, source="s", out="o").dataset in DATA_SETS


def test_rows_of_a_list_deep_in_a_large_object_come_one_by_one(tmp_path):
    """The key may stand at the border of two pieces that are read."""
    for filler in (0, 2**20 - 40, 2**20 - 14, 2**20, 3 * 2**20):
        path = tmp_path / "x.json"
        path.write_text(json.dumps({"info": "x" * filler, "data": [{"n": 1}, {"n": "é]"}], "more": [3]}))
        rows = list(placed_items(path, "data"))
        assert [row.columns for _, row in rows] == [{"n": 1}, {"n": "é]"}]
        content = path.read_bytes()
        assert [json.loads(content[start : start + size]) for (start, size), _ in rows] == [{"n": 1}, {"n": "é]"}]


def test_a_list_is_never_in_memory_as_a_whole(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"n": n, "text": "x" * 1000} for n in range(20_000)]))
    tracemalloc.start()
    assert sum(1 for _ in placed_items(path)) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2  # a chunk as bytes, as text, and joined with the rest of the one before


def test_a_list_that_is_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x.json: expected JSON objects, found some nested too deeply at 1"):
        list(placed_items(path))


class TestQuestions:
    @pytest.mark.parametrize(
        ("question", "images", "expected"),
        [
            ("<image>Find x.", 1, "Find x."),
            ("<image>\n<image>\nCompare.", 2, "Compare."),
            ("See <image1>: what?", 1, "See <image>: what?"),
            ("<image1> or <image2>?\n<image3>", 3, "or <image2>?\n<image3>"),
            ("Is A <image 1> and B <image 2>?", 2, "Is A <image> and B <image>?"),
            ("<image1>\nLook at <image1>.", 1, "Look at the image."),
            ("From <image1>, as <image1> shows", 1, "From <image>, as the image shows"),
            ("No place", 1, "No place"),
            ("A text alone", 0, "A text alone"),
        ],
    )
    def test_places_of_images(self, question, images, expected):
        if question.startswith("<image1> or"):
            with pytest.raises(ValueError, match="images: expected 3 for the places"):
                question_text(question, images)
        else:
            assert question_text(question, images) == expected

    def test_a_place_without_an_image_is_refused(self):
        with pytest.raises(ValueError, match="images: expected one for the place in the question, found none"):
            question_text("<image>What?", 0)

    def test_options_are_read_only_where_letters_follow_one_another(self):
        assert options_in("Q?\n(A) 1\n(B) 2") == {"A": "1", "B": "2"}
        assert options_in("Q?\nA. one\nB、two\nC: three") == {"A": "one", "B": "two", "C": "three"}
        assert options_in("Q?\nB. one\nC. two") == options_in("A. Smith wrote it.") == {}

    @pytest.mark.parametrize(
        ("answer", "verifier"),
        [
            *(
                (text, "math")
                for text in ("12", "-3.5", "1,200", "3/4", "$\\frac{1}{2}$", "x = 3", "50%", "12 cm", "10^4")
            ),
            *((text, "exact") for text in ("blue", "the left one", "New York")),
            *((text, "boolean") for text in ("Yes", "no.")),
            ("B", "choice"),
            ("(B) two", "choice"),
            ("Two", "choice"),  # the text of an option
        ],
    )
    def test_the_verifier_follows_from_the_answer(self, answer, verifier):
        assert judged("Q?\nA. one\nB. two", answer)[0] == verifier

    def test_letters_alone_are_choices(self):
        options = {"A": "one", "B": "two"}
        assert is_choice("B", options) and is_choice("AB", options) and is_choice("D", {})
        assert not (is_choice("C", options) or is_choice("AB", {}) or is_choice("x", {}) or is_choice("12", options))

    def test_a_sentence_is_left_out(self):
        with pytest.raises(LeftOut):
            judged("Why?", "Because it is the one that stands in front of all others.")
