"""Run folders: damaged checkpoints are rejected by name, logs are cut, one owner, one config."""

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from model.run.config import RunConfig, StartMode
from model.run.durable import OutOfSpace, write_folder
from model.run.folder import RunFolder
from model.run.interrupt import Interrupted
from model.run.logs import cut_lines
from model.run.manifest import Digests
from tests.model.run.counter import Counter, fill, make_run, verify


@pytest.mark.parametrize("trials", [range(10), pytest.param(range(10, 300), marks=pytest.mark.nightly)], ids=str)
def test_damaged_checkpoints_fall_back_to_the_newest_intact_one(tmp_path, capfd, trials):
    """Seeded damages of the two newest checkpoints: truncated, flipped, deleted."""
    fill(tmp_path / "master")
    for trial in trials:
        rng = random.Random(trial)
        folder = shutil.copytree(tmp_path / "master", tmp_path / f"run{trial}")
        victims = [folder / "checkpoints" / f"step_{step:08d}" for step in rng.choice([(6,), (6, 4)])]
        for victim in victims:
            file = rng.choice(sorted(victim.iterdir()))
            content = bytearray(file.read_bytes())
            match rng.randrange(3):
                case 0:
                    file.unlink()
                case 1:
                    file.write_bytes(content[: rng.randrange(len(content))])
                case 2:
                    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                    file.write_bytes(content)
        run, engine = make_run(folder), Counter()
        state = run.restore(engine)
        expected = 6 - 2 * len(victims)
        assert (state["step"], engine.value) == (expected, expected)
        assert capfd.readouterr().err.count("checkpoint rejected: step_") == len(victims)
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, expected + 1))
        run._lock.close()


def test_pruning_after_a_fallback_keeps_the_intact_checkpoint(tmp_path):
    """Damaged folders of later steps would otherwise be the newest, and the good ones the oldest."""
    fill(tmp_path, steps=6)
    for step in (4, 6):
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "weights.bin").write_bytes(b"")
    run, engine = make_run(tmp_path), Counter()
    run.config.keep_checkpoints = 1
    assert run.restore(engine)["step"] == 2
    engine.value = 3
    run.save(engine, {"step": 3})
    run._lock.close()
    again = Counter()
    assert make_run(tmp_path).restore(again)["step"] == 3 and again.value == 3
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000003", "step_00000004.rejected", "step_00000006.rejected"]


def test_only_damaged_checkpoints_is_an_error_never_a_new_start(tmp_path):
    fill(tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("[]")
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"no checkpoint .* is intact.*run.start=fresh"):
        make_run(tmp_path).restore(Counter())
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_fresh_start_deletes_the_runs_own_files_only(tmp_path):
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    run = make_run(tmp_path, StartMode.fresh)
    assert run.restore(Counter()) == {"step": 0}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "checkpoints").exists() and (tmp_path / "metrics.jsonl").read_text() == ""


def test_old_checkpoints_are_pruned_newest_stay(tmp_path):
    fill(tmp_path, steps=12)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step_{s:08d}" for s in (8, 10, 12)]


def test_another_process_or_another_config_is_refused(tmp_path):
    held = make_run(tmp_path)
    with pytest.raises(ValueError, match="in use by another process"):
        make_run(tmp_path)
    held._lock.close()
    make_run(tmp_path, config="a: 3\n")._lock.close()  # no run began here
    held = make_run(tmp_path, config="a: 3\n")
    held.restore(Counter())
    held.log(1, {"loss": 1.0})
    held.__exit__()
    with pytest.raises(ValueError, match=r"other settings: a: 3 in the folder, 2 now\. .*run\.start=fresh"):
        make_run(tmp_path, config="a: 2\n")
    make_run(tmp_path, StartMode.fresh, config="a: 2\n")._lock.close()


def test_events_hold_exactly_the_kept_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(tmp_path, steps=5)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000005")
    run, engine = make_run(tmp_path), Counter()
    assert run.restore(engine)["step"] == 4
    run.log(5, {"loss": 0.5})
    run.finish({})
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.3333),
        (4, 0.25),
        (5, 0.5),
    ]


