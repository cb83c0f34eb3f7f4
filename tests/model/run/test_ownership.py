"""Files that a run did not write are never cut or deleted."""

import shutil

import pytest

from model.run.config import StartMode
from model.run.durable import write_folder
from tests.model.run.counter import Counter, fill, make_run


class TestFoldersOfOthers:
    @pytest.mark.parametrize("start", StartMode)
    def test_a_folder_with_other_files_is_refused_and_left_alone(self, tmp_path, start):
        (tmp_path / "deep" / "other.partial").mkdir(parents=True)
        (tmp_path / "film.mkv.partial").write_text("a download")
        (tmp_path / "notes.jsonl").write_text('{"step": 9}\nmine')
        (tmp_path / "config.yaml").write_text("mine")
        with pytest.raises(
            ValueError, match=r"expected a new or empty folder, or one of a run, which has the file run"
        ):
            make_run(tmp_path, start)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "config.yaml", "deep", "film.mkv.partial", "notes.jsonl",
        ]  # fmt: skip
        assert (tmp_path / "notes.jsonl").read_text() == '{"step": 9}\nmine'

    @pytest.mark.parametrize("start", StartMode)
    def test_files_that_were_put_into_a_run_stay(self, tmp_path, start):
        fill(tmp_path)
        mine = [
            "notes.jsonl",
            "x.partial",
            "rollouts/extra.jsonl",
            "media/cat.png",
            "events/notes",
            "checkpoints/a.txt",
        ]
        for name in mine:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text('{"step": 99}\n')
        make_run(tmp_path, start).restore(Counter())
        assert all((tmp_path / name).read_text() == '{"step": 99}\n' for name in mine)

    @pytest.mark.parametrize("start", StartMode)
    def test_a_model_with_other_files_beside_it_is_refused_at_the_start(self, tmp_path, start):
        fill(tmp_path)
        write_folder(tmp_path / "final", {"a": b"1"})
        (tmp_path / "final" / "README.md").write_text("mine")
        with pytest.raises(ValueError, match=r"expected a new folder, or one that an earlier run wrote, found README"):
            make_run(tmp_path, start)
        assert (tmp_path / "final" / "a").read_bytes() == b"1" and (tmp_path / "metrics.jsonl").exists()

    def test_files_that_come_later_are_set_aside(self, tmp_path, capfd):
        write_folder(tmp_path / "best", {"a": b"1"})
        (tmp_path / "best" / ".DS_Store").write_text("mine")
        write_folder(tmp_path / "best", {"a": b"2"})
        assert (tmp_path / "best" / "a").read_bytes() == b"2"
        assert [path.name for path in (tmp_path / "best.kept").iterdir()] == [".DS_Store"]
        assert ".DS_Store" in capfd.readouterr().err

    def test_a_folder_that_no_run_wrote_is_not_replaced(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        (tmp_path / "link").symlink_to(tmp_path / "mine")
        for name in ("mine", "link"):
            with pytest.raises(ValueError, match=r"expected a new folder|found a file or a link"):
                write_folder(tmp_path / name, {"a": b"2"})
        assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"

    def test_a_kill_between_two_renames_leaves_the_old_folder(self, tmp_path, monkeypatch):
        fill(tmp_path)
        write_folder(tmp_path / "best", {"a": b"1"})
        with monkeypatch.context() as patch:
            patch.setattr("model.run.durable.reach", lambda name, *_: 1 / 0 if name == "save.between_renames" else None)
            with pytest.raises(ZeroDivisionError):
                write_folder(tmp_path / "best", {"a": b"2"})
        assert not (tmp_path / "best").exists()
        make_run(tmp_path).restore(Counter())
        assert (tmp_path / "best" / "a").read_bytes() == b"1" and not list(tmp_path.glob("*partial"))

    def test_a_start_that_was_killed_in_its_first_write_can_be_made_again(self, tmp_path):
        (tmp_path / "run.json.sailvl2-partial").write_text("{")
        make_run(tmp_path).restore(Counter())
        assert not list(tmp_path.glob("*partial"))

    def test_checkpoints_alone_make_a_run(self, tmp_path):
        fill(tmp_path)
        for path in tmp_path.iterdir():
            if path.name != "checkpoints":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ValueError, match=r"other settings: a: 1 in the folder, 2 now"):
            make_run(tmp_path, config="a: 2\n")
        assert make_run(tmp_path).restore(Counter())["step"] == 6
