"""The digits task: disjoint scans, exact answers, right thoughts, and a folder that is whole or not there."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from examples.digits import write as module
from examples.digits.task import Family
from examples.digits.write import main, write

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.01
ANSWERS = {Family.sum: lambda a, b, c, d: a + b + c + d, Family.gap: lambda a, b, c, d: abs(a - b)}
NUM_SHOWN = {Family.sum: 4, Family.gap: 2}
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "data"
    write(out, seed=0, share=SHARE)
    return out


@pytest.fixture(scope="module")
def scans() -> tuple[np.ndarray, np.ndarray]:
    """(all 1,797 scans as they are drawn [N, 16, 16] in 0..1, their digits [N])."""
    data = load_digits()
    drawn = [
        Image.fromarray((scan / 16).astype(np.float32)).resize((SIDE, SIDE), Image.BILINEAR) for scan in data.images
    ]
    return np.stack([np.asarray(image) for image in drawn]), data.target


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cells(folder: Path, name: str) -> np.ndarray:
    """The four scans of an image in reading order [4, 16, 16] in 0..1."""
    image = np.asarray(Image.open(folder / name), np.float32) / 255
    assert image.shape == (2 * SIDE, 2 * SIDE)
    return image.reshape(2, SIDE, 2, SIDE).swapaxes(1, 2).reshape(4, SIDE, SIDE)


def recognise(folder: Path, name: str, scans: np.ndarray) -> list[int]:
    """Which scans an unaugmented image shows; it must show each to the last of its 256 levels."""
    distances = np.abs(cells(folder, name)[:, None] - scans[None]).max((2, 3))
    assert (np.sort(distances)[:, 0] <= 0.5 / 255 + 1e-6).all() and (np.sort(distances)[:, 1] > 0.05).all()
    return distances.argmin(1).tolist()


def recognise_augmented(folder: Path, names: list[str], scans: np.ndarray) -> list[list[int]]:
    """The same through shift, contrast and noise: the best correlation over all shifts by up to 2 pixels."""
    padded = np.pad(scans, ((0, 0), (2, 2), (2, 2)))
    shifts = itertools.product(range(5), repeat=2)
    shifted = np.stack([padded[:, y : y + SIDE, x : x + SIDE] for y, x in shifts], 1).reshape(-1, SIDE * SIDE)
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    images = np.stack([cells(folder, name) for name in names]).reshape(-1, SIDE * SIDE)
    return ((images @ shifted.T).argmax(1) // 25).reshape(-1, 4).tolist()


def image_and_family(row: dict) -> tuple[str, Family]:
    (message,) = row["messages"]
    image, text = message["content"]
    return image["image"], Family(text["text"])


def test_scans_of_the_splits_are_disjoint_and_complete(tmp_path, monkeypatch):
    given = {}

    def spy(folder, split, scans, *rest, **options):
        given[split] = {scan.tobytes() for scan in scans[0]}
        return canvases(folder, split, scans, *rest, **options)

    canvases = module._canvases
    monkeypatch.setattr(module, "_canvases", spy)
    for seed in (0, 1):
        write(tmp_path / str(seed), seed, share=0.002)
        assert given["demonstrations"] == given["train"]
        assert not given["train"] & given["test"] and not given["train"] & given["validation"]
        assert not given["test"] & given["validation"]
        assert (len(given["test"]), len(given["validation"]), len(given["train"])) == (300, 200, 1297)


def test_images_show_scans_of_their_split_and_references_fit_them(folder, scans):
    """From the pixels alone: recognise the scans, read off the digits, work the answer out."""
    drawn, digits = scans
    used: dict[str, set[int]] = {}
    for split in ("validation", "test"):
        records = rows(folder, split)
        assert len(records) == round(module.NUM_EVAL * SHARE)
        for record in records:
            name, family = image_and_family(record)
            shown = recognise(folder, name, drawn)
            used.setdefault(split, set()).update(shown)
            assert record["reference"] == str(ANSWERS[family](*digits[shown].tolist()))
            assert record["family"] == family.name
    records = rows(folder, "train")[:8]
    shown = recognise_augmented(folder, [image_and_family(record)[0] for record in records], drawn)
    used["train"] = set(itertools.chain(*shown))
    for record, indices in zip(records, shown, strict=True):
        assert record["reference"] == str(ANSWERS[image_and_family(record)[1]](*digits[indices].tolist()))
    for one, other in itertools.combinations(used.values(), 2):
        assert not one & other


def test_captions_and_answers_of_pretraining_fit_the_images(folder, scans):
    drawn, digits = scans
    records = rows(folder, "pretrain")
    captions = [record for record in records if record["kind"] == "caption"]
    names = [record["images"][0] for record in captions[:8]]
    for record, indices in zip(captions, recognise_augmented(folder, names, drawn), strict=False):
        assert record["texts"][0] == "".join(map(str, digits[indices]))
    digits_of = {record["images"][0]: [int(c) for c in record["texts"][0]] for record in captions}
    direct = [record for record in records if record["kind"] == "direct"]
    assert len(direct) == len(captions) == 82
    for record in direct:
        value = ANSWERS[Family(record["prefix"])](*digits_of[record["images"][0]])
        assert record["texts"][0] == f"\\boxed{{{value}}}"


def check_steps(steps: str, value: int) -> None:
    """Every equation is true, each goes on from the last, and the last gives the answer. Sums have two digits."""
    results = []
    for equation in steps.split(","):
        left, sign, right, result = re.fullmatch(r"(\d+)([+-])(\d+)=(\d+)", equation).groups()
        assert int(result) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert not results or left == results[-1]
        assert len(result) == (2 if sign == "+" else 1)
        results.append(result)
    assert int(results[-1]) == value


def test_worked_questions_are_right(folder):
    worked = [record for record in rows(folder, "pretrain") if record["kind"] == "worked"]
    assert len(worked) == 164
    num_asked = 0
    for record in worked:
        lead_in, shown = re.fullmatch(r"(\D+)(\d+:)", record["prefix"]).groups()
        family = Family.sum if len(shown) == 5 else Family.gap
        assert len(shown) == NUM_SHOWN[family] + 1
        assert lead_in == family.value or len(lead_in) <= 6
        num_asked += lead_in == family.value
        value = ANSWERS[family](*[int(c) for c in shown[:-1].ljust(4, "0")])
        steps, box = record["texts"][0].removesuffix("}").split("\\boxed{")
        assert box == str(value)
        check_steps(steps, value)
    assert 0.1 < num_asked / len(worked) < 0.4


def test_demonstrations_think_in_two_right_ways(folder, scans):
    drawn, digits = scans
    records = rows(folder, "demonstrations")
    shown = recognise_augmented(folder, [image_and_family(record)[0] for record in records], drawn)
    kinds = set()
    for record, indices in zip(records, shown, strict=True):
        family = image_and_family(record)[1]
        value = ANSWERS[family](*digits[indices].tolist())
        read = "".join(map(str, digits[indices]))[: NUM_SHOWN[family]]
        for completion in record["completions"]:
            thought, box = re.fullmatch(r"<think>(.*)</think>\\boxed\{(\d+)\}", completion).groups()
            reading, colon, steps = thought.partition(":")
            assert (reading, box) == (read, str(value))
            kinds.add(colon)
            if steps:
                check_steps(steps, value)
        assert len(set(record["completions"])) == 2
    assert kinds == {"", ":"}, "terse and full thoughts"


def test_both_families_are_asked_equally_often(folder):
    asked = [image_and_family(record)[1] for record in rows(folder, "train")]
    assert {asked.count(family) for family in Family} == {len(asked) // 2}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    write(tmp_path / "again", seed=0, share=SHARE)
    write(tmp_path / "other", seed=1, share=SHARE)
    first, again, other = (contents(path) for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert not [name for name in first if name.endswith(".png") and first[name] == other[name]]


class TestWholeOrNotAtAll:
    def interrupted(self, monkeypatch, out: Path) -> None:
        """A run that fails at its last file."""
        write_lines = module._write_lines

        def fail(path, records):
            if path.name == "test.jsonl":
                raise OSError("disk full")
            write_lines(path, records)

        with monkeypatch.context() as patch:
            patch.setattr(module, "_write_lines", fail)
            with pytest.raises(OSError, match="disk full"):
                write(out, seed=0, share=SHARE)

    def test_interrupted_run_leaves_no_folder_and_the_next_one_completes(self, folder, tmp_path, monkeypatch):
        self.interrupted(monkeypatch, tmp_path / "data")
        assert not (tmp_path / "data").exists()
        write(tmp_path / "data", seed=0, share=SHARE)
        assert contents(tmp_path / "data") == contents(folder)
        assert {path.name for path in tmp_path.iterdir()} == {"data", ".data.lock"}

    def test_calls_for_one_folder_wait_for_each_other(self, folder, tmp_path):
        """Also one that starts while another fills its staging folder, and one after a call that was killed."""
        (tmp_path / ".data.sailvl2-partial").mkdir()
        command = [sys.executable, "-m", "examples.digits.write", f"out={tmp_path / 'data'}", f"share={SHARE}"]
        calls = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
        said = [call.communicate()[1] for call in calls]
        assert [call.returncode for call in calls] == [0, 0], said
        assert contents(tmp_path / "data") == contents(folder)
        assert {path.name for path in tmp_path.iterdir()} == {"data", ".data.lock"}

    def test_finished_folder_is_left_alone(self, tmp_path):
        write(tmp_path / "data", seed=0, share=0.002)
        (tmp_path / "data" / "train.jsonl").write_text("edited")
        before = contents(tmp_path / "data")
        write(tmp_path / "data", seed=0, share=0.002)
        assert contents(tmp_path / "data") == before

    def test_somebody_elses_files_are_never_deleted(self, tmp_path, capsys):
        (tmp_path / "train.jsonl").write_text("mine")
        assert main([f"out={tmp_path}", "share=0.002"]) == 2
        assert contents(tmp_path) == {"train.jsonl": b"mine"}
        assert f"found {tmp_path} with other files" in capsys.readouterr().err

    def test_empty_folder_is_filled(self, tmp_path):
        assert main([f"out={tmp_path}", "share=0.002"]) == 0
        assert (tmp_path / "READY").exists() and len(rows(tmp_path, "test")) == 1


@pytest.mark.parametrize("argument", ["ot=x", "out", "seed=one", "share=many"])
def test_bad_arguments_are_refused(argument, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([argument]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not list(tmp_path.iterdir())
