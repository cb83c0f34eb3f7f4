"""Sources of rows: any format, bad rows by name, memory that is bounded, steps that depend on their number alone."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from model.data.media_error import MediaError
from model.data.order import KeyedOrder
from model.data.sources import BoundedCache, DataFolders, StepPart, StepRows
from model.data.tables import Table
from model.pretrain.config import PretrainDataConfig
from model.pretrain.documents import open_documents
from sft.config import SftConfig, SftDataConfig
from sft.data import open_samples
from tests.rlhf.prompt_data import png, write_jsonl


def document(number: int, **changes) -> dict:
    row = {"id": f"d{number}", "kind": "caption" if number % 2 else "text", "images": [], "prefix": "What?"}
    return (
        row
        | {"texts": [f"This is {number}.", "It is."]}
        | ({"images": [f"{number}.png"]} if number % 2 else {})
        | changes
    )


def demonstration(number: int, **changes) -> dict:
    content = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": f"Question {number}?"}]
    row = {"id": f"s{number}", "mode": "think", "messages": [{"role": "user", "content": content}]}
    return row | {"completions": [f"<think>{number}</think>\\boxed{{{number}}}"]} | changes


@pytest.fixture
def pictures(tmp_path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


def with_bytes(rows: list[dict], folder: Path) -> list[dict]:
    """The same rows with images as bytes in a column of their own."""
    found = []
    for row in rows:
        row = json.loads(json.dumps(row))
        if "messages" in row:
            image, text = row.pop("messages")[0]["content"]
            row |= {"question": text["text"], "images": [image["image"]]}
        row["images"] = [(folder / name).read_bytes() for name in row["images"]]
        found.append(row)
    return found


def steps(rows_of_step: StepRows, count: int = 4) -> list[tuple]:
    rows = [row for step in range(count) for row in rows_of_step(step)]
    return [(list(r.prefix_ids), [list(c) for c in r.completions], [i.sum().item() for i in r.images]) for r in rows]


def saved(rows: list[dict], folder: Path, form: str) -> Path:
    match form:
        case "jsonl":
            return write_jsonl(folder / "rows.jsonl", rows)
        case "parquet":
            pq.write_table(pa.Table.from_pylist(with_bytes(rows, folder)), folder / "rows.parquet")
            return folder / "rows.parquet"
        case "parquet folder":
            (folder / "parts").mkdir()
            for number, part in enumerate((rows[:3], rows[3:])):
                pq.write_table(pa.Table.from_pylist(with_bytes(part, folder)), folder / "parts" / f"{number}.parquet")
            return folder / "parts"
    Dataset.from_list(with_bytes(rows, folder)).save_to_disk(str(folder / "saved"))
    return folder / "saved"


FORMS = ["parquet", "parquet folder", "datasets"]


@pytest.mark.parametrize("form", FORMS)
def test_pretraining_takes_every_format(tiny, pictures, form):
    rows = [document(number) for number in range(8)]

    def opened(form: str) -> StepRows:
        config = PretrainDataConfig(path=str(saved(rows, pictures, form)), mixture={"caption": 2, "text": 1})
        return open_documents(config, tiny[1], 5, DataFolders())

    assert steps(opened(form)) == steps(opened("jsonl"))
    assert opened("jsonl").steps_per_pass == 4  # text: four rows, one a step


@pytest.mark.parametrize("form", FORMS)
def test_sft_takes_every_format(tiny, pictures, form):
    rows = [demonstration(number) for number in range(8)]

    def opened(form: str) -> StepRows:
        data = SftDataConfig(demonstrations=str(saved(rows, pictures, form)))
        return open_samples(SftConfig(checkpoint="-", batch_size=3, data=data), tiny[1], DataFolders())

    assert steps(opened(form)) == steps(opened("jsonl"))


def test_bad_rows_are_named_and_skipped_up_to_the_limit(tiny, pictures, capsys):
    rows = [demonstration(number) for number in range(8)]
    rows[2]["mode"], rows[5]["completions"] = "loud", []
    path = write_jsonl(pictures / "rows.jsonl", rows)
    report = pictures / "report.jsonl"

    def opened(limit: float) -> StepRows:
        data = SftDataConfig(demonstrations=str(path), max_bad_rows=limit)
        return open_samples(SftConfig(checkpoint="-", batch_size=6, data=data), tiny[1], DataFolders(report=report))

    assert len(steps(opened(2), 1)) == 6
    error = capsys.readouterr().err
    assert (
        f"{path}:3: mode: expected think, direct or auto, found 'loud'" in error
        and "2 of 8 rows cannot be used" in error
    )
    assert [json.loads(line)["row"] for line in report.read_text().splitlines()] == [3, 6]
    with pytest.raises(ValueError, match=r"2 of 8 rows cannot be used, data\.max_bad_rows=1 allows 1"):
        opened(1)


def test_an_image_that_breaks_later_costs_its_row_and_not_the_run(tiny, pictures, capsys):
    rows = [demonstration(number) for number in range(8)]
    data = SftDataConfig(demonstrations=str(write_jsonl(pictures / "rows.jsonl", rows)), max_bad_rows=1, cache_mib=0)
    samples = open_samples(SftConfig(checkpoint="-", batch_size=8, data=data), tiny[1], DataFolders())
    assert len(samples(0)) == 8
    broken = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(broken[: len(broken) // 2])
    assert len(samples(0)) == 7 and len(samples(1)) == 7
    assert capsys.readouterr().err.count("bad row: ") >= 1
    (pictures / "4.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 8 rows cannot be used"):
        samples(0)


def test_lengths_are_those_of_the_built_rows(tiny, pictures, digits_folder):
    from sft.data import Demonstrations, DirectPairs

    data = SftDataConfig(
        demonstrations=str(digits_folder / "demonstrations.jsonl"), prompts=str(digits_folder / "train.jsonl")
    )
    for source in (
        Demonstrations(data.demonstrations, data, tiny[1], DataFolders()),
        DirectPairs(data, tiny[1], DataFolders()),
    ):
        assert len(source) > 20
        for index in range(0, len(source), 7):
            assert source.length(index) == source.build(index).num_tokens


class Numbers:
    """A source of ten rows of one token."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad, self.built, self.named = bad, [], []

    def __len__(self) -> int:
        return 10

    def build(self, index: int):
        from model.batch import Row

        if index in self.bad:
            raise MediaError("broken")
        self.built.append(index)
        return Row([index], [[1]], [torch.zeros(1, 3, 16, 16)])

    def length(self, index: int) -> int:
        return 2

    def name_bad(self, index: int, reason: str) -> None:
        self.named.append((index, reason))


