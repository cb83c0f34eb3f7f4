"""The base model's corpora: exact answers, held-out material that training never shows, layouts as they are published."""

import io
import itertools
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from examples.base import charts, glyphs, pictures, task
from examples.base.sample import Sample, Split
from examples.base.task import COLOURS, Family
from examples.base.write import main, write

SHARE = 0.02
HELD_OUT = (Split.validation, Split.test)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base") / "data"
    write(out, seed=0, share=SHARE)
    return out


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def drawn(draw, split: Split, count: int) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [draw(rng, split) for _ in range(count)]


def words(rng: np.random.Generator, split: Split) -> Sample:
    return glyphs.draw_word(rng, split, 0)


def bars(rng: np.random.Generator, split: Split) -> Sample:
    return charts.draw_chart(rng, split, 0)


def bar_heights(sample: Sample) -> dict[str, int]:
    """Colour -> rows of pixels that its bar covers, found by the nearest named colour."""
    pixels = np.asarray(sample.image, int)
    names = [name.split()[0] for name in sample.shown.split(", ")]
    distance = np.stack([np.abs(pixels - np.array(COLOURS[name])).max(2) for name in names])
    nearest = np.where(distance.min(0) <= 30, distance.argmin(0), -1)
    return {name: int((nearest == number).any(1).sum()) for number, name in enumerate(names)}