def test_cut_lines_drops_later_steps_and_a_torn_end(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "to')
    cut_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_write_folder_replaces_whole_folders_and_verifies(tmp_path):
    folder = tmp_path / "x"
    write_folder(folder, {"a": b"1", "b": b"2"})
    write_folder(folder, {"a": b"3"})
    assert verify(folder) == "" and not (folder / "b").exists()
    (folder / "a").write_bytes(b"4")
    assert "differ from the checksum" in verify(folder)
    assert "manifest.json is missing or unreadable" in verify(tmp_path / "y")


def test_checkpoints_that_are_gone_are_an_error_never_a_new_start(tmp_path):
    fill(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"reaches step 6, but .*checkpoints holds no checkpoint; .*run\.start=fresh"):
        make_run(tmp_path).restore(Counter())


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    run = make_run(tmp_path)
    run.restore(Counter())
    run.append("evaluations.jsonl", 0, [{"accuracy": 0.5}])
    for step in (1, 2):  # killed between the log of step 2 and its save
        run.log(step, {"loss": 1.0})
    run._lock.close()
    assert make_run(tmp_path).restore(Counter()) == {"step": 0}
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "evaluations.jsonl").read_text() == ""


def test_numbers_that_json_does_not_have_are_written_as_null(tmp_path):
    run = make_run(tmp_path)
    run.restore(Counter())
    run.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "reward": 0.5})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (row["loss"], row["grad_norm"], row["reward"]) == (None, None, 0.5)


class TestStops:
    def start(self, folder):
        run, engine = make_run(folder), Counter()
        run.restore(engine)
        return run, engine

    def test_sigterm_saves_the_last_whole_step(self, tmp_path):
        run, engine = self.start(tmp_path)
        before = signal.getsignal(signal.SIGTERM)
        state = {"step": 5}
        engine.value = 5
        with pytest.raises(Interrupted) as stop, run.saved_on_stop(engine, lambda: state) as asked:
            asked.check()
            os.kill(os.getpid(), signal.SIGTERM)
            asked.check()
        assert stop.value.exit_code == 5 and signal.getsignal(signal.SIGTERM) is before
        run._lock.close()
        again = Counter()
        assert make_run(tmp_path).restore(again)["step"] == 5 and again.value == 5

    def test_other_errors_save_nothing(self, tmp_path):
        run, engine = self.start(tmp_path)
        with pytest.raises(ZeroDivisionError), run.saved_on_stop(engine, lambda: {"step": 5}):
            _ = 1 / 0
        assert not (tmp_path / "checkpoints").exists()

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_is_said_and_the_last_good_checkpoint_stays(self, tmp_path, monkeypatch, code):
        run, engine = self.start(tmp_path)
        run.save(engine, {"step": 2})
        written = os.fsync

        def full(descriptor: int) -> None:
            if "partial" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(code, os.strerror(code))
            written(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            OutOfSpace, match=r"no space to write the checkpoint of step 4 .*newest .* is step_00000002"
        ):
            run.save(engine, {"step": 4})
        monkeypatch.undo()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
        assert verify(tmp_path / "checkpoints" / "step_00000002") == ""
        run._lock.close()
        assert make_run(tmp_path).restore(Counter())["step"] == 2

    def test_a_full_disk_under_a_model_is_said_and_leaves_no_half_of_it(self, tmp_path):
        run, _ = self.start(tmp_path)

        def fill(staging: Path) -> Digests:
            raise OSError(errno.ENOSPC, "full")

        with (
            pytest.raises(OutOfSpace, match=r"no space to write best .* without run\.start=fresh"),
            run.space_for("best"),
        ):
            write_folder(tmp_path / "best", {}, fill)
        assert not list(tmp_path.glob("best*"))

    def test_a_full_disk_under_the_logs_is_said_too(self, tmp_path):
        run, _ = make_run(tmp_path), Counter()
        (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
        with pytest.raises(OutOfSpace, match=r"no space to write ledger\.jsonl .* newest checkpoint is none"):
            run.append("ledger.jsonl", 1, [{"draw": 0}])


def test_a_manifest_that_leaves_files_out_rejects_its_checkpoint(tmp_path, capfd):
    fill(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000006"
    (newest / "manifest.json").write_text("{}")
    engine = Counter()
    assert make_run(tmp_path).restore(engine)["step"] == 4 and engine.value == 4
    assert "manifest.json does not list state.json" in capfd.readouterr().err


def test_a_manifest_that_lists_the_state_alone_rejects_its_checkpoint(tmp_path, capfd):
    fill(tmp_path)
    file = tmp_path / "checkpoints" / "step_00000006" / "manifest.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps({"state.json": entries["state.json"]}))
    engine = Counter()
    assert make_run(tmp_path).restore(engine)["step"] == 4 and engine.value == 4
    assert "manifest.json does not list value.json, weights.bin" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["../state.json", "/etc/passwd", "a/b", "", "manifest.json"])
def test_a_manifest_names_files_of_its_own_folder_only(tmp_path, name):
    write_folder(tmp_path / "x", {"a": b"1"})
    entries = json.loads((tmp_path / "x" / "manifest.json").read_text())
    (tmp_path / "x" / "manifest.json").write_text(json.dumps({**entries, name: entries["a"]}))
    assert "expected names of files in this folder" in verify(tmp_path / "x")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"a": 1}', '{"a": {"bytes": "x", "sha256": 1}}', "\ud800"])
