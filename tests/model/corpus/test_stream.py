"""Streams of several corpora: the same rows after a restart, for any number of processes, and with damaged images."""

import json
import re
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sft.stage
from conf.cli import load_config
from model.batch import Row
from model.corpus.open import inputs_of_sources, open_held_out, open_stream, source_weights
from model.corpus.stream import Stream
from model.data.config import LoaderConfig, SourceConfig, SourceKind, StreamConfig, TableConfig
from model.data.sources import DataFolders
from model.pretrain.stage import run_stage
from model.processing.processor import BytePicture, StoredPicture
from model.supervised import make_train_batch
from tests.model.corpus import layouts

CAPACITY = 256
SOURCES = ("data.sources={a: {paths: [x]}}", "data.micro_batches_per_step=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Captions with image files, a tar, a Parquet file with images inside, texts."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = []
    for number in range(120):
        (folder / f"{number}.png").write_bytes(layouts.picture(number))
        rows.append({"image": f"{number}.png", "caption": f"Square {number}. " * (1 + number % 4)})
    layouts.jsonl(folder / "captions.jsonl", rows)
    members = [
        (f"{number:05}.{ending}", content)
        for number in range(70)
        for ending, content in (("jpg", layouts.picture(number, "JPEG")), ("txt", f"Tar {number}.".encode()))
    ]
    layouts.tar(folder / "a.tar", members)
    pairs = [
        {
            "images": [layouts.struct(number)] * (1 + number % 2),
            "texts": [{"user": "What?", "assistant": f"It is {number}."}, {"user": "More?", "assistant": "No."}],
        }
        for number in range(60)
    ]
    layouts.parquet(folder / "pairs.parquet", pairs, group=16)
    layouts.jsonl(folder / "texts.jsonl", [{"text": f"Text {number}. " * (1 + number % 9)} for number in range(200)])
    return folder


def config(path: Path, workers: int = 0, **changes) -> StreamConfig:
    sources = {
        "captions": SourceConfig(["captions.jsonl"], 3.0, template="What is it?"),
        "tar": SourceConfig(["a.tar"]),
        "pairs": SourceConfig(["pairs.parquet"]),
        "texts": SourceConfig(["texts.jsonl"], 2.0),
    }
    loader = LoaderConfig(workers=workers)
    return replace(StreamConfig(str(path), sources, micro_batches_per_step=3, loader=loader), **changes)


def stream_of(data: StreamConfig, processor, max_bad_rows: float = 0.01, report: Path | None = None) -> Stream:
    folders = DataFolders(report=report)
    return open_stream(data, TableConfig(max_bad_rows=max_bad_rows), CAPACITY, processor, 0, folders)


def ids_of(row: Row) -> tuple:
    return tuple(row.prefix_ids), tuple(map(tuple, row.completions))


def steps_of(stream: Stream, start: int, stop: int) -> list:
    found = []
    for step in range(start, stop):
        content = stream.content(step)
        found.append(([ids_of(row) for row in content.rows], content.bins, content.sources))
    return found


def test_all_kinds_of_files_mix_by_weight(tiny, folder):
    stream = stream_of(config(folder), tiny[1])
    steps = [stream.content(step) for step in range(30)]
    for content in steps:
        assert content.bins is not None and len(content.bins) == 3
        assert sorted(number for one in content.bins for number in one) == list(range(len(content.rows)))
        assert all(sum(content.rows[n].num_tokens for n in one) <= CAPACITY for one in content.bins)
        assert {"pack/waste", "pack/visual_tokens_max_over_mean", "pack/oldest_age"} <= content.metrics.keys()
    mebibytes = np.mean([sum(image.nbytes for row in one.rows for image in row.images) for one in steps]) / 2**20
    stream._bytes_each *= 10_000
    said = re.search(r"images of a step: about (\d+) MiB", stream.described()[-1])
    assert said and abs(int(said[1]) / (mebibytes * 10_000) - 1) < 0.1
    names = [name for content in steps for name in content.sources]
    for name, share in (("captions", 3 / 7), ("tar", 1 / 7), ("pairs", 1 / 7), ("texts", 2 / 7)):
        assert abs(names.count(name) / len(names) - share) < 0.1
    assert all("data/wait_share" in content.metrics for content in steps[1:])
    assert np.mean([content.metrics["pack/waste"] for content in steps]) < 0.03


def test_the_next_thousand_rows_after_a_restart_are_those_of_the_undisturbed_run(tiny, folder):
    straight = steps_of(stream_of(config(folder), tiny[1]), 0, 80)
    first = stream_of(config(folder), tiny[1])
    steps_of(first, 0, 7)
    state = json.loads(json.dumps(first.state()))
    again = stream_of(config(folder), tiny[1])
    again.restore(state)
    resumed = steps_of(again, 7, 80)
    assert sum(len(rows) for rows, _, _ in resumed) > 1000
    assert resumed == straight[7:]
    again.restore(state)  # as a rollback does, in the same process
    assert steps_of(again, 7, 12) == straight[7:12]


def test_workers_change_nothing(tiny, folder):
    stream = stream_of(config(folder, workers=2), tiny[1])
    try:
        found = steps_of(stream, 0, 6)
        state = stream.state()
        more = steps_of(stream, 6, 9)
        stream.restore(state)
        assert steps_of(stream, 6, 9) == more
    finally:
        stream.close()
    assert found + more == steps_of(stream_of(config(folder), tiny[1]), 0, 9)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_a_step_are_bytes_until_their_micro_batch_is_trained(tiny, folder, workers):
    """A step of a large recipe would be tens of gigabytes of pixels."""
    stream = stream_of(config(folder, workers), tiny[1])
    try:
        rows = stream.content(0).rows
        planned = stream._planned[1]
        following = stream.content(1).rows
    finally:
        stream.close()
    images = [image for row in rows for image in row.images]
    inputs = make_train_batch(rows, tiny[1]).inputs
    assert not inputs.is_open
    pixels = inputs.to(torch.device("cpu")).tiles
    assert sum(image.nbytes for image in images) * 4 == sum(tiles.nbytes for tiles in pixels) > 0
    assert planned.num_bytes == sum(image.nbytes for row in following for image in row.images)


def test_the_next_step_can_be_looked_at_once_its_rows_are_there(tiny, folder):
    """Looking changes nothing, and the rows are those that come then."""
    wanted = steps_of(stream_of(config(folder), tiny[1]), 0, 4)
    assert stream_of(config(folder), tiny[1]).following() is None
    stream = stream_of(config(folder, workers=1), tiny[1])
    try:
        for step in range(3):
            stream.content(step)
            deadline = time.monotonic() + 60
            while (ahead := stream.following()) is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            state = stream.state()
        content = stream.content(3)
        assert content.rows is ahead.rows and [ids_of(row) for row in content.rows] == wanted[3][0]
        assert content.metrics and not ahead.metrics
        stream.restore(state)
        assert steps_of(stream, 3, 4) == wanted[3:]
    finally:
        stream.close()


def test_references_stand_for_the_same_pixels(tiny, folder):
    """Processes that share an update get references: equal ids, and equal pixels once they are opened."""
    here, there = stream_of(config(folder), tiny[1]), stream_of(config(folder), tiny[1].storing_pictures())
    num_images = 0
    for step in range(12):
        for row, stored in zip(here.content(step).rows, there.content(step).rows, strict=True):
            assert ids_of(row) == ids_of(stored)
            for image, reference in zip(row.images, stored.images, strict=True):
                assert isinstance(reference, StoredPicture) and isinstance(image, BytePicture)
                assert reference.shape == image.shape and torch.equal(reference.open(), image.open())
                num_images += 1
    assert num_images > 100


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_names_in_columns_stand_for_the_same_pixels(tiny, tmp_path, ending):
    """Images of columnar files may be names, and structs of bytes and names in which one of the two is null."""
    import pyarrow.ipc
    import pyarrow.parquet

    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(layouts.picture(number))
    columns = {
        "image": [f"{number}.png" for number in range(6)],
        "structs": [
            {"bytes": None if number % 2 else layouts.picture(number), "path": f"{(number + number % 2) % 6}.png"}
            for number in range(6)
        ],
        "inside": [{"image": layouts.struct(number)} for number in range(6)],
        "messages": [
            [
                {"role": "user", "content": [{"type": "image", "image": layouts.struct(number), "text": None}]},
                {"role": "assistant", "content": [{"type": "text", "image": None, "text": f"Square {number}."}]},
            ]
            for number in range(6)
        ],
    }
    captions = {"caption": [f"Square {number}." for number in range(6)]}
    table = pyarrow.table({**columns, **captions})
    if ending == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    else:
        with pyarrow.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as stream:
            stream.write_table(table)
    for column in ("image", "structs", "inside.image", "messages"):
        kind = SourceKind.chat if column == "messages" else SourceKind.document
        source = SourceConfig([f"rows.{ending}"], image_column="" if column == "messages" else column, kind=kind)
        data = config(tmp_path, sources={"a": source}, micro_batches_per_step=1)
        here, there = stream_of(data, tiny[1]), stream_of(data, tiny[1].storing_pictures())
        for row, stored in zip(here.content(0).rows, there.content(0).rows, strict=True):
            assert ids_of(row) == ids_of(stored)
            (image,), (reference,) = row.images, stored.images
            assert isinstance(reference, StoredPicture) and isinstance(image, BytePicture)
            assert torch.equal(reference.open(), image.open())


def test_damaged_images_are_named_and_left_out(tiny, folder, tmp_path, capsys):
    """The headers are whole, so that only decoding finds the damage."""
    rows = []
    for number in range(40):
        content = layouts.picture(number, "JPEG", (64, 64))
        rows.append({"images": [{"bytes": content[:-200] if number % 10 == 0 else content, "path": None}], "text": "x"})
    layouts.parquet(tmp_path / "d.parquet", rows)
    sources = {"d": SourceConfig(["d.parquet"])}
    data = config(folder, folder=str(tmp_path), sources=sources)
    stream = stream_of(data, tiny[1], max_bad_rows=4, report=tmp_path / "bad.jsonl")
    steps_of(stream, 0, 5)
    assert capsys.readouterr().err.count("d.parquet:") >= 4
    assert {record["row"] for record in map(json.loads, (tmp_path / "bad_d.jsonl").read_text().splitlines())} == {
        1,
        11,
        21,
        31,
    }
    with pytest.raises(ValueError, match="rows cannot be used"):
        steps_of(stream_of(data, tiny[1], max_bad_rows=2), 0, 5)
    decoded = replace(data, loader=LoaderConfig(0, decode_all=True))
    assert len(stream_of(decoded, tiny[1], max_bad_rows=4).bad_rows[0]) == 4


def test_rows_of_one_row_group_are_built_by_one_worker(tiny, folder):
    stream = stream_of(config(folder), tiny[1])
    groups = [one.task(20, opens_images=True).address.group for one in stream._corpora]
    assert groups == [None, None, (str(folder / "pairs.parquet"), 1), None]


def test_a_stream_that_ends_says_so(tiny, folder):
    sources = {"texts": SourceConfig(["texts.jsonl"], max_epochs=1.0)}
    stream = stream_of(config(folder, sources=sources), tiny[1])
    expected = stream.steps_per_pass
    count = 0
    with pytest.raises(
        ValueError, match=r"data\.sources: all sources end after 200 rows.*data\.sources\.NAME\.max_epochs"
    ):
        for step in range(1000):
            stream.content(step)
            count += 1
    assert abs(count - expected) <= 1


class TestSettings:
    def test_a_file_of_weights_replaces_those_of_the_config(self, tiny, folder, tmp_path):
        path = tmp_path / "w.json"
        path.write_text('{"texts": 0, "tar": 0, "pairs": 5}')
        data = config(folder, source_weights=str(path))
        stream = stream_of(data, tiny[1])
        assert {name for _, _, names in steps_of(stream, 0, 5) for name in names} == {"captions", "pairs"}
        assert "data.source_weights" in inputs_of_sources(data)
        for content, wanted in (
            ('{"unknown": 1}', "expected names of data.sources"),
            ('{"tar": -1}', "expected a number of 0 or more"),
            ("[]", "expected a JSON object"),
        ):
            path.write_text(content)
            with pytest.raises(ValueError, match=r"data\.source_weights") as error:
                source_weights(data)
            assert wanted in str(error.value)

    def test_held_out_rows_are_read_as_those_of_a_source(self, tiny, folder):
        sources = {"c": SourceConfig(["captions.jsonl"], 2.0, template="What?"), "t": SourceConfig(["texts.jsonl"])}
        cases = ((sources, "c", True), (sources, "", False), ({"c": sources["c"]}, "", True))
        for some, name, is_chat in cases:
            data = config(folder, sources=some)
            source = data.held_out(str(folder / "captions.jsonl"), name)
            rows = open_held_out(source, data, TableConfig(), tiny[1], DataFolders())
            assert (("template" in rows.described()[0]), len(rows)) == (is_chat, 120)
            text = tiny[1].tokenizer.decode(rows.build(0).prefix_ids)
            assert ("What?" in text) is is_chat
        own = {"c": replace(sources["c"], media="elsewhere")}
        data = config(folder, sources=own)
        assert data.held_out("x.jsonl", "").media == "" and data.held_out("x.jsonl", "c").media.endswith("elsewhere")

    def test_a_package_that_is_missing_is_no_fault_of_a_row(self, tiny, tmp_path, monkeypatch):
        """No index is written then, so that installing it is enough."""
        (tmp_path / "v.mp4").write_bytes(b"x")
        row = {"video": "v.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}
        layouts.jsonl(tmp_path / "a.jsonl", [row])
        data = config(tmp_path, sources={"a": SourceConfig(["a.jsonl"])})
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(ValueError, match="install the extra"):
            stream_of(data, tiny[1])
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_weights_of_rows(self, tiny, folder, tmp_path):
        weights = np.zeros(200)
        weights[::2] = 1.0
        np.save(tmp_path / "w.npy", weights)
        sources = {"texts": SourceConfig(["texts.jsonl"], row_weights=str(tmp_path / "w.npy"))}
        stream = stream_of(config(folder, sources=sources), tiny[1])
        texts = [tiny[1].tokenizer.decode(ids[1][0]) for rows, _, _ in steps_of(stream, 0, 9) for ids in rows]
        numbers = {int(text.split()[1].rstrip(".")) for text in texts}
        assert len(numbers) > 50 and all(number % 2 == 0 for number in numbers)
        np.save(tmp_path / "w.npy", weights / 4)  # a pass holds 25 rows
        short = replace(sources["texts"], max_epochs=3.0)
        ends = stream_of(config(folder, sources={"texts": short}), tiny[1])._mixture
        assert ends.positions_per_pass == 25 and ends.num_rows == 75 and ends.end == 100  # its block's end
        np.save(tmp_path / "w.npy", weights)
        for array, wanted in ((np.ones(3), "expected 200 numbers"), (-weights, "finite numbers of 0 or more")):
            np.save(tmp_path / "w.npy", array)
            with pytest.raises(ValueError, match=wanted):
                stream_of(config(folder, sources=sources), tiny[1])

    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            (["data.micro_batches_per_step=2"], "data.micro_batches_per_step: expected data.sources beside it"),
            (["data.path=x", "data.sources={a: {paths: [x]}}", "data.micro_batches_per_step=2"], "found both"),
            (["data.sources={a: {paths: [x]}}"], "data.micro_batches_per_step: expected at least 1"),
            (["data.sources={a: {paths: []}}", "data.micro_batches_per_step=2"], "data.sources.a.paths: expected"),
            (["data.sources={a b: {paths: [x]}}", "data.micro_batches_per_step=2"], "expected names of letters"),
            (["data.sources={a: {paths: [x], weight: -1}}"], "weight: expected 0 or more"),
            (["data.sources={a: {paths: [x], kind: other}}"], "kind"),
            (["data.sources={a: {path: [x]}}"], "path"),
            (["data.sources={a: {paths: [x]}}", "data.packing.candidates=0"], "data.packing.candidates"),
            (["data.path=x", "data.packing.max_wait=3"], "data.packing: expected data.sources beside it"),
            (["data.sources={evaluation: {paths: [x]}}", "data.micro_batches_per_step=2"], "expected another name"),
            ([*SOURCES, "data.mixture={a: 1}"], "data.mixture: expected none with data.sources, found {'a': 1}"),
            ([*SOURCES, "data.max_image_bytes=1"], "data.max_image_bytes: expected none with data.sources, found 1"),
            ([*SOURCES, "evaluation.source=a"], "evaluation.source: expected evaluation.data beside it, found 'a'"),
            ([*SOURCES, "evaluation.data=x", "evaluation.source=b"], "evaluation.source: expected one of a, found 'b'"),
            (["data.path=x", "evaluation.data=x", "evaluation.source=b"], "expected data.sources beside it, found 'b'"),
            (["data.loader.patience_s=100"], "patience_s: expected at least 150, because a row with a video may take"),
        ],
    )
    def test_what_contradicts_is_refused(self, arguments, wanted):
        with pytest.raises(ValueError, match=r".") as error:
            load_config("pretrain", ["model=tiny", "optimizer.learning_rate=1e-3", *arguments])
        assert wanted in str(error.value)


