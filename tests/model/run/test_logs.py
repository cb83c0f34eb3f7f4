"""Lines that are lost from a log are missed."""

import json
import os

import pytest

from model.run.logs import LogsChanged
from tests.model.run.counter import Counter, fill, make_run, verify


class TestLostLines:
    def running(self, folder):
        run = make_run(folder)
        run.restore(Counter())
        for step in (1, 2):
            run.log(step, {"loss": 1.0})
            run.append("ledger.jsonl", step, [{"draw": step}])
        return run

    @pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
    @pytest.mark.parametrize("way", ["removed", "replaced"])
    def test_a_log_that_is_removed_is_written_again_whole(self, tmp_path, capfd, name, way):
        run, path = self.running(tmp_path), tmp_path / name
        path.unlink()
        if way == "replaced":
            path.write_text("not mine\n")
        run.log(3, {"loss": 1.0})
        run.append("ledger.jsonl", 3, [{"draw": 3}])
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
        assert f"{name} was removed or replaced" in capfd.readouterr().err

    def test_a_log_that_is_removed_after_the_last_write_is_noticed_at_the_end(self, tmp_path, capfd):
        run = self.running(tmp_path)
        (tmp_path / "metrics.jsonl").unlink()
        run.finish({})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2

    @pytest.mark.parametrize("content", ["", '{"step": 1}\n', '{"step": 1, "loss": 1.0}\n' * 99])
    def test_a_log_that_is_cut_or_written_to_ends_the_run_after_its_save(self, tmp_path, content):
        run, engine = self.running(tmp_path), Counter()
        with (tmp_path / "metrics.jsonl").open("r+") as file:
            file.truncate()
            file.write(content)
        run.log(3, {"loss": 1.0})
        with pytest.raises(
            LogsChanged, match=r"metrics\.jsonl: expected \d+ bytes, as this run left it, found"
        ) as error:
            run.save(engine, {"step": 3})
        assert error.value.exit_code == 5
        assert verify(tmp_path / "checkpoints" / "step_00000003") == ""

    def test_lines_lost_between_two_starts_are_missed(self, tmp_path, capfd):
        fill(tmp_path)
        for name in ("metrics.jsonl", "ledger.jsonl"):
            (tmp_path / name).unlink()
        assert make_run(tmp_path).restore(Counter())["step"] == 6
        said = capfd.readouterr().err
        assert (
            "metrics.jsonl: expected" in said
            and "ledger.jsonl: expected" in said
            and "found 0: lines are lost, and the run goes on" in said
        )

    @pytest.mark.parametrize("line", ["[1]", "{}", '{"step": "x"}', '{"step": true}', "null", "[" * 100_000, "\x00"])
    def test_lines_that_hold_no_step_are_passed_over(self, tmp_path, line):
        fill(tmp_path)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
        assert make_run(tmp_path).restore(Counter())["step"] == 6
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6

    @pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
    def test_a_folder_or_a_pipe_is_no_log(self, tmp_path, name, make):
        fill(tmp_path)
        (tmp_path / name).unlink()
        make(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: expected a file, found a folder or a pipe"):
            make_run(tmp_path)