class TestHeldOut:
    def test_scans_of_the_splits_are_disjoint_and_complete(self):
        for seed in (0, 1):
            splits = [{scan.tobytes() for scan in glyphs.scans_of(split, seed)[0]} for split in Split]
            assert [len(scans) for scans in splits] == [1297, 200, 300]
            assert sum(map(len, splits)) == len(set.union(*splits)) == 1797

    def test_training_never_shows_a_held_out_word(self):
        shown = {sample.shown for sample in drawn(words, Split.train, 1500)}
        asked = {sample.shown for split in HELD_OUT for sample in drawn(words, split, 300)}
        assert not shown & asked and asked <= set(task.WORDS)
        assert len(asked) == task.NUM_TEST_WORDS
        assert {len(text) for text in shown} == {1, 2, 3} and shown & set(task.WORDS) and shown - set(task.WORDS)

    def test_pictures_of_training_and_test_have_no_hue_in_common(self):
        rng = np.random.default_rng(0)
        bands = {split: {int(pictures.hue_of(rng, split)) // 20 for _ in range(300)} for split in Split}
        assert not bands[Split.train] & bands[Split.test] and bands[Split.validation] == bands[Split.test]
        assert bands[Split.train] | bands[Split.test] == set(range(18))

    def test_charts_of_the_splits_show_rows_of_their_own(self):
        rows = [charts.rows_of(150, split, 0).tolist() for split in Split]
        assert [len(found) for found in rows] == [100, 25, 25]
        assert sorted(itertools.chain(*rows)) == list(range(150))
        drawn_from = {split: charts.columns_of(split, 0) for split in Split}
        assert all(len(columns) == 4 + 13 + 10 + 30 for columns in drawn_from.values())


class TestAnswers:
    def test_the_bars_of_a_chart_are_as_high_as_their_answers_say(self):
        """From the pixels alone: a higher level is a higher bar, and levels are evenly spaced to a pixel and a half."""
        for sample in drawn(bars, Split.train, 40):
            answers = dict(sample.questions)
            measured = bar_heights(sample)
            levels = {name: int(answers[task.question_of_height(name)]) for name in measured}
            assert answers[task.HIGHEST] == max(measured, key=measured.__getitem__)
            top = max(levels, key=levels.__getitem__)
            step = measured[top] / levels[top]
            assert all(abs(measured[name] - step * level) <= 0.6 * step + 1.5 for name, level in levels.items())

    def test_every_level_and_every_colour_is_asked(self):
        samples = drawn(bars, Split.test, 200)
        answers = {answer for sample in samples for _, answer in sample.questions}
        assert answers == {*map(str, task.LEVELS), *COLOURS}

    def test_digits_read_as_the_scans_that_are_drawn(self, monkeypatch):
        scans, labels = glyphs.scans_of(Split.test, 0)
        for digit in range(10):
            only = (scans[labels == digit][:1], labels[labels == digit][:1])
            monkeypatch.setattr(glyphs, "_scans", lambda split, seed, only=only: only)
            sample = glyphs.draw_digits(np.random.default_rng(digit), Split.test, 0)
            assert set(sample.shown) == {str(digit)} and sample.questions == [("Which digits are these?", sample.shown)]

    def test_every_named_thing_has_a_shape_of_its_own(self):
        shapes = set()
        for code in pictures.ICONS.values():
            canvas = Image.new("L", (32, 32))
            ImageDraw.Draw(canvas).text((16, 16), chr(code), fill=255, font=pictures.font_of(24), anchor="mm")
            assert np.asarray(canvas).any()
            shapes.add(canvas.tobytes())
        assert len(shapes) == len(pictures.ICONS) == 36


class TestLayouts:
    def test_the_tar_holds_an_image_and_its_caption_side_by_side(self, folder):
        with tarfile.open(folder / "captions.tar") as archive:
            members = archive.getmembers()
            names = [member.name for member in members]
            opened = [archive.extractfile(member) for member in members]
            contents = [file.read() for file in opened if file]
        assert names[:4] == ["000000.png", "000000.txt", "000001.png", "000001.txt"] and len(names) == 2 * 328
        for image, caption in zip(contents[::2], contents[1::2], strict=True):
            assert Image.open(io.BytesIO(image)).size in ((32, 32), (64, 32))
            assert re.fullmatch(r'(Digits|Word|Picture|Bars) "[^"]+"', caption.decode())

    def test_the_parquet_file_has_finevisions_columns(self, folder):
        table = pq.read_table(folder / "questions.parquet").to_pylist()
        assert len(table) == 164 and set(table[0]) == {"images", "texts", "source"}
        assert {row["source"] for row in table} == {family.name for family in Family}
        assert all(set(turn) == {"user", "assistant"} for row in table for turn in row["texts"])
        assert all(Image.open(io.BytesIO(row["images"][0]["bytes"])) for row in table)

    def test_files_name_images_that_are_there(self, folder):
        for name in ("scanned", "instructions", "hard", "frames", "validation", "test"):
            found = re.findall(r"images/[a-z]+/\d+\.png", (folder / f"{name}.jsonl").read_text())
            assert found and all((folder / image).is_file() for image in found)

    def test_texts_hold_what_their_answer_says(self, folder):
        for row in rows(folder, "texts"):
            caption, question = re.fullmatch(r'(\w+ "[^"]+")(.*)', row["prefix"]).groups()
            (answer,) = row["texts"]
            assert answer in caption if question.endswith("?") else (question, answer) == ("", caption)

    def test_hard_rows_show_as_much_as_there_is(self, folder):
        answers = [row["messages"][1]["content"] for row in rows(folder, "hard")]
        assert {len(answer) for answer in answers if answer.isupper()} == {3}
        assert {len(answer) for answer in answers if answer.isdigit()} <= {1, 3}  # 1: the level of a bar

    def test_labelled_images_are_pictures_of_held_out_hues(self, folder):
        labelled = rows(folder, "labelled")
        assert len(labelled) == 29 and {row["label"] for row in labelled} <= {*pictures.ICONS}
        assert all((folder / row["image"]).is_file() for row in labelled)

    def test_frames_ask_for_each_of_two_images(self, folder):
        asked = [row["messages"][0]["content"] for row in rows(folder, "frames")]
        assert all(
            [part["type"] for part in content] == ["text", "image", "text", "image", "text"] for content in asked
        )
        assert {content[-1]["text"] for content in asked} == {task.question_of_frame(1), task.question_of_frame(2)}

    def test_prompts_have_a_reference_and_a_family_each_as_often(self, folder):
        families = [row["family"] for row in rows(folder, "test")]
        assert {families.count(family.name) for family in Family} == {len(families) // len(Family)}
        assert all(row["reference"] and len(row["messages"]) == 1 for row in rows(folder, "test"))

    def test_same_seed_gives_the_same_bytes(self, folder, tmp_path):
        write(tmp_path / "again", seed=0, share=SHARE)
        for path in folder.rglob("*"):
            assert path.is_dir() or path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


@pytest.mark.parametrize("package", ["fontawesomefree", "pyarrow"])
def test_a_missing_package_is_named_and_leaves_no_folder(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    pictures.font_of.cache_clear()
    assert main([f"out={tmp_path / 'data'}", f"share={SHARE}"]) == 2
    assert f"examples.base needs the package {package}: pip install" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("argument", ["ot=x", "share=many", "share=0.0001", "share=99"])
def test_bad_arguments_are_refused(argument, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([argument]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not list(tmp_path.iterdir())
