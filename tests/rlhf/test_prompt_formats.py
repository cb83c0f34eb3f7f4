"""Every format and every spelling of a row gives the prompts of its JSONL twin: ids, token ids, pixels."""

import csv
import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.interface import Mode
from rewards.config import RewardConfig
from rewards.result import RewardInput
from rewards.rubric import Rubric
from rlhf.prompts import PromptSet
from tests.conftest import require_extra
from tests.rlhf.prompt_data import base64_of, plain_row, png, write_jsonl


def assert_same(found: PromptSet, wanted: PromptSet) -> None:
    assert found.ids == wanted.ids
    for index in range(len(wanted)):
        one, twin = found.build(index), wanted.build(index)
        assert (one.tokens.ids, one.prompt.reference) == (twin.tokens.ids, twin.prompt.reference)
        assert len(one.images) == len(twin.images)
        assert all(torch.equal(a, b) for a, b in zip(one.images, twin.images, strict=True))


def asked(number: int, *images: str) -> dict:
    content = [{"type": "image", "image": name} for name in images]
    content.append({"type": "text", "text": f"Question {number}?"})
    return {
        "id": f"p{number}",
        "messages": [{"role": "user", "content": content}],
        "reference": str(number),
        "family": "easy",
    }


@pytest.fixture
def twin(tmp_path, opened) -> PromptSet:
    """Four rows in our own form: one image, two images, no image, one image."""
    for number in range(4):
        (tmp_path / "own" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / "images" / f"{number}.png").write_bytes(png(number))
    rows = [asked(0, "images/0.png"), asked(1, "images/1.png", "images/2.png"), asked(2), asked(3, "images/3.png")]
    return opened(write_jsonl(tmp_path / "own" / "prompts.jsonl", rows))


IMAGES = ([0], [1, 2], [], [3])


def struct_rows() -> list[dict]:
    """The twin's rows as `datasets` stores images; the path is a lie that nobody may follow."""
    return [
        plain_row(n, family="easy", images=[{"bytes": png(i), "path": "/etc/passwd"} for i in seeds])
        for n, seeds in enumerate(IMAGES)
    ]


def test_parquet_file_and_shards(tmp_path, opened, twin):
    table = pa.Table.from_pylist(struct_rows())
    pq.write_table(table, tmp_path / "prompts.parquet")
    assert_same(opened(tmp_path / "prompts.parquet"), twin)
    shards = tmp_path / "shards"
    shards.mkdir()
    pq.write_table(table.slice(2), shards / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 2), shards / "train-00000-of-00002.parquet")
    assert_same(opened(shards), twin)


