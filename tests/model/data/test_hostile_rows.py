"""The same row means the same in every format, and a bad one costs one row, within bounded memory and time."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from model.data.chat_rows import ChatReader, ChatRow
from model.data.config import ChatTableConfig
from model.data.media import image_size, open_image
from model.data.media_error import MediaError
from model.data.media_store import MediaStore
from model.data.raw_rows import MAX_TEXT_BYTES, check_text
from model.data.tables import Table
from tests.conftest import require_extra

ROOT = Path(__file__).resolve().parents[3]


def read(path: Path) -> list[ChatRow | str]:
    """Every row of a table, or why it cannot be used."""
    table = Table(path)
    reader = ChatReader(ChatTableConfig(), MediaStore(path.parent / "media"))
    found: list[ChatRow | str] = []
    for ordinal, raw in enumerate(table.rows(), 1):
        try:
            found.append(reader.read(raw, table, ordinal))
        except ValueError as error:
            found.append(str(error))
    return found


def good(rows: list[ChatRow | str]) -> list[str]:
    return [row.id for row in rows if isinstance(row, ChatRow)]


def reasons(rows: list[ChatRow | str]) -> list[str]:
    return [row for row in rows if isinstance(row, str)]


def jsonl(path: Path, *lines: bytes | dict) -> Path:
    path.write_bytes(b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines))
    return path


def row(number: int, **columns) -> dict:
    return {"id": f"r{number}", "question": f"What is {number}+1?", "answer": str(number + 1), **columns}


class TestJsonl:
    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, tmp_path):
        assert good(read(jsonl(tmp_path / "a.jsonl", b"\xef\xbb\xbf", row(0), row(1)))) == ["r0", "r1"]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (
                b'{"id": "b", "question": "\xff", "answer": "1"}\n',
                "expected UTF-8, found: invalid start byte at byte 25",
            ),
            (b'{"id": "b", "question": "\xc3', "expected UTF-8"),
            (b"[" * 100_000 + b"\n", "nested too deeply"),
            (b'{"a":' * 50_000 + b"\n", "nested too deeply"),
            (b'{"id": "b", "answer": ' + b"9" * 5000 + b"}\n", "expected a JSON object, found: Exceeds the limit"),
            (b'{"id": "b", "question": "x", "answer": NaN}\n', "NaN, which JSON does not have"),
            (b'{"id": "b", "question": "x", "answer": 1e999}\n', "the number 1e999, which is too large to be held"),
            (b'{"id": "b", "question": "x", "answer": -Infinity}\n', "-Infinity, which JSON does not have"),
            (b'{"x": [' + b"[]," * 2_000_001 + b"[]]}\n", "at most 2000000 values"),
            (b"\x00" * 50 + b"\n", "expected a JSON object"),
        ],
        ids=["byte", "torn", "lists", "objects", "digits", "nan", "large", "infinity", "values", "zeros"],
    )
    def test_a_line_that_cannot_be_read_costs_one_row(self, tmp_path, line, reason):
        rows = read(jsonl(tmp_path / "a.jsonl", row(0), line if line.endswith(b"\n") else line + b"\n", row(1)))
        assert good(rows) == ["r0", "r1"] and reason in reasons(rows)[0]

    def test_a_row_larger_than_a_row_may_be_is_passed_over(self, tmp_path, monkeypatch):
        monkeypatch.setattr("model.data.jsonl.MAX_ROW_BYTES", 1000)
        path = jsonl(tmp_path / "a.jsonl", row(0), row(1, x="y" * 5000), row(2), row(3, x="y" * 1000))
        assert good(read(path)) == ["r0", "r2"]


@pytest.mark.parametrize("field", ["id", "question", "answer", "note", "nested"])
def test_half_a_character_is_named_by_its_column(tmp_path, field):
    value = {"a": ["x\udc80"]} if field == "nested" else "x\ud83d"
    (reason,) = reasons(read(jsonl(tmp_path / "a.jsonl", row(0), row(1, **{field: value}))))
    assert "expected what UTF-8 can hold, found a lone surrogate" in reason and reason.isascii()


def test_text_is_measured_before_anything_is_made_of_it(tmp_path):
    rows = read(
        jsonl(
            tmp_path / "a.jsonl", row(0), row(1, question="a" * (MAX_TEXT_BYTES + 1)), row(2, note="é" * MAX_TEXT_BYTES)
        )
    )
    assert good(rows) == ["r0"] and all("bytes of text, images apart" in reason for reason in reasons(rows))
    check_text({"a": "a" * (MAX_TEXT_BYTES - 1)})


class TestMediaColumns:
    @pytest.fixture
    def folder(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "a.mp4").write_bytes(b"not looked into here")
        return tmp_path

    def parts(self, folder, **columns):
        (found,) = read(jsonl(folder / "a.jsonl", {"id": "x", "answer": "1", **columns}))
        assert isinstance(found, ChatRow), found
        return found.messages[-1]["content"]

    @pytest.mark.parametrize("column", ["videos", "video"])
    @pytest.mark.parametrize("cell", ["a.mp4", ["a.mp4"], {"path": "a.mp4"}, [{"video": "a.mp4"}]])
    def test_a_video_stands_where_its_place_is(self, folder, column, cell):
        video = {"type": "video", "video": "a.mp4"}
        assert self.parts(folder, question="Look: <video>\nWhat?", **{column: cell}) == [
            {"type": "text", "text": "Look: "}, video, {"type": "text", "text": "What?"},
        ]  # fmt: skip
        assert self.parts(folder, question="What?", **{column: cell}) == [video, {"type": "text", "text": "What?"}]

    def test_images_and_videos_have_places_of_their_own(self, folder):
        found = self.parts(folder, question="<video>then<image>", images=["a.png"], videos=["a.mp4"])
        assert [part["type"] for part in found] == ["video", "text", "image"]

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"question": "<video>?"}, "videos: expected 1 for the places in the text, found 0"),
            ({"question": "<video><video>", "videos": ["a.mp4"]}, "videos: expected 2"),
            ({"question": "?", "videos": ["none.mp4"]}, "none.mp4: expected a file, found none"),
            ({"question": "?", "videos": ["../a.mp4"]}, "expected a path inside"),
            ({"question": "?", "videos": ["x" * 300]}, "expected a file"),
            ({"question": "?", "videos": [{"bytes": "AAAA"}]}, "video: expected the name of a file"),
            ({"question": "?", "videos": [3]}, "video: expected the name of a file"),
            ({"question": "?", "audios": ["a.wav"]}, "audios: expected images and videos only"),
            ({"question": "?", "audio": {"array": [1]}}, "audio: expected images and videos only"),
            (
                {"messages": [{"role": "user", "content": "<video>?"}], "videos": ["a.mp4", "a.mp4"]},
                "videos: expected 1",
            ),
        ],
    )
    def test_media_that_are_not_placed_or_not_there_are_never_left_out_in_silence(self, folder, columns, reason):
        (found,) = reasons(read(jsonl(folder / "a.jsonl", {"id": "x", "answer": "1", **columns})))
        assert reason in found

    def test_empty_columns_are_no_media(self, folder):
        assert self.parts(folder, question="?", videos=[], audios=None, images=[]) == "?"


class TestTsv:
    HEADER = "index\tquestion\tanswer\n"

    def write(self, folder: Path, text: str) -> Path:
        (folder / "a.tsv").write_text(text, newline="")
        return folder / "a.tsv"

    @pytest.mark.parametrize(
        "text",
        [
            'x\t"What\t1\n' + "".join(f"y{n}\tq\t1\n" for n in range(50)),  # never closed
            'x\t"What\t1\ny\tIs "it"\t2\nz\tq\t3\n',
            'x\t"What\t1\ny\t"Is\t2\nz\tq\t3\n',  # closed by another row's mark: the number of cells is right
            'x\t"What\t1\na\tq\t1\nb\tq\t1\ny\t"Is\t2\n',
            'x\tq\t"1\ny\tq\t"2\n',
        ],
    )
    def test_an_open_quotation_mark_never_takes_in_rows_in_silence(self, tmp_path, text):
        with pytest.raises(ValueError, match=r"a\.tsv: .*row 1, line 2: a quotation mark that opens a cell"):
            read(self.write(tmp_path, self.HEADER + text))

    def test_a_cell_of_several_lines_is_one_cell(self, tmp_path):
        rows = read(self.write(tmp_path, self.HEADER + 'a\t"one\ntwo ""quoted""\n\nthree"\t1\nb\t5" wide\t2\n'))
        assert [one.messages[0]["content"] for one in rows if isinstance(one, ChatRow)] == [
            'one\ntwo "quoted"\n\nthree',
            '5" wide',
        ]

    def test_references_to_rows_without_an_image_cost_one_row(self, tmp_path):
        text = "index\tquestion\tanswer\timage\n1\tq\t1\t\n2\tq\t1\t1\n3\tq\t1\t9\n4\tq\t1\t4\n"
        rows = read(self.write(tmp_path, text))
        assert good(rows) == ["1"]
        assert (
            all("or the index of a row that has an image" in reason for reason in reasons(rows))
            and len(reasons(rows)) == 3
        )

    def test_a_column_named_image_need_not_be_in_every_row(self, tmp_path):
        rows = read(self.write(tmp_path, "index\tquestion\timage\tanswer\nshort\n1\tq\t\t1\n"))
        assert good(rows) == ["1"] and "expected 4 cells as the first line has, found 1" in reasons(rows)[0]

    def test_bytes_that_are_no_text_cost_one_row(self, tmp_path):
        path = tmp_path / "a.tsv"
        path.write_bytes(self.HEADER.encode() + b"a\tq\t1\nb\t\xff\t1\nc\t\xc3\xa9\t1\n")
        rows = read(path)
        assert good(rows) == ["a", "c"] and reasons(rows) == ["expected UTF-8, found other bytes in a cell"]

    def test_nul_bytes_and_long_cells_cost_one_row(self, tmp_path, monkeypatch):
        monkeypatch.setattr("model.data.tsv.MAX_ROW_BYTES", 2000)
        rows = read(self.write(tmp_path, self.HEADER + "a\tq\t1\nb\t" + "x" * 5000 + "\t1\nc\tq\t1\n"))
        assert good(rows) == ["a", "c"] and len(reasons(rows)) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.parquet", "folder"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    if name in ("a.parquet", "folder"):
        require_extra("data", "pyarrow")
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        os.mkfifo(path / "b.parquet")
    else:
        os.mkfifo(path)
    with pytest.raises(ValueError, match="is a pipe or a device, not a file"):
        list(Table(path).rows())


class TestParquet:
    @pytest.fixture(autouse=True)
    def arrow(self):
        require_extra("data", "pyarrow")

    def write(self, folder: Path, columns: dict, **options) -> Path:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet", compression="zstd", **options)
        return folder / "a.parquet"

    def columns(self, count: int) -> dict:
        return {"question": [f"{n}+1?" for n in range(count)], "answer": [str(n + 1) for n in range(count)]}

    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize("as_dictionary", [False, True])
    def test_values_that_are_stored_once_are_expanded_row_by_row(self, tmp_path, as_dictionary, nested):
        """200 rows share 20 MB: together they are 4 GB."""
        import pyarrow

        shared = pyarrow.array(["a" * 20_000_000])
        cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 200, pyarrow.int32()), shared)
        if nested:
            cells = pyarrow.ListArray.from_arrays(pyarrow.array(range(201), pyarrow.int32()), cells)
        # Without Arrow's own schema beside it, the column is one of plain texts to every reader.
        path = self.write(tmp_path, {**self.columns(200), "extra": cells}, store_schema=as_dictionary)
        assert path.stat().st_size < 200_000
        script = (
            "from pathlib import Path\n"
            "from model.data.tables import Table\n"
            f"rows = sum(1 for _ in Table(Path({str(path)!r})).rows())\n"
            "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]\n"
            "print(rows, int(peak) // 1024)\n"
        )
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        rows, mib = map(int, done.stdout.split())
        assert rows == 200 and mib < 1024 and time.monotonic() - begin < 60

    def test_a_row_that_expands_beyond_bounds_costs_one_row(self, tmp_path, monkeypatch):
        import pyarrow

        monkeypatch.setattr("model.data.columnar.MAX_ROW_BYTES", 10_000)
        monkeypatch.setattr("model.data.columnar._BYTES_AT_ONCE", 10_000)
        lists = pyarrow.array([["x" * 100], ["x" * 100] * 1000, ["x" * 100]])
        rows = read(self.write(tmp_path, {**self.columns(3), "extra": lists}))
        assert len(good(rows)) == 2 and "extra: expected a row of at most 10000 bytes" in reasons(rows)[0]

    def test_a_list_that_repeats_one_number_for_ever_is_refused(self, tmp_path):
        import numpy as np
        import pyarrow

        values = pyarrow.array(np.zeros(3_000_000, np.int8))
        lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, 3_000_000], pyarrow.int32()), values)
        path = self.write(tmp_path, {**self.columns(1), "extra": lists})
        with pytest.raises(ValueError, match=r"a\.parquet: .*extra.*expected at most 2000000 values a row"):
            read(path)

    @pytest.mark.parametrize("kind", ["string_view", "binary_view", "list_view", "dictionary of lists"])
    def test_types_that_share_values_unseen_are_refused_by_column(self, tmp_path, kind):
        import pyarrow
        import pyarrow.ipc

        if kind == "dictionary of lists":
            cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0]), pyarrow.array([[1, 2]]))
        elif kind == "list_view":
            cells = pyarrow.array([[1], [1]], pyarrow.list_view(pyarrow.int64()))
        else:
            cells = pyarrow.array([b"a", b"b"] if kind == "binary_view" else ["a", "b"], getattr(pyarrow, kind)())
        table = pyarrow.table({**self.columns(2), "extra": cells})
        with (
            pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
        with pytest.raises(ValueError, match=r"a\.arrow: .*column extra: expected plain values, texts or lists, found"):
            read(tmp_path)

    @pytest.mark.parametrize("kind", ["date", "duration", "bytes as text"])
    def test_a_cell_that_python_cannot_hold_costs_one_row(self, tmp_path, kind):
        import pyarrow

        cells = {
            "date": pyarrow.array([0, 2**40], pyarrow.timestamp("s")),
            "duration": pyarrow.array([0, 2**62], pyarrow.duration("s")),
            "bytes as text": pyarrow.array([b"a", b"\xff"]).view(pyarrow.string()),
        }[kind]
        rows = read(self.write(tmp_path, {**self.columns(2), "extra": cells}))
        assert len(good(rows)) == 1 and "extra: expected a value that Python can hold" in reasons(rows)[0]

    def test_missing_answers_are_missing_however_they_are_spelt(self, tmp_path):
        import pyarrow

        answers = pyarrow.array([1.0, float("nan"), float("inf"), None])
        rows = read(self.write(tmp_path, {"question": ["a", "b", "c", "d"], "answer": answers}))
        found = [one for one in rows if isinstance(one, ChatRow)]
        assert [one.reference for one in found] == ["1.0", None, None, None]
        faults = [one.fault for one in found[1:]]
        assert faults[1] == "reference: expected a finite number, found inf"
        assert faults[0] == faults[2] == "reference: expected str, found None"


class TestImages:
    def many_scans(self, scans: int, side: int = 4096) -> bytes:
        """A progressive JPEG whose last scan comes again and again."""
        buffer = io.BytesIO()
        Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True, quality=50)
        data = buffer.getvalue()
        last = data[data.rindex(b"\xff\xda") : -2]
        return data[:-2] + last * scans + b"\xff\xd9"

    def test_an_image_that_takes_for_ever_is_given_up(self, tmp_path, monkeypatch):
        monkeypatch.setattr("model.data.decode.DEADLINE_SECONDS", 2.0)
        (tmp_path / "a.jpg").write_bytes(self.many_scans(4000))
        begin = time.monotonic()
        with pytest.raises(MediaError, match=r"a\.jpg: expected one that is decoded within 2 s"):
            open_image(tmp_path, "a.jpg")
        assert time.monotonic() - begin < 6

    def test_an_image_that_is_decoded_apart_is_the_same(self, tmp_path, monkeypatch):
        picture = Image.effect_noise((64, 48), 80).convert("RGB")
        picture.save(tmp_path / "a.jpg", progressive=True)
        here = open_image(tmp_path, "a.jpg")
        monkeypatch.setattr("model.data.media._MOST_SCANNED", 0)
        assert open_image(tmp_path, "a.jpg").tobytes() == here.tobytes()
        (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:600])
        with pytest.raises(MediaError, match=r"b\.jpg: expected a whole image, found damage"):
            open_image(tmp_path, "b.jpg")

    @pytest.mark.parametrize("turn", [1, 6])
    def test_a_phones_picture_is_its_first_one_upright(self, tmp_path, turn):
        first, second = Image.new("RGB", (64, 48), (200, 20, 20)), Image.new("RGB", (32, 24), (0, 0, 250))
        exif = first.getexif()
        exif[0x0112] = turn
        first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], exif=exif)
        found = open_image(tmp_path, "a.jpg")
        assert found.size == image_size(tmp_path, "a.jpg") == ((64, 48) if turn == 1 else (48, 64))
        assert abs(found.getpixel((5, 5))[0] - 200) < 10
        assert MediaStore(tmp_path / "media").put((tmp_path / "a.jpg").read_bytes()).endswith(".jpeg")

    @pytest.mark.parametrize("kind", ["WEBP", "PNG"])
    def test_an_animation_stays_refused(self, tmp_path, kind):
        frames = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in (0, 200)]
        frames[0].save(tmp_path / "a.png", kind, save_all=True, append_images=frames[1:])
        with pytest.raises(MediaError, match="expected a still image, found 2 frames"):
            open_image(tmp_path, "a.png")