def pretrain(folder: Path, run: Path, *more: str) -> list[dict]:
    """The lines of the metrics, without times."""
    sources = "{c: {paths: [captions.jsonl], template: What}, t: {paths: [a.tar]}, p: {paths: [pairs.parquet]}}"
    overrides = [
        *("model=tiny", "optimizer.learning_rate=1e-3", f"data.folder={folder}", f"data.sources={sources}"),
        *("data.micro_batches_per_step=2", f"engine.micro_batch_tokens={CAPACITY}", "engine.num_threads=1"),
        *("data.loader.workers=0", f"run.dir={run}", "run.save_every=3", *more),
    ]
    run_stage(*load_config("pretrain", overrides))
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in one.items() if not k.startswith("time/") and k != "data/wait_share"} for one in lines]


def test_pre_training_on_a_stream_goes_on_to_the_bit(folder, tmp_path):
    whole = pretrain(folder, tmp_path / "whole", "max_steps=8", f"evaluation.data={folder / 'pairs.parquet'}")
    assert whole[-1]["loss"] < whole[0]["loss"]
    last = whole[-1]
    mean = np.mean([last[f"loss/{name}"] for name in "ctp"])
    assert abs(mean - last["nll_per_token"]) < 1.0 and last["eval/nll_per_token"] > 0
    assert last["pack/waste"] < 0.05
    with_worker = ("data.loader.workers=1", f"evaluation.data={folder / 'pairs.parquet'}")
    pretrain(folder, tmp_path / "parts", "max_steps=4", *with_worker)
    again = pretrain(folder, tmp_path / "parts", "max_steps=8", *with_worker)
    for one in (whole[3], again[3]):  # the first part is evaluated at its end
        for name in [name for name in one if name.startswith("eval/")]:
            del one[name]
    assert again == whole
    weights, others = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("whole", "parts"))
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    with pytest.raises(ValueError, match="data"):
        pretrain(folder, tmp_path / "parts", "max_steps=9", "run.seed=0", "data.packing.max_wait=3")


