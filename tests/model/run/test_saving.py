"""Checkpoints in the background: those of the moment at which they began, whole or not there, one at a time."""

import errno
import json
from pathlib import Path

import pytest

from model.run.config import RunConfig
from model.run.durable import OutOfSpace
from model.run.folder import RunFolder
from model.run.interrupt import Interrupted
from model.run.saving import ThreadWriting
from tests.model.run.counter import Counter, verify


def make(folder: Path, **settings) -> RunFolder:
    config = {"dir": str(folder), "save_every": 1, "keep_checkpoints": 2, "save_in_background": True, **settings}
    return RunFolder(RunConfig(**config), "a: 1\n")


def value_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / "value.json").read_text())


def test_what_is_written_is_the_state_at_the_call(tmp_path):
    run, engine = make(tmp_path / "run"), Counter()
    run.restore(engine)
    engine.value = 7
    engine.gate.clear()
    run.save(engine, {"step": 1})
    engine.value = 8
    place = tmp_path / "run" / "checkpoints" / "step_00000001"
    assert not place.exists()
    run.log(1, {"loss": 1.0})
    assert not place.exists()  # the writer is not ready, and the loop did not wait for it
    engine.gate.set()
    run.end_saving()
    assert value_of(place) == 7 and verify(place) == ""
    assert not list((tmp_path / "run" / "checkpoints").glob("*partial"))


def test_a_later_step_publishes_what_is_ready(tmp_path):
    run, engine = make(tmp_path / "run"), Counter()
    run.restore(engine)
    run.save(engine, {"step": 1})
    assert run._saving is not None
    run._saving[0]._writing.wait()
    run.log(2, {"loss": 1.0})
    assert (tmp_path / "run" / "checkpoints" / "step_00000001").exists()


def test_a_stop_waits_for_the_checkpoint_and_adds_the_newest(tmp_path):
    run, engine = make(tmp_path / "run"), Counter()
    run.restore(engine)
    with pytest.raises(Interrupted), run.saved_on_stop(engine, lambda: {"step": 2}):
        run.save(engine, {"step": 1})
        engine.value = 2
        raise Interrupted("SIGTERM came")
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [value_of(folder) for folder in folders] == [0, 2]
    run.__exit__()
    again, other = make(tmp_path / "run"), Counter()
    assert again.restore(other)["step"] == 2 and other.value == 2


def test_a_process_that_dies_meanwhile_leaves_the_last_one(tmp_path):
    """Nothing is published, and the next start deletes what was left."""
    run, engine = make(tmp_path / "run"), Counter()
    run.restore(engine)
    run.save(engine, {"step": 1})
    run.end_saving()
    engine.gate.clear()
    run.save(engine, {"step": 2})
    run.__exit__()  # the thread never ends its work here, as where the process is gone
    again, other = make(tmp_path / "run"), Counter()
    assert again.restore(other)["step"] == 1
    assert not list((tmp_path / "run" / "checkpoints").glob("*partial"))


def test_a_full_disk_is_said_when_the_checkpoint_is_asked_for(tmp_path):
    class Full(Counter):
        def save(self, folder):
            raise OSError(errno.ENOSPC, "No space left on device")

    run, engine = make(tmp_path / "run"), Counter()
    run.restore(engine)
    run.save(engine, {"step": 1})
    run.end_saving()
    engine.save_in_background = lambda folder: ThreadWriting(lambda: Full().save(folder))
    run.save(engine, {"step": 2})
    with pytest.raises(OutOfSpace, match="the checkpoint of step 2"):
        run.end_saving()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("in_background", [False, True])
def test_models_beside_checkpoints_are_written_and_pruned_with_them(tmp_path, in_background):
    """A model holds the weights of its checkpoint, although the checkpoint may appear steps later."""
    run, engine = make(tmp_path / "run", export_checkpoints=True, save_in_background=in_background), Counter()
    run.restore(engine)

    def export(folder: Path) -> None:
        from model.run.durable import write_folder

        write_folder(folder, {"model.txt": str(engine.value).encode()})

    run.exporter = export
    for step in range(1, 5):
        engine.value = step
        run.save(engine, {"step": step})
        engine.value = 100 + step
    run.end_saving()
    exports = tmp_path / "run" / "exports"
    assert {path.name: (path / "model.txt").read_text() for path in exports.iterdir()} == {
        "step_00000003": "3",
        "step_00000004": "4",
    }
