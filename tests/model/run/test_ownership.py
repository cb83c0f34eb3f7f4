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

    def test_a_model_with_other_files_beside_it_is_not_replaced(self, tmp_path):
        fill(tmp_path)
        write_folder(tmp_path / "final", {"a": b"1"})
        (tmp_path / "final" / "README.md").write_text("mine")
        for act in (
            lambda: make_run(tmp_path, StartMode.fresh),
            lambda: write_folder(tmp_path / "final", {"a": b"2"}),
        ):
            with pytest.raises(
                ValueError, match=r"expected a new folder, or one that an earlier run wrote, found README"
            ):
                act()
        assert (tmp_path / "final" / "a").read_bytes() == b"1" and (tmp_path / "metrics.jsonl").exists()

    def test_checkpoints_alone_make_a_run(self, tmp_path):
        fill(tmp_path)
        for path in tmp_path.iterdir():
            if path.name != "checkpoints":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ValueError, match=r"other settings: a: 1 in the folder, 2 now"):
            make_run(tmp_path, config="a: 2\n")
        assert make_run(tmp_path).restore(Counter())["step"] == 6