def test_parquet_with_our_messages_and_paths(tmp_path, opened, twin):
    """Parts of a message share one struct, so each has null fields; more rows than one batch keep their order."""
    rows = [json.loads(line) for line in (tmp_path / "own" / "prompts.jsonl").read_text().splitlines()]
    rows += [asked(n) for n in range(4, 150)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own" / "prompts.parquet")
    write_jsonl(tmp_path / "own" / "more.jsonl", rows)
    found = opened(tmp_path / "own" / "prompts.parquet")
    assert_same(found, opened(tmp_path / "own" / "more.jsonl"))
    assert found.build(0).prompt == twin.build(0).prompt and found.build(0).root == twin.build(0).root


def test_saved_datasets_folder(tmp_path, opened, twin):
    require_extra("dev", "datasets")
    import datasets

    features = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "question", "answer", "family")}
        | {"images": datasets.Sequence(datasets.Image())}
    )
    rows = [{**row, "images": [{"bytes": i["bytes"], "path": None} for i in row["images"]]} for row in struct_rows()]
    data = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2})
    assert_same(opened(tmp_path / "saved" / "train"), twin)
    with pytest.raises(ValueError, match=r"expected one split, found the splits \['train'\]; give .*saved/NAME"):
        opened(tmp_path / "saved")
    (tmp_path / "saved" / "train" / "state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(ValueError, match=r"state.json: expected what save_to_disk writes, found: .*inside"):
        opened(tmp_path / "saved" / "train")


class TestSpellings:
    """Common columns of one JSONL file."""

    @pytest.mark.parametrize("question", ["question", "problem", "prompt"])
    @pytest.mark.parametrize("answer", ["reference", "answer", "solution"])
    def test_names(self, tmp_path, opened, twin, question, answer):
        rows = [
            {"id": f"p{n}", question: f"Question {n}?", answer: n, "images": [f"images/{i}.png" for i in seeds]}
            for n, seeds in enumerate(IMAGES)
        ]
        assert_same(opened(write_jsonl(tmp_path / "own" / "other.jsonl", rows)), twin)

    def test_verl(self, tmp_path, opened, twin):
        """`prompt` is chat, `<image>` marks places, the answer lies in `reward_model`."""
        rows = [
            {
                "id": f"p{n}",
                "data_source": "geo",
                "prompt": [{"role": "user", "content": "<image>\n" * len(seeds) + f"Question {n}?"}],
                "images": [{"bytes": png(i)} for i in seeds],
                "reward_model": {"style": "rule", "ground_truth": str(n)},
                "extra_info": {"index": n},
            }
            for n, seeds in enumerate(IMAGES)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "verl.parquet")
        found = opened(tmp_path / "verl.parquet")
        assert_same(found, twin)
        meta = found.build(1).prompt.meta
        assert (meta["data_source"], meta["extra_info"], "dataset" in meta) == ("geo", {"index": 1}, False)

    @pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
    def test_base64(self, tmp_path, opened, twin, head):
        rows = [plain_row(n, image=[head + base64_of(png(i)) for i in seeds]) for n, seeds in enumerate(IMAGES)]
        assert_same(opened(write_jsonl(tmp_path / "prompts.jsonl", rows)), twin)

    def test_openai_parts(self, tmp_path, opened, twin):
        """Bytes in a data: address; an address of the Web costs its row."""

        def row(number: int, *addresses: str) -> dict:
            parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
            content = [*parts, {"type": "text", "text": f"Question {number}?"}]
            return {"id": f"p{number}", "messages": [{"role": "user", "content": content}], "answer": str(number)}

        head = "data:image/png;base64,"
        rows = [row(n, *(head + base64_of(png(i)) for i in seeds)) for n, seeds in enumerate(IMAGES)]
        assert_same(opened(write_jsonl(tmp_path / "openai" / "prompts.jsonl", rows)), twin)
        bad = write_jsonl(tmp_path / "web" / "prompts.jsonl", [row(0, "https://host/a.png")])
        with pytest.raises(ValueError, match=r"found 'https://host/a.png'; nothing is downloaded during a run"):
            opened(bad)

    def test_places_are_kept(self, tmp_path, opened):
        """An image stands where its place was; a part without a source is a place too."""
        for number in (1, 2):
            (tmp_path / f"{number}.png").write_bytes(png(number))
        parts = [{"type": "text", "text": "Left <image> or right"}, {"type": "image"}, {"type": "text", "text": "?"}]
        named = [
            {"type": "text", "text": "Left "},
            {"type": "image", "image": "1.png"},
            {"type": "text", "text": " or right"},
            {"type": "image", "image": "2.png"},
            {"type": "text", "text": "?"},
        ]
        rows = [
            {"id": "a", "messages": [{"role": "user", "content": parts}], "images": ["1.png", "2.png"], "answer": "1"},
            {"id": "b", "messages": [{"role": "user", "content": named}], "answer": "1"},
            {"id": "c", "messages": [{"role": "user", "content": named}], "answer": "1", "images": ["1.png"]},
        ]
        found = opened(write_jsonl(tmp_path / "prompts.jsonl", rows))
        assert found.build(0).prompt.messages == found.build(1).prompt.messages == found.build(2).prompt.messages
        assert found.build(2).prompt.meta["images"] == ["1.png"]  # a row that places its images itself

    def test_a_literal_place_in_our_form_is_text(self, tmp_path, opened):
        row = {"id": "a", "messages": [{"role": "user", "content": "What does <image> mean?"}], "reference": "1"}
        found = opened(write_jsonl(tmp_path / "prompts.jsonl", [row]))
        assert found.build(0).prompt.messages == row["messages"] and not found.build(0).images

    def test_configured_columns_and_made_up_ids(self, tmp_path, opened):
        rows = [{"ask": "One?", "extra": {"gold": 7}, "kind": "sums"}, {"ask": "Two?", "extra": {"gold": 8.5}}]
        columns = {"question_column": "ask", "reference_column": "extra.gold", "dataset_column": "kind"}
        found = opened(write_jsonl(tmp_path / "mine.jsonl", rows), **columns)
        assert found.ids == ["mine-1", "mine-2"]
        assert [found.build(i).prompt.reference for i in (0, 1)] == ["7", "8.5"]
        assert [found.build(i).prompt.meta["dataset"] for i in (0, 1)] == ["sums", "mine"]

    def test_columns_that_are_no_json_become_text(self, tmp_path, opened):
        from datetime import date

        row = plain_row(0, day=date(2026, 11, 25), thumb=b"123", nothing=None, nested={"a": None, "b": [b"1"]})
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "prompts.parquet")
        meta = opened(tmp_path / "prompts.parquet").build(0).prompt.meta
        found = {key: value for key, value in meta.items() if key not in ("id", "question", "answer")}
        assert found == {"dataset": "prompts", "day": "2026-11-25", "thumb": "3 bytes", "nested": {"b": ["1 bytes"]}}
        json.dumps(meta)

    def test_every_column_but_the_images_is_kept_as_it_is(self, tmp_path, opened):
        row = {"ask": "Which?", "gold": 3, "uid": 7, "level": "easy"}
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(row) + "\n")
        names = {"question_column": "ask", "reference_column": "gold", "id_column": "uid"}
        prompt = opened(path, **names).build(0).prompt
        assert (prompt.id, prompt.reference) == ("7", "3") and prompt.meta == {**row, "dataset": "a"}