def test_first_rows_of_each_source_are_read_lazily(tiny, folder):
    """Steps ahead are planned from lengths alone; rows of later steps are not built."""
    stream = stream_of(config(folder), tiny[1])
    built = []
    own = stream._builder
    stream._builder = lambda task: built.append(task) or own(task)  # pyright: ignore[reportAttributeAccessIssue]
    first = stream.content(0)
    assert len(built) == len(first.rows)
    assert list(islice(stream._planned, 5)) == [1, 2]


def test_fine_tuning_reads_the_same_streams(tiny_folder, folder, tmp_path):
    """Conversations of several turns and captions, from a checkpoint; only what the assistant says is counted."""
    sources = "{p: {paths: [pairs.parquet]}, c: {paths: [captions.jsonl], template: What, weight: 2}}"
    overrides = [
        *(f"checkpoint={tiny_folder}", "optimizer.learning_rate=1e-3", f"data.folder={folder}", "max_steps=4"),
        *(f"data.sources={sources}", "data.micro_batches_per_step=2", f"engine.micro_batch_tokens={CAPACITY}"),
        *("engine.num_threads=1", "data.loader.workers=0", f"run.dir={tmp_path / 'run'}"),
        f"evaluation.data={folder / 'captions.jsonl'}",
    ]
    sft.stage.run_stage(*load_config("sft", overrides))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] and {"loss/p", "loss/c", "pack/waste"} <= lines[0].keys()
    assert lines[0]["time/left_s"] > 0 and lines[0]["time/tflops_per_s"] > 0
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    for more, wanted in (
        ([f"data.demonstrations={folder / 'texts.jsonl'}"], "found both"),
        (["data.sources={}"], r"data\.folder: expected data\.sources beside it"),
    ):
        with pytest.raises(ValueError, match=wanted):
            load_config("sft", [*overrides, *more])


def test_pixels_that_are_read_ahead_are_bounded(tiny, folder):
    """With no room for pixels ahead a step is read when it is due, and is the same."""
    wanted = steps_of(stream_of(config(folder), tiny[1]), 0, 4)
    data = config(folder, loader=LoaderConfig(workers=1, ahead_mib=0))
    stream = stream_of(data, tiny[1])
    try:
        assert steps_of(stream, 0, 2) == wanted[:2]
        assert not stream._submitted
        assert steps_of(stream, 2, 4) == wanted[2:]
    finally:
        stream.close()