def test_a_step_is_a_function_of_its_number():
    parts = [StepPart.keyed(Numbers(), 3, 7, "a"), StepPart.keyed(Numbers(), 1, 7, "b")]
    first, second = StepRows(parts, 1), StepRows(parts, 0)
    assert first.steps_per_pass == 10
    forward = [[row.prefix_ids for row in first(step)] for step in range(12)]
    backward = [[row.prefix_ids for row in second(step)] for step in reversed(range(12))][::-1]
    assert forward == backward
    everything = [ids[0] for step in forward[:10] for ids in step[:3]]
    assert sorted(everything) == sorted(list(range(10)) * 3)
    assert [ids[0] for step in forward[:3] for ids in step[:3]] == KeyedOrder(10, 7, "a").rows(0, 9)


def test_a_step_without_a_usable_row_is_an_error():
    source = Numbers(bad=tuple(range(10)))
    with pytest.raises(ValueError, match=r"no row of step 3 can be used"):
        StepRows([StepPart.keyed(source, 2, 0, "a")], 1)(2)
    assert len(source.named) == 2


def test_the_cache_holds_what_was_used_last_within_its_bytes():
    built = []
    cache = BoundedCache[int](10, lambda item: item)

    def get(key: int) -> int:
        return cache.get(key, lambda: built.append(key) or key)

    assert [get(key) for key in (4, 5, 4, 3, 5)] == [4, 5, 4, 3, 5]
    assert built == [4, 5, 3, 5] and cache.num_bytes == 8  # 5 made room for 3, as 4 was used later
    assert get(11) == 11 and cache.num_bytes == 0  # larger than all: built anew each time
    cache, built = BoundedCache[int](10, lambda item: item, least=1), []
    assert [get(key) for key in (3, 11, 11, 12, 4, 5)] == [3, 11, 11, 12, 4, 5]
    assert built == [3, 11, 12, 4, 5] and cache.num_bytes == 9


def test_rows_that_broke_later_are_still_counted_after_a_restart(tiny, pictures):
    rows = [demonstration(number) for number in range(8)]
    data = SftDataConfig(demonstrations=str(write_jsonl(pictures / "rows.jsonl", rows)), max_bad_rows=1, cache_mib=0)

    def opened() -> StepRows:
        folders = DataFolders(report=pictures / "report.jsonl")
        return open_samples(SftConfig(checkpoint="-", batch_size=8, data=data), tiny[1], folders)

    before, whole = opened(), {number: (pictures / f"{number}.png").read_bytes() for number in (3, 4)}
    (pictures / "3.png").write_bytes(whole[3][:40])
    assert len(before(0)) == 7
    state = json.loads(json.dumps(before.state()))
    (pictures / "3.png").write_bytes(whole[3])
    after = opened()
    after.restore(state)
    assert len(after(1)) == 8 and "s3" in (pictures / "report.jsonl").read_text()
    (pictures / "4.png").write_bytes(whole[4][:40])
    with pytest.raises(ValueError, match="2 of 8 rows cannot be used"):
        after(2)


def test_cells_that_cannot_be_used_cost_their_row(tiny, pictures):
    rows = [demonstration(number) for number in range(8)]
    rows[1]["messages"][0]["content"][0]["image"] = "long" * 200 + ".png"
    rows[2]["completions"] = ["a" * 6000]
    path = write_jsonl(pictures / "rows.jsonl", rows)
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:-1] + ', "score": NaN}'
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    report = pictures / "report.jsonl"
    data = SftDataConfig(demonstrations=str(path), max_bad_rows=3)
    opened = open_samples(SftConfig(checkpoint="-", batch_size=5, data=data), tiny[1], DataFolders(report=report))
    assert len(opened(0)) == 5
    reasons = [(found["row"], found["reason"]) for found in map(json.loads, report.read_text().splitlines())]
    assert [row for row, _ in reasons] == [2, 3, 4]
    for (_, reason), part in zip(
        reasons,
        ("name too long", "expected at most the model's positions = 512 tokens, found more in 6000 characters", "NaN"),
        strict=True,
    ):
        assert part in reason


def test_parquet_cells_without_a_python_value_cost_their_row(tmp_path):
    path = tmp_path / "odd.parquet"
    times = pa.array([0, 10**15, 0], pa.timestamp("ms"))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "when": times, "score": [1.0, 2.0, float("nan")]}), path)
    rows = list(Table(path).rows())
    assert [row.columns.get("id") for row in rows] == ["a", None, "c"] and rows[1].problem.startswith("when: expected")
    assert "score" not in rows[2].columns  # what pandas writes for a missing number