class TestTsv:
    def write(self, path: Path, header: list[str], rows: list[list]) -> Path:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t").writerows([header, *rows])
        return path

    def test_options_hint_and_shared_images(self, tmp_path, opened):
        header = ["index", "question", "hint", "A", "B", "C", "answer", "category", "image"]
        rows = [
            [7, "Which\nanimal?", "It purrs.", "cat", "dog", "", "A", "pets", base64_of(png(0))],
            [8, "And this?", "", "cat", "dog", "cow", "C", "farm", "7"],  # the image of row 7
            [9, "Nothing?", "", "", "", "", "none", "text", ""],
            [10, "Two?", "", "", "", "", "2", "many", str([base64_of(png(1)), base64_of(png(2))])],
        ]
        found = opened(self.write(tmp_path / "MMTest.tsv", header, rows), tokens=200)
        assert found.ids == ["7", "8", "9", "10"]
        text = found.build(0).prompt.messages[0]["content"][-1]["text"]
        assert text == (
            "Hint: It purrs.\nQuestion: Which\nanimal?\nOptions:\nA. cat\nB. dog\n"
            "One of these is right: give its letter."
        )
        assert found.build(1).prompt.meta["options"] == {"A": "cat", "B": "dog", "C": "cow"}
        assert found.build(0).prompt.meta["category"] == "pets" and found.build(0).prompt.meta["dataset"] == "MMTest"
        assert torch.equal(found.build(0).images[0], found.build(1).images[0])
        assert found.build(2).prompt.messages == [{"role": "user", "content": "Nothing?"}]
        assert len(found.build(3).images) == 2

    def test_paths_equal_bytes(self, tmp_path, opened, twin):
        rows = [
            [f"p{n}", f"Question {n}?", n, str([f"images/{i}.png" for i in seeds]) if seeds else ""]
            for n, seeds in enumerate(IMAGES)
        ]
        path = self.write(tmp_path / "own" / "prompts.tsv", ["index", "question", "answer", "image_path"], rows)
        assert_same(opened(path), twin)

    def test_an_image_larger_than_a_csv_field_may_be(self, tmp_path, opened):
        big = png(0, side=300)
        assert len(base64_of(big)) > 131_072
        rows = [[1, "What?", "x", base64_of(big)]]
        found = opened(self.write(tmp_path / "a.tsv", ["index", "question", "answer", "image"], rows))
        assert Path(found.build(0).root, found.build(0).tokens.files[0]).read_bytes() == big

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ([1, "What?", "x", "5"], "index of a row that has an image, found '5'"),
            ([1, "What?", "x", "%" * 80], "expected base64"),
            ([1, "What?", "x", "[1, 2" + " " * 80 + "]"], "a list of texts"),
            ([1, "What?"], "expected 4 cells as the first line has, found 2"),
            ([1, "", "x", ""], "messages: expected list, found None"),
            ([1, "What?", "", ""], "reference: expected str, found None"),
        ],
    )
    def test_bad_rows(self, tmp_path, opened, row, reason):
        path = self.write(tmp_path / "a.tsv", ["index", "question", "answer", "image"], [row])
        with pytest.raises(ValueError, match=rf"a\.tsv:1: .*{reason}"):
            opened(path)