def test_a_manifest_that_cannot_be_read_is_damage_never_a_traceback(tmp_path, content):
    write_folder(tmp_path / "x", {"a": b"1"})
    (tmp_path / "x" / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert "manifest.json is missing or unreadable" in verify(tmp_path / "x")


def test_what_else_lies_in_a_checkpoint_is_neither_opened_nor_deleted(tmp_path, capfd):
    fill(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000006"
    (newest / ".ipynb_checkpoints").mkdir()
    os.mkfifo(newest / "pipe")
    (tmp_path / "checkpoints" / "step_00000002" / "notes.txt").write_text("mine")
    run, engine = make_run(tmp_path), Counter()
    assert run.restore(engine)["step"] == 6
    engine.value = 8
    run.save(engine, {"step": 8})  # the oldest is pruned
    kept = tmp_path / "checkpoints" / "step_00000002.kept"
    assert [path.name for path in kept.iterdir()] == ["notes.txt"] and "notes.txt" in capfd.readouterr().err


class TestMoreSteps:
    """A run may be given more steps; another end is another run where the learning rates depend on it."""

    @staticmethod
    def settings(steps: int, schedule: str = "constant") -> str:
        return f"max_steps: {steps}\noptimizer: {{schedule: {schedule}}}\n"

    def done(self, folder, steps: int, schedule: str = "constant", extend: bool = False) -> list[int]:
        """Run to the end as a command would; the steps that were taken."""
        taken = []
        config = RunConfig(dir=str(folder), save_every=2, extend=extend)
        with RunFolder(config, self.settings(steps, schedule)) as run:
            if run.already_complete(dict):
                return []
            run.declare({})
            engine = Counter()
            for step in range(run.restore(engine)["step"] + 1, steps + 1):
                engine.value = step
                taken.append(step)
                run.log(step, {"loss": 1.0})
                if run.is_due(step, steps):
                    run.save(engine, {"step": step})
            write_folder(run.final_folder, {"value": str(engine.value).encode()})
            run.finish({"steps": steps})
        return taken

    def test_a_finished_run_goes_on_where_it_ended(self, tmp_path, capsys):
        assert self.done(tmp_path, 3) == [1, 2, 3]
        assert self.done(tmp_path, 3) == []
        assert self.done(tmp_path, 5) == [4, 5] and "goes on: max_steps 3 -> 5" in capsys.readouterr().out
        assert (tmp_path / "final" / "value").read_text() == "5"
        assert json.loads((tmp_path / "done.json").read_text()) == {"steps": 5}
        assert self.done(tmp_path, 5) == []

    def test_fewer_steps_are_another_run(self, tmp_path):
        self.done(tmp_path, 3)
        with pytest.raises(ValueError, match="other settings: max_steps: 3 in the folder, 2 now"):
            self.done(tmp_path, 2)

    def test_a_schedule_that_ends_needs_the_explicit_word(self, tmp_path):
        self.done(tmp_path, 3, "cosine")
        with pytest.raises(ValueError, match=r"max_steps: optimizer\.schedule=cosine .* for 3, found 5; run\.extend"):
            self.done(tmp_path, 5, "cosine")
        assert (tmp_path / "done.json").exists()
        assert self.done(tmp_path, 5, "cosine", extend=True) == [4, 5]


class TestRefusedRuns:
    @pytest.mark.parametrize("is_there", [False, True], ids=["new", "an empty folder that was there"])
    def test_leave_nothing(self, tmp_path, is_there):
        if is_there:
            (tmp_path / "run").mkdir()
        with pytest.raises(ValueError, match="wrong data"), make_run(tmp_path / "run") as run:
            (run.folder / "media").mkdir()
            (run.folder / "media" / f"{'0' * 64}.png").write_bytes(b"x")
            raise ValueError("wrong data")
        assert list(tmp_path.iterdir()) == []

    def test_leave_the_list_of_bad_rows_which_the_message_names(self, tmp_path):
        for _ in range(2):
            with pytest.raises(ValueError, match="bad rows"), make_run(tmp_path / "run") as run:
                (run.folder / "bad_rows.jsonl").write_text("{}\n")
                raise ValueError("bad rows")
        assert (tmp_path / "run" / "bad_rows.jsonl").read_text() == "{}\n"
        assert not (tmp_path / "run" / "config.yaml").exists()

    def test_leave_what_was_there(self, tmp_path):
        fill(tmp_path / "run", steps=2)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="later"), make_run(tmp_path / "run"):
            raise ValueError("later")
        assert sorted(tmp_path.rglob("*")) == before
