"""What a prompt set refuses, counts and names, what it weighs, and what it holds in memory."""

import io
import json
import os
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.data.media_error import MediaError
from model.data.sources import DataFolders
from model.interface import Mode
from rewards.config import RewardConfig
from rewards.rubric import Rubric
from rlhf.algorithms.config import DapoConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.collect import Collector
from rlhf.config import DataConfig, TrainerConfig
from rlhf.drawing.draws import DrawOrder
from rlhf.evaluation.evaluator import evaluate_modes
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig, VllmRolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.weights.sync import fill_worker
from tests.rlhf.prompt_data import base64_of, plain_row, png, write_jsonl

GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"


def damaged(content: bytes) -> bytes:
    """A sound header, no pixels."""
    return content[: len(content) // 2]


def large(pixels: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", pixels).save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "no JSON": ('{"id": ', "expected a JSON object"),
    "no object": ("[1]", "expected a JSON object, found list"),
    "deep": ("[" * 100_000, "expected a JSON object"),
    "no reference": ({"id": "b", "question": "x"}, "reference: expected str, found None"),
    "empty reference": (plain_row(9, answer=" "), "reference: expected an answer"),
    "truth value": (plain_row(9, answer=True), "reference: expected str, found True"),
    "no answers": (plain_row(9, answer=[]), r"reference: expected str, found \[\]"),
    "no question": ({"id": "b", "answer": "1"}, "messages: expected list, found None; nor is there a column question"),
    "wrong question": (plain_row(9, question=3), "question: expected text or list, found 3"),
    "wrong messages": ({"id": "b", "messages": "x", "answer": "1"}, "messages: expected list, found 'x'"),
    "no message": ({"id": "b", "messages": ["x"], "answer": "1"}, r"messages\[0\]: expected an object"),
    "wrong role": ({"id": "b", "messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "answer": "1"}, "ends with a user message"),
    "wrong content": ({"id": "b", "messages": [{"role": "user", "content": 3}], "answer": "1"}, "expected text or a list of parts"),
    "half a surrogate pair": (plain_row(9, question="\ud800"), "UTF-8"),
    "wrong id": (plain_row(9, id=[1]), r"id: expected str or int, found \[1\]"),
    "same id": (plain_row(9, id="p0"), "id: expected a unique value, found 'p0' again"),
    "too long": (plain_row(9, question="word " * 90), "rollouts.max_prompt_tokens = 96 tokens, found"),
    "missing image": (plain_row(9, image="none.png"), "none.png: expected a file, found none"),
    "folder": (plain_row(9, image="."), "expected a file, found none"),
    "outside": (plain_row(9, image="../x.png"), "expected a path inside"),
    "absolute": (plain_row(9, image="/etc/passwd"), "expected a path inside"),
    "link": (plain_row(9, image="link.png"), "expected a path inside"),
    "NUL": (plain_row(9, image="a\0.png"), "NUL"),
    "web": (plain_row(9, image="https://example.com/x.png"), "nothing is downloaded during a run"),
    "number": (plain_row(9, image=3), "image: expected a file name, bytes or base64, found 3"),
    "empty struct": (plain_row(9, image={"bytes": None, "path": None}), "image: expected a file name"),
    "other format": (plain_row(9, image="x.gif"), "expected one of PNG, JPEG, WEBP, BMP"),
    "other bytes": (plain_row(9, image=base64_of(b"no image at all, but long enough to be base64 text")), "expected one of PNG"),
    "GIF bytes": (plain_row(9, image="data:image/gif;base64," + base64_of(GIF)), "expected one of PNG"),
    "too many bytes": (plain_row(9, image="big.png"), "data.max_image_bytes=50000"),
    "too many bytes inside": (plain_row(9, image=base64_of(png(1, 200))), "data.max_image_bytes=50000"),
    "too many pixels": (plain_row(9, image="wide.png"), "expected at most 16777216 pixels"),
    "too many pixels inside": (plain_row(9, image=base64_of(large((5000, 5000)))), "expected at most 16777216 pixels"),
    "image too few": (plain_row(9, question="<image> and <image>", image="0.png"), "images: expected 2 for the places in the text, found 1"),
    "image too many": (plain_row(9, question="<image>", image=["0.png", "0.png"]), "images: expected 1 for the places in the text, found 2"),
    "place without image": (plain_row(9, question="<image> what?"), "images: expected 1 for the places in the text, found 0"),
    "part without image": ({"id": "b", "messages": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, "images: expected 1"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A data folder with an image, images that may not be used, and one outside."""
    data = tmp_path / "data"
    data.mkdir()
    for name, content in {
        "data/0.png": png(0),
        "data/x.gif": GIF,
        "data/big.png": png(1, 200),
        "data/wide.png": large((5000, 5000)),
        "x.png": png(0),
    }.items():
        (tmp_path / name).write_bytes(content)
    os.symlink(tmp_path / "x.png", data / "link.png")
    return data


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_counted_named_and_skipped(folder, opened, capsys, kind):
    row, reason = BAD[kind]
    path = write_jsonl(folder / "prompts.jsonl", [plain_row(0, image="0.png"), row, plain_row(1)])
    report = folder / "run" / "bad_rows.jsonl"
    found = opened(path, max_bad_rows=1, max_image_bytes=50_000, report=report)
    assert found.ids == ["p0", "p1"]
    (record,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert (record["file"], record["row"]) == (str(path), 2)
    assert re.search(reason, record["reason"])
    said = capsys.readouterr().err
    assert f"bad row: {path}:2: " in said and "1 of 3 rows cannot be used" in said and str(report) in said
    with pytest.raises(ValueError, match=rf"data: .*prompts\.jsonl:2: .*{reason}"):
        opened(path, max_image_bytes=50_000)


class TestLimit:
    def rows(self, good: int, bad: int) -> list:
        return [plain_row(n) for n in range(good)] + [plain_row(good + n, answer="") for n in range(bad)]

    @pytest.mark.parametrize(
        ("good", "bad", "limit", "passes"),
        [
            (99, 1, 0.01, True),
            (98, 1, 0.01, False),
            (71, 29, 0.29, True),
            (5, 3, 3, True),
            (5, 4, 3, False),
            (5, 1, 0, False),
            (1, 9, 1000, True),
            (0, 2, 1000, False),
        ],
    )
    def test_share_or_count(self, tmp_path, opened, good, bad, limit, passes):
        path = write_jsonl(tmp_path / "a.jsonl", self.rows(good, bad))
        if passes:
            assert len(opened(path, max_bad_rows=limit)) == good
        else:
            with pytest.raises(
                ValueError, match=rf"{bad} of {good + bad} rows cannot be used, data.max_bad_rows={limit} "
            ):
                opened(path, max_bad_rows=limit)

    def test_the_message_has_the_first_reasons_and_the_report_all(self, tmp_path, opened, capsys):
        path, report = write_jsonl(tmp_path / "a.jsonl", self.rows(1, 9)), tmp_path / "bad.jsonl"
        with pytest.raises(ValueError) as refused:
            opened(path, report=report)
        assert str(refused.value) == (
            f"data: {path}:2: reference: expected an answer, found nothing (id p1); "
            f"{path}:3: reference: expected an answer, found nothing (id p2); "
            f"{path}:4: reference: expected an answer, found nothing (id p3). 9 of 10 rows cannot be used, "
            f"data.max_bad_rows=0.01 allows 0; all are named in {report}; mend or remove them, or raise data.max_bad_rows"
        )
        assert len(report.read_text().splitlines()) == 9
        opened(path, max_bad_rows=9, report=report)
        assert capsys.readouterr().err.count("bad row: ") == 5
        opened(write_jsonl(path, self.rows(3, 0)), report=report)
        assert not report.exists()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"max_bad_rows": -1}, "data.max_bad_rows: expected 0 or more"),
            ({"max_bad_rows": float("nan")}, "data.max_bad_rows"),
            ({"weights": {"a": -1.0}}, "data.weights: a: expected 0 or more"),
            ({"max_image_bytes": 0}, "data.max_image_bytes: expected at least 1"),
            ({"cache_mib": -1}, "data.cache_mib: expected at least 0"),
        ],
    )
    def test_settings(self, data, message):
        with pytest.raises(ValueError, match=message):
            DataConfig(**data)


class TestSeveralFiles:
    def test_ids_and_weights(self, tmp_path, opened):
        one = write_jsonl(tmp_path / "one.jsonl", [plain_row(0), plain_row(1, dataset="sums")])
        two = write_jsonl(tmp_path / "deep" / "two.jsonl", [plain_row(0), plain_row(1, data_source="sums")])
        found = opened(one, also=[str(two)], weights={"two": 0.5, "sums": 3})
        assert found.ids == ["p0", "p1", "two/p0", "two/p1"]
        assert found.weights == [1.0, 3, 0.5, 3]
        order = DrawOrder(found.ids, found.weights, seed=0)
        drawn = Counter(order.next() for _ in range(3000))
        assert [round(drawn[n] / 3000, 1) for n in range(4)] == [round(w / 7.5, 1) for w in (1, 3, 0.5, 3)]

    def test_unknown_names_and_equal_names(self, tmp_path, opened):
        one = write_jsonl(tmp_path / "one.jsonl", [plain_row(0)])
        with pytest.raises(ValueError, match=r"data.weights: expected names of data sets among \['one'\], found 'two'"):
            opened(one, weights={"two": 1.0})
        other = write_jsonl(tmp_path / "deep" / "one.jsonl", [plain_row(0)])
        with pytest.raises(ValueError, match=r"data\.also: expected files of different names, found 'one' twice"):
            opened(one, also=[str(other)])

    def test_each_file_has_its_own_root(self, tmp_path, opened):
        rows = [plain_row(0, image="a.png")]
        paths = [write_jsonl(tmp_path / name / f"{name}.jsonl", rows) for name in ("one", "two")]
        for number, name in enumerate(("one", "two")):
            (tmp_path / name / "a.png").write_bytes(png(number))
        found = opened(paths[0], also=[str(paths[1])])
        assert [found.build(n).root.name for n in (0, 1)] == ["one", "two"]
        assert not found.build(0).images[0].equal(found.build(1).images[0])


class TestDamagedPixels:
    """A sound header passes the opening; what is behind it shows when the row is drawn."""

    @pytest.fixture
    def half_bad(self, tmp_path, opened):
        """Even rows are sound."""

        def make(limit: float, **settings) -> PromptSet:
            rows = [plain_row(n, image=base64_of(damaged(png(n, 64)) if n % 2 else png(n, 64))) for n in range(6)]
            return opened(write_jsonl(tmp_path / "prompts.jsonl", rows), max_bad_rows=limit, **settings)

        return make

    def test_are_named_once_and_skipped(self, half_bad, tmp_path, capsys):
        report = tmp_path / "bad_rows.jsonl"
        found = half_bad(3, report=report)
        assert len(found) == 6 and not report.exists()
        for _ in range(2):
            assert [found.task(n) is None for n in range(6)] == [False, True] * 3
        records = [json.loads(line) for line in report.read_text().splitlines()]
        assert [(r["row"], r["id"]) for r in records] == [(2, "p1"), (4, "p3"), (6, "p5")]
        assert all("expected a whole image, found damage" in r["reason"] for r in records)
        assert capsys.readouterr().err.count("bad row: ") == 3
        with pytest.raises(MediaError):
            found.build(1)

    def test_past_the_limit(self, half_bad):
        found = half_bad(2)
        assert found.task(1) is None and found.task(3) is None
        with pytest.raises(ValueError, match=r":6: .*damage: .* 3 of 6 rows cannot be used, data.max_bad_rows=2 "):
            found.task(5)

    def test_nothing_left_to_draw(self, tmp_path, opened):
        bad = [plain_row(n, image=base64_of(damaged(png(n, 64))), dataset="drawn") for n in range(2)]
        path = write_jsonl(tmp_path / "a.jsonl", [*bad, plain_row(2, dataset="never")])
        found = opened(path, max_bad_rows=100, weights={"never": 0.0})
        assert found.task(0) is None
        with pytest.raises(ValueError, match="no row is left whose images can be read"):
            found.task(1)

    def test_state_goes_through_a_checkpoint(self, half_bad, tmp_path, capsys):
        report = tmp_path / "bad_rows.jsonl"
        found = half_bad(2, report=report)
        assert found.task(1) is None
        state, text = json.loads(json.dumps(found.bad_rows.state())), report.read_bytes()
        again = half_bad(2, report=report)
        assert not report.exists()  # nothing was bad at the opening
        again.bad_rows.restore(state)
        assert report.read_bytes() == text
        capsys.readouterr()
        assert again.task(1) is None and not capsys.readouterr().err
        assert again.task(3) is None
        with pytest.raises(ValueError, match="3 of 6"):
            again.task(5)

    def test_the_collector_draws_others(self, half_bad, tiny):
        prompts = half_bad(3)
        worker = fill_worker(
            EmbeddedWorker(*tiny, RolloutConfig(max_prompt_tokens=96, max_completion_tokens=2), 0), tiny[0]
        )
        config = TrainerConfig(groups_per_step=3, max_draws=3)
        with Rubric(RewardConfig()) as rubric:
            algorithm = build_algorithm(DapoConfig(group_size=2), 2)
            one = Collector(config, prompts, worker, rubric, tiny[1].tokenizer, algorithm, 0)
            collected = one.collect(1)
            assert {group.prompt.id for group in collected.sampled} == {"p0", "p2", "p4"}
            other = Collector(config, half_bad(3), worker, rubric, tiny[1].tokenizer, algorithm, 0)
            other.restore(json.loads(json.dumps(one.state())))
            assert other.state() == one.state() and one.state()["bad_rows"]

    def test_an_evaluation_leaves_them_out(self, half_bad, tiny, monkeypatch):
        worker = fill_worker(
            EmbeddedWorker(*tiny, RolloutConfig(max_prompt_tokens=96, max_completion_tokens=2), 0), tiny[0]
        )
        results = []
        with Rubric(RewardConfig()) as rubric:
            for portion in (128, 2, 1):
                monkeypatch.setattr("rlhf.evaluation.evaluator.PORTION", portion)
                results.append(evaluate_modes(half_bad(3), 0, worker, rubric, tiny[1]))
        assert results[0]["num_eval"] == 3 and results[0] == results[1] == results[2]

    def test_a_file_that_changed(self, tmp_path, opened):
        (tmp_path / "0.png").write_bytes(png(0))
        found = opened(write_jsonl(tmp_path / "a.jsonl", [plain_row(0, image="0.png"), plain_row(1)]), max_bad_rows=1)
        (tmp_path / "0.png").unlink()
        assert found.task(0) is None and found.task(1) is not None


def test_a_prompt_of_more_images_than_the_sampler_takes_is_a_bad_row(tmp_path, tiny):
    (tmp_path / "0.png").write_bytes(png(0))
    rows = [plain_row(n, question="<image>" * n + "?", image=["0.png"] * n) for n in (1, 2, 3)]
    path, report = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "bad.jsonl"
    limits = VllmRolloutConfig(max_images=2)
    found = PromptSet(path, tiny[1], Mode.think, limits, DataConfig(max_bad_rows=1), DataFolders(report=report))
    assert found.ids == ["p1", "p2"]
    assert "at most rollouts.max_images = 2 images and frames, found 3" in report.read_text()


def test_a_picture_of_another_size_is_noticed(tmp_path, tiny):
    """With dynamic tiling the ids depend on the size."""
    processor = tiny[1].with_settings(max_tiles=4)
    (tmp_path / "0.png").write_bytes(png(0, 32))
    path = write_jsonl(tmp_path / "a.jsonl", [plain_row(0, image="0.png"), plain_row(1)])
    found = PromptSet(path, processor, Mode.think, RolloutConfig(max_prompt_tokens=200), DataConfig(max_bad_rows=1))
    Image.new("RGB", (128, 32)).save(tmp_path / "0.png")
    with pytest.raises(MediaError, match="visual tokens as when the data was opened, found"):
        found.build(0)


def test_a_small_set_stays_in_the_cache(tmp_path, opened):
    rows = [plain_row(n, image=base64_of(png(n))) for n in range(8)]
    path = write_jsonl(tmp_path / "prompts.jsonl", rows)
    found = opened(path)
    tasks = [found.build(n) for n in range(8)]
    assert all(found.build(n) is tasks[n] for n in range(8))
    assert found._cache.num_bytes == sum(task.num_bytes for task in tasks)
    without = opened(path, cache_mib=0)
    assert without.build(0) is not without.build(0) and without._cache.num_bytes == 0


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tmp_path, opened):
    found = opened(write_jsonl(tmp_path / "prompts.jsonl", [plain_row(n, image=base64_of(png(n))) for n in range(4)]))
    first = found.build(0)
    found._cache._capacity = 2 * first.num_bytes + 100
    second = found.build(1)
    assert found.build(0) is first
    third = found.build(2)  # the second goes
    assert found.build(0) is first and found.build(2) is third and found.build(1) is not second
    assert found._cache.num_bytes <= found._cache._capacity


def test_the_same_rows_whatever_the_format(tmp_path, opened):
    """Draws are keyed by position, so a run sees the same prompts from any format."""
    rows = [plain_row(n) for n in range(50)]
    rows[7]["answer"] = ""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    sets = [
        opened(path, max_bad_rows=1)
        for path in (write_jsonl(tmp_path / "prompts.jsonl", rows), tmp_path / "prompts.parquet")
    ]
    draws = [DrawOrder(found.ids, found.weights, seed=3) for found in sets]
    orders = [[found.ids[order.next()] for _ in range(98)] for found, order in zip(sets, draws, strict=True)]
    assert orders[0] == orders[1] and len(set(orders[0])) == 49