def test_rewards_are_routed_by_data_set(tmp_path, opened):
    """Options of a TSV reach the choice verifier, files and columns name data sets."""
    TestTsv().write(tmp_path / "quiz.tsv", ["index", "question", "A", "B", "answer"], [[1, "Pet?", "cat", "cow", "A"]])
    rows = [{"id": "n", "question": "Half?", "answer": "0.5", "data_source": "sums"}]
    found = opened(write_jsonl(tmp_path / "main.jsonl", rows), tokens=200, also=[str(tmp_path / "quiz.tsv")])
    assert found.ids == ["n", "quiz/1"]

    def scored(index: int, answer: str) -> float | None:
        prompt, text = found.build(index).prompt, f"<think>\nx\n</think>\n\\boxed{{{answer}}}"
        item = RewardInput(
            prompt.id, prompt.messages, [], prompt.reference, text, "x", answer, [1], "stop", prompt.meta
        )
        return rubric.score([item])[0].parts["answer"]

    with Rubric(RewardConfig(datasets={"quiz": "choice", "sums": "math"}, verifier="exact")) as rubric:
        assert (scored(1, "cat"), scored(1, "cow"), scored(0, "1/2")) == (1.0, 0.0, 1.0)


def test_bytes_are_written_once_under_their_checksum(tmp_path, opened):
    rows = [plain_row(n, image={"bytes": png(n % 2), "path": "../../x.png"}) for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    media = tmp_path / "run" / "media"
    found = opened(tmp_path / "prompts.parquet", media=media)
    names = sorted(path.name for path in media.iterdir())
    assert names == sorted(f"{hashlib.sha256(png(n)).hexdigest()}.png" for n in (0, 1))
    assert [found.build(n).tokens.files[0] for n in range(4)] == [
        f"{hashlib.sha256(png(n % 2)).hexdigest()}.png" for n in range(4)
    ]
    times = [(media / name).stat().st_mtime_ns for name in names]
    (media / names[0]).write_bytes(b"torn")  # as a full disk may leave it
    again = opened(tmp_path / "prompts.parquet", media=media)
    assert (media / names[1]).stat().st_mtime_ns == times[1]
    assert_same(again, found)


def test_an_image_that_comes_beside_bytes_is_kept_with_them(tmp_path, opened):
    (tmp_path / "a.png").write_bytes(png(1))
    row = plain_row(0, images=["a.png", base64_of(png(2))])
    prompts = opened(write_jsonl(tmp_path / "prompts.jsonl", [row]))
    task = prompts.build(0)
    assert all((task.root / name).is_file() for name in task.tokens.files) and task.root != tmp_path


def test_direct_asks_the_same_rows(opened, easy_prompts):
    think = opened(easy_prompts)
    direct = opened(easy_prompts, mode=Mode.direct)
    for name in think.ids:
        assert think.by_id(name, Mode.direct).tokens.ids == direct.by_id(name).tokens.ids
        assert think.by_id(name, Mode.direct).tokens.ids != think.by_id(name).tokens.ids


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.parquet", b"no parquet", r"a\.parquet: expected a whole Parquet file, found"),
            ("a.tsv", b"one column\nx\n", "columns separated by tabs"),
            ("a.tsv", b"index\tquestion\n\xff\xfe\t1\n", "a.tsv:1: expected UTF-8, found other bytes in a cell"),
            ("a.tsv", b"index\tquestion\n", "at least one row"),
            ("a.jsonl", b"PAR1\xff\xff", "expected UTF-8"),
            ("a.csv", b"id,question\n", r"expected one of \.jsonl, \.parquet, \.tsv, .* found '\.csv'; convert"),
        ],
    )
    def test_content(self, tmp_path, opened, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / name, max_bad_rows=1000)

    @pytest.mark.parametrize("name", ["a.parquet", "a.tsv", "a.jsonl", "a", "a/b"])
    def test_missing(self, tmp_path, opened, name):
        with pytest.raises(ValueError, match=r"prompts: expected a .* at .*a.*, found none"):
            opened(tmp_path / name)

    def test_folder_of_something_else(self, tmp_path, opened):
        with pytest.raises(ValueError, match=r"expected \*\.parquet files, or state\.json .*, found neither"):
            opened(tmp_path)

    def test_without_pyarrow(self, tmp_path, opened, monkeypatch):
        pq.write_table(pa.Table.from_pylist([plain_row(0)]), tmp_path / "a.parquet")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ValueError, match=r"needs pyarrow, .*pip install 'sailvl2-rl\[data\]'"):
            opened(tmp_path / "a.parquet")
