"""Files of rows in any order, their indices, and files that are damaged."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.corpus import tables
from model.corpus.corpus import Corpus
from model.corpus.files import open_shard, shard_files
from model.corpus.index import IndexKind, open_indices
from model.corpus.lines import JsonLines
from model.corpus.reading import ChangedRow
from model.corpus.shard import BLANK, Unit, Withheld
from model.data.config import LoaderConfig, SourceConfig, TableConfig, TooLong
from model.data.sources import BoundedCache, DataFolders
from tests.model.corpus import layouts

ROOT = Path(__file__).resolve().parents[3]


def chat(number: int, text: str = "") -> dict:
    turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": text or str(number)}]
    return {"messages": turns}


def corpus_of(processor, *paths, max_bad_rows=0.01, capacity=4096, too_long=TooLong.refuse, **loader):
    source = SourceConfig(paths=[str(path) for path in paths])
    table = TableConfig(max_bad_rows=max_bad_rows)
    settings = LoaderConfig(**{"workers": 0, **loader})
    return Corpus("s", source, "", table, settings, processor, DataFolders(), capacity, too_long)


def write(folder: Path, form: str, rows: list[dict]) -> Path:
    """The same rows in each kind of file."""
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    elif form == "json":
        path.write_text("\ufeff \n" + json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    elif form == "parquet":
        layouts.parquet(path, rows, group=7)
    elif form == "tsv":
        lines = [
            f'{n}\t"{row["messages"][0]["content"]}"\t{row["messages"][1]["content"]}' for n, row in enumerate(rows)
        ]
        path.write_text("index\tquestion\tanswer\n" + "\n".join(lines), encoding="utf-8")
    elif form == "tar":
        layouts.tar(path, [(f"a/{n:04}.json", json.dumps(row).encode()) for n, row in enumerate(rows)])
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"), max_shard_size="2KB")
        return folder / "saved"
    return path


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "tsv", "tar", "datasets"])
def test_rows_are_the_same_read_in_order_and_by_place(tmp_path, form):
    rows = [chat(number, "é\n" * (number % 3) + f"Text {number} " * 5) for number in range(40)]
    if form == "tsv":
        rows = [chat(number, f"Text {number}") for number in range(40)]
    texts = []
    for file in shard_files("x", "", [str(write(tmp_path, form, rows))]):
        shard = open_shard(file)
        found = [pair for unit in shard.units() for pair in shard.rows(unit)]
        found = [(place, raw) for place, raw in found if raw.problem is not BLANK]
        for place, raw in reversed(found):
            assert shard.read(place).columns == raw.columns and not raw.problem
        texts += [raw.columns.get("answer") or raw.columns["messages"][1]["content"] for _, raw in found]
    assert texts == [row["messages"][1]["content"] for row in rows]


def test_parts_of_a_file_of_lines_hold_every_line_once(tmp_path):
    path = layouts.jsonl(tmp_path / "a.jsonl", [chat(number, "x" * (number * 7 % 90)) for number in range(200)])
    size = path.stat().st_size
    shard = JsonLines(path)
    for step in (1, 17, 100, 5000, size):
        places = [p for start in range(0, size, step) for p, _ in shard.rows(Unit(start, min(start + step, size)))]
        assert [p[0] for p in places] == sorted({p[0] for p in places}) and len(places) == 200


def test_long_names_and_folders_of_a_tar(tmp_path):
    long = "ü" * 150
    members = [("x/a.jpg", b"1"), ("x/a.txt", b"A"), (f"x/{long}.txt", b"B"), ("y/a.txt", b"C")]
    shard = open_shard(layouts.tar(tmp_path / "a.tar", members))
    rows = list(shard.rows(shard.units()[0]))
    assert [raw.columns["caption"] for _, raw in rows] == ["A", "B", "C"]
    assert all(shard.read(place).columns == raw.columns for place, raw in rows)


def test_a_row_without_its_images_keeps_the_names_of_its_videos(tmp_path):
    video = {"bytes": b"", "path": "clip.mp4"}
    path = layouts.parquet(
        tmp_path / "a.parquet", [{"video": video, "image": layouts.struct(), "caption": "A square."}]
    )
    columns = open_shard(path).read((0, 0), num_pictures=1).columns
    assert columns["video"]["path"] == "clip.mp4" and [type(one) for one in columns["image"]] == [Withheld]


def test_row_groups_of_many_files_are_kept_within_bytes_of_the_process(tmp_path, monkeypatch):
    read = []
    own = tables.parquet_group
    monkeypatch.setattr(tables, "parquet_group", lambda *arguments: read.append(arguments) or own(*arguments))
    rows = [chat(number, str(number) * 10_000) for number in range(8)]
    shards = [tables.ParquetShard(layouts.parquet(tmp_path / f"{number}.parquet", rows, 4)) for number in range(6)]
    cache = BoundedCache[Any](100_000, lambda group: group.nbytes, least=1)
    monkeypatch.setattr(tables, "_groups", cache)
    for shard in shards:
        for place in ((0, 0), (0, 3), (1, 1), (0, 2)):
            assert shard.read(place).columns == rows[4 * place[0] + place[1]]
        assert 40_000 < cache.num_bytes <= 100_000
    assert len(read) == 12  # each group once
    monkeypatch.setattr(tables, "_groups", BoundedCache[Any](0, lambda group: group.nbytes, least=1))
    assert [shards[0].read((1, index)).columns for index in range(4)] == rows[4:]
    assert len(read) == 13


class TestIndex:
    def test_it_is_made_once_and_anew_when_the_file_changes(self, tiny, tmp_path, capsys):
        path = layouts.jsonl(tmp_path / "a.jsonl", [chat(number) for number in range(50)])
        first = corpus_of(tiny[1], path)
        assert "making the index of 1 file" in capsys.readouterr().err
        corpus_of(tiny[1], path)
        assert "making the index" not in capsys.readouterr().err
        before = first.inputs
        layouts.jsonl(path, [chat(number, "longer") for number in range(50)])
        again = corpus_of(tiny[1], path)
        assert "making the index" in capsys.readouterr().err
        assert again.mean_tokens > first.mean_tokens and again.inputs != before

    def test_another_way_of_reading_has_another_index(self, tiny, tmp_path):
        path = layouts.jsonl(tmp_path / "a.jsonl", [{"caption": "A square.", "text": "x"}])
        plain = Corpus("s", SourceConfig([str(path)]), "", TableConfig(), LoaderConfig(0), tiny[1], DataFolders(), 99)
        asked = SourceConfig([str(path)], template="What?")
        other = Corpus("s", asked, "", TableConfig(), LoaderConfig(0), tiny[1], DataFolders(), 99)
        assert plain.length(0) != other.length(0)

    def test_processes_make_the_same_index(self, tiny, tmp_path, monkeypatch):
        import model.corpus.index as index

        monkeypatch.setattr(index, "_INLINE_BYTES", 0)
        monkeypatch.setattr("model.corpus.lines._UNIT_BYTES", 1500)
        rows = [chat(number) if number % 10 else {"x": number} for number in range(200)]
        path = layouts.jsonl(tmp_path / "a.jsonl", rows)
        kind = IndexKind(corpus_of(tiny[1], path, max_bad_rows=0.2).form, "", "t", decodes=False)
        made = [
            open_indices([path], kind, tiny[1], str(tmp_path / f"index{workers}"), workers)[0] for workers in (0, 2)
        ]
        for name in ("place", "number", "ordinal", "text_tokens", "kept_tokens", "num_pictures", "sizes"):
            assert np.array_equal(getattr(made[0], name), getattr(made[1], name)), name
        assert made[0].bad == made[1].bad and made[0].num_rows == 200
        assert [row.number for row in made[0].bad] == list(range(1, 201, 10))
        assert not list(tmp_path.rglob("*.part*"))

    def test_what_was_indexed_is_kept_when_the_process_is_killed(self, tiny_folder, tmp_path):
        """Killed when the n-th of five parts is to be written, then run again: the rest alone is indexed."""
        rows = [chat(number) for number in range(200)]
        path = layouts.jsonl(tmp_path / "a.jsonl", rows)
        code = (
            "import sys; from pathlib import Path; import model.corpus.lines as lines; lines._UNIT_BYTES = 4000\n"
            "from model.checkpoint import load_processor; from tests.model.corpus.test_files import corpus_of\n"
            "corpus = corpus_of(load_processor(Path(sys.argv[1])), Path(sys.argv[2]))\n"
            "print(len(corpus), corpus.mean_tokens)"
        )

        def run(**more: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-c", code, str(tiny_folder), str(path)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
            return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)

        killed = run(SAILVL2_FAILPOINT="index:3")
        assert killed.returncode == -9, killed.stderr
        assert len(list(tmp_path.rglob("*.part*"))) == 2 and not list(tmp_path.rglob("*.safetensors"))
        done = run()
        assert done.returncode == 0 and "2 of 4 parts are left" in done.stderr.replace("3 of 5", "2 of 4"), done.stderr
        assert done.stdout.split() == ["200", str(corpus_of_count(tmp_path, path, tiny_folder))]

    def test_a_million_rows_open_fast_and_small(self, tiny, tmp_path):
        """Only the index is opened, so an index of a million rows is written without the rows."""
        import model.corpus.index as index

        path = layouts.jsonl(tmp_path / "a.jsonl", [chat(0)])
        corpus = corpus_of(tiny[1], path)
        target = next(tmp_path.rglob("*.safetensors"))
        count = 1_000_000
        rng = np.random.default_rng(0)
        arrays = {
            "place": np.stack([np.arange(count) * 300, np.full(count, 300)], axis=1),
            "number": np.arange(1, count + 1),
            "ordinal": np.arange(count),
            "text_tokens": rng.integers(10, 300, count).astype(np.int32),
            "kept_tokens": np.full(count, 5, np.int32),
            "num_pictures": np.ones(count, np.int32),
            "sizes": np.column_stack([rng.integers(100, 1500, (count, 2)), np.zeros(count)]).astype(np.int32),
        }
        index._write(target, arrays, index.About(count, count, [], {}))
        del arrays
        code = (
            "import sys, time, resource; from pathlib import Path\n"
            "from model.checkpoint import flavour_processor; from model.config import Flavour\n"
            "from tests.model.corpus.test_files import corpus_of\n"
            "processor = flavour_processor(Flavour.tiny); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "begin = time.process_time(); corpus = corpus_of(processor, Path(sys.argv[1]))\n"
            "print(len(corpus), time.process_time() - begin)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        rows, seconds, mebibytes = map(float, done.stdout.split())
        assert rows == count and len(corpus) == 1
        assert seconds < 3.0 and mebibytes < 300, (seconds, mebibytes)

    def test_a_folder_that_cannot_be_written_is_named(self, tiny, tmp_path):
        path = layouts.jsonl(tmp_path / "a.jsonl", [chat(0)])
        (tmp_path / "taken").write_text("")
        with pytest.raises(ValueError, match=r"data\.loader\.index: expected a folder that can be written"):
            corpus_of(tiny[1], path, index=str(tmp_path / "taken"))


def corpus_of_count(folder: Path, path: Path, checkpoint: Path) -> float:
    from model.checkpoint import load_processor

    return corpus_of(load_processor(checkpoint), path, index=str(folder / "other")).mean_tokens


class TestDamage:
    def test_a_truncated_tar(self, tiny, tmp_path):
        """Wherever it is cut off: the rows before are whole, the last one is bad, and a cut is never silent."""
        members = [
            (f"{n}.{ending}", content)
            for n in range(9)
            for ending, content in (("txt", b"text " * 30), ("png", layouts.picture(n)))
        ]
        content = layouts.tar(tmp_path / "a.tar", members).read_bytes()
        for size in (
            2048 * 3 + 100,
            2048 * 3 + 600,
            2048 * 3 + 1024,
            2048 * 3 + 1100,
            2048 * 3 + 2000,
            2048 * 4,
            2048 * 9,
        ):
            path = tmp_path / f"{size}.tar"
            path.write_bytes(content[:size])
            rows, last = divmod(size - 1, 2048)
            rows -= (
                last < 512
            )  # of the last row not even a header is whole: then it is the one before that may lack members
            with pytest.raises(ValueError, match=rf"{size}\.tar:{rows + 1}: expected a whole tar file.* cut off"):
                corpus_of(tiny[1], path)
            assert len(corpus_of(tiny[1], path, max_bad_rows=1)) == rows
        path.write_bytes(content[:200])
        with pytest.raises(ValueError, match="expected a whole tar file"):
            corpus_of(tiny[1], path, max_bad_rows=9)
        damaged = bytearray(content)
        damaged[2048 * 5 : 2048 * 5 + 200] = b"\xff" * 200
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"expected the header of a member at byte 10240.*make the file anew"):
            corpus_of(tiny[1], path, max_bad_rows=9)

    def test_a_compressed_tar(self, tiny, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes(gzip.compress(layouts.tar(tmp_path / "b.tar", [("a.txt", b"x")]).read_bytes()))
        with pytest.raises(ValueError, match="expected an uncompressed tar file, whose rows can be read in any order"):
            corpus_of(tiny[1], path)

    @pytest.mark.parametrize(
        ("name", "kind", "wanted"),
        [
            ("../../b.txt", tarfile.REGTYPE, "leads out"),
            ("/etc/b.txt", tarfile.REGTYPE, "leads out"),
            ("b.txt", tarfile.SYMTYPE, "a link or a device"),
            ("b.fifo", tarfile.FIFOTYPE, "a link or a device"),
            ("b.exe", tarfile.REGTYPE, "expected the ending of an image"),
            ("b.mp4", tarfile.REGTYPE, "unpack videos"),
        ],
    )
    def test_members_that_make_no_row_are_bad_rows(self, tiny, tmp_path, capsys, name, kind, wanted):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(3):
                info = tarfile.TarInfo(f"{number}.txt")
                info.size = 4
                archive.addfile(info, io.BytesIO(b"text"))
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        assert len(corpus_of(tiny[1], path, max_bad_rows=1)) == 3
        assert wanted in capsys.readouterr().err
        with pytest.raises(ValueError, match=r"a\.tar:4: member"):
            corpus_of(tiny[1], path)

    def test_a_broken_row_group(self, tiny, tmp_path):
        import pyarrow.parquet

        rows = [chat(number, f"{number} " * 20) for number in range(40)]
        path = layouts.parquet(tmp_path / "a.parquet", rows, group=10)
        content = bytearray(path.read_bytes())
        begin = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
        content[begin : begin + 40] = b"\xff" * 40
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet:21: .*expected a whole Parquet file \(row group 2\)"):
            corpus_of(tiny[1], path)
        corpus = corpus_of(tiny[1], path, max_bad_rows=10)
        assert len(corpus) == 30 and len(corpus.bad_rows) == 10
        assert [corpus.place_of(number)[1] for number in (0, 19, 20, 29)] == [1, 20, 31, 40]
        text = tiny[1].tokenizer.decode(corpus.build(20).completions[0])
        assert text.startswith("30 30")

    def test_a_file_that_the_system_cannot_read_is_no_bad_row(self, tiny, tmp_path, monkeypatch):
        import pyarrow.parquet

        def fails(*arguments: object, **named: object) -> None:
            raise OSError(5, "Input/output error")

        path = layouts.parquet(tmp_path / "a.parquet", [chat(number) for number in range(40)], group=10)
        monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", fails)
        with pytest.raises(ValueError, match="Input/output error"):
            corpus_of(tiny[1], path, max_bad_rows=39)
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_bombs_and_long_texts_are_bad_rows(self, tiny, tmp_path, capsys):
        Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
        (tmp_path / "a.png").write_bytes(layouts.picture())
        rows = [{"caption": "x", "image": "a.png"} for _ in range(5)]
        rows += [{"caption": "x", "image": "bomb.png"}, {"caption": "x" * 50_000_000, "image": "a.png"}]
        corpus = corpus_of(tiny[1], layouts.jsonl(tmp_path / "a.jsonl", rows), max_bad_rows=2)
        assert len(corpus) == 5 and len(corpus.bad_rows) == 2
        said = capsys.readouterr().err
        assert "a.jsonl:6" in said and "a.jsonl:7" in said and "pixels" in said

    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            ('{"a": 1}', "expected a list of objects"),
            ('[{"caption": "x"}, {"caption": ', "expected JSON objects up to a closing bracket"),
            ('[{"caption": "x"} "y"', "expected JSON objects up to a closing bracket"),
        ],
    )
    def test_a_json_file_that_is_no_list(self, tiny, tmp_path, content, wanted):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=wanted):
            corpus_of(tiny[1], tmp_path / "a.json")

    def test_paths_that_give_no_file(self, tiny, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "a.csv").write_text("x")
        layouts.jsonl(tmp_path / "a.jsonl", [chat(0)])
        for path, wanted in (
            ("none.jsonl", "expected a file at"),
            ("*.tar", "expected files at"),
            ("empty", "expected files at"),
            ("a.csv", "expected one of .jsonl"),
        ):
            with pytest.raises(ValueError, match=r"data\.sources\.s\.paths") as error:
                corpus_of(tiny[1], tmp_path / path)
            assert wanted in str(error.value)
        with pytest.raises(ValueError, match="expected every file once"):
            corpus_of(tiny[1], tmp_path / "a.jsonl", tmp_path / "*.jsonl")
        (tmp_path / "a.jsonl").write_text("")
        with pytest.raises(ValueError, match="at least one row"):
            corpus_of(tiny[1], tmp_path / "a.jsonl")

    def test_rows_that_are_too_long_are_bad_or_cut(self, tiny, tmp_path, capsys):
        rows = [chat(number, "word " * 100 if number == 3 else "") for number in range(5)]
        rows.append({"messages": [{"role": "user", "content": "q" * 600}, {"role": "assistant", "content": "a"}]})
        path = layouts.jsonl(tmp_path / "a.jsonl", rows)
        refused = corpus_of(tiny[1], path, capacity=120, max_bad_rows=2)
        assert len(refused) == 4
        assert "data.packing.too_long=cut cuts trained text" in capsys.readouterr().err
        cut = corpus_of(tiny[1], path, capacity=120, max_bad_rows=2, too_long=TooLong.cut)
        assert len(cut) == 5 and "beside trained text that can be cut off, found 6" in capsys.readouterr().err
        row = cut.build(3)
        assert row.num_tokens == cut.length(3) == 120

    def test_no_row_that_cannot_be_cut_passes_for_one_that_can(self, tiny, tmp_path):
        """An image in a later turn, and several texts behind one prefix: cutting may take neither."""
        images = [{"bytes": layouts.picture(number), "path": None} for number in range(2)]
        turns = [{"user": f"{n}?", "assistant": "yes " * 30} for n in range(2)]
        path = layouts.parquet(
            tmp_path / "a.parquet",
            [{"images": images, "texts": [{**t, "user": "<image>" + t["user"]} for t in turns]}] * 3,
        )
        documents = layouts.jsonl(tmp_path / "b.jsonl", [{"texts": ["one " * 30, "two " * 30]}] * 3)
        for file, names in ((path, "image"), (documents, "text")):
            whole = corpus_of(tiny[1], file).length(0)
            capacities = range(20, whole + 10, 7)
            found = []
            for capacity in capacities:
                try:
                    corpus = corpus_of(tiny[1], file, capacity=capacity, too_long=TooLong.cut, max_bad_rows=9)
                except ValueError as error:
                    assert "tokens beside trained text" in str(error)
                    found.append(False)
                    continue
                row = corpus.build(0)
                assert row.num_tokens == corpus.length(0) == min(whole, capacity), names
                found.append(True)
            assert found == sorted(found) and found[-1] and not found[0]

    def test_an_image_that_comes_later_mends_the_row(self, tiny, tmp_path, capsys):
        rows = [{"image": f"{number}.png", "caption": "A square."} for number in range(4)]
        path = layouts.jsonl(tmp_path / "a.jsonl", rows)
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(layouts.picture(number))
        processor = tiny[1].with_settings(max_tiles=4)
        before = corpus_of(processor, path, max_bad_rows=1)
        assert len(before) == 3
        (tmp_path / "3.png").write_bytes(layouts.picture(3))
        capsys.readouterr()
        after = corpus_of(processor, path)
        assert len(after) == 4 and "making the index" in capsys.readouterr().err
        assert len(corpus_of(processor, path)) == 4 and "making the index" not in capsys.readouterr().err
        key = "data.sources.s.paths"
        assert before.inputs[key] == after.inputs[key]
        assert before.inputs[f"{key} (usable rows)"].sha256 != after.inputs[f"{key} (usable rows)"].sha256
        (tmp_path / "3.png").write_bytes(layouts.picture(3, size=(300, 90)))
        with pytest.raises(ValueError, match=r"an image of the row has changed.*delete a\.jsonl\.\*\.safetensors"):
            corpus_of(processor, path).build(3)

    def test_equal_files_of_two_folders_have_indices_of_their_own_in_one(self, tiny, tmp_path):
        for name, size in (("a", (40, 40)), ("b", (300, 90))):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").write_bytes(layouts.picture(0, size=size))
            path = layouts.jsonl(tmp_path / name / "a.jsonl", [{"image": "x.png", "caption": "A square."}])
            os.utime(path, (1, 1))
        processor = tiny[1].with_settings(max_tiles=4)
        lengths = [
            corpus_of(processor, tmp_path / name / "a.jsonl", index=str(tmp_path / "i")).length(0) for name in "ab"
        ]
        assert lengths[0] != lengths[1]
        asked = {"instruction_on_new_line": True}
        thinking = layouts.jsonl(tmp_path / "t.jsonl", [{**chat(0, "<think>\nso\n</think>\n2"), "mode": "think"}])
        plain, other = corpus_of(tiny[1], thinking), corpus_of(tiny[1].with_settings(**asked), thinking)
        assert plain.build(0).num_tokens != other.build(0).num_tokens

    def test_blank_lines_are_no_rows(self, tiny, tmp_path, capsys):
        lines = "".join(json.dumps(chat(number)) + "\n\n" for number in range(5)) + "{}\n"
        (tmp_path / "a.jsonl").write_text(lines)
        np.save(tmp_path / "w.npy", np.array([0, 0, 3, 0, 0, 0]))
        source = SourceConfig(paths=[str(tmp_path / "a.jsonl")], row_weights=str(tmp_path / "w.npy"))
        table, loader = TableConfig(max_bad_rows=1), LoaderConfig(workers=0)
        corpus = Corpus("s", source, "", table, loader, tiny[1], DataFolders(), 4096)
        weights = corpus.mixed(1.0).row_weights
        assert weights is not None and weights.tolist() == [0, 0, 3, 0, 0]
        error = capsys.readouterr().err
        assert "a.jsonl:11:" in error and "1 of 6 rows cannot be used" in error

    def test_a_file_that_changes_while_it_is_used(self, tiny, tmp_path):
        path = layouts.jsonl(tmp_path / "a.jsonl", [chat(number, "one") for number in range(5)])
        corpus = corpus_of(tiny[1], path)
        content = path.read_text()
        path.write_text(content.replace("one", "fgh"))  # as many bytes, but more tokens
        tokens = corpus.length(2)
        wanted = rf"a\.jsonl: expected a row of {tokens} tokens at \(.*\), found {tokens + 1}; the file or an image"
        with pytest.raises(ChangedRow, match=wanted):
            corpus.build(2)
        path.write_text(content[:-20])
        assert corpus.build(2).num_tokens == tokens
        with pytest.raises(ValueError, match=r"a\.jsonl: expected \d+ bytes at \d+, found \d+; the file has changed"):
            corpus.build(4)


def test_opening_many_rows_again_takes_no_reading(tiny, tmp_path):
    path = layouts.jsonl(tmp_path / "a.jsonl", [chat(number) for number in range(2000)])
    begin = time.process_time()
    corpus_of(tiny[1], path)
    made = time.process_time() - begin
    begin = time.process_time()
    corpus_of(tiny[1], path)
    assert time.process_time() - begin < made / 4
