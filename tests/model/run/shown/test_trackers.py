"""Trackers: what each of them is told, what becomes of it at a restart, and that none of them stops a run."""

import errno
import json
import sys
import types

import pytest
from PIL import Image

from model.run.config import RunConfig, TrackerName
from model.run.folder import RunFolder
from model.run.shown.history import read_history
from model.run.shown.hosted_tracker import HostedTracker
from model.run.shown.trackers import EventFiles, Sample
from tests.conftest import require_extra
from tests.model.run.counter import Counter

SAMPLE = Sample(
    "p1, sample 0", "How many?", "<script>alert(1)</script>\n# 7", "7", "8", 0.1, [Image.new("RGB", (4, 4))]
)


class Told:
    """A package with wandb's calls, which notes them."""

    def __init__(self, monkeypatch, name: str, key: str | None = "key") -> None:
        self.calls: list[tuple] = []
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(origin="here", name=name)  # type: ignore[assignment]
        module.init = self.init  # type: ignore[attr-defined]
        module.Settings = dict  # type: ignore[attr-defined]
        module.Table = lambda columns, data: ("table", columns, data)  # type: ignore[attr-defined]
        module.Image = lambda image, caption: ("image", image.size, caption)  # type: ignore[attr-defined]
        module.api = types.SimpleNamespace(api_key=key)  # type: ignore[attr-defined]
        settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
        module.setup = lambda: settings  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delenv("WANDB_MODE", raising=False)

    def init(self, **arguments):
        self.calls.append(("init", arguments))
        return self

    def log(self, metrics, step):
        self.calls.append(("log", step, metrics))

    def finish(self):
        self.calls.append(("finish",))


def run_with(folder, *trackers: str) -> RunFolder:
    names = [TrackerName(name) for name in trackers]
    return RunFolder(RunConfig(dir=str(folder), save_every=2, trackers=names), "a: 1\nurl: https://me:secret@host/\n")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_hosted_tracker_is_told_each_step_and_its_samples(tmp_path, monkeypatch, name):
    told = Told(monkeypatch, name)
    with run_with(tmp_path / "quick" / "rl", name) as run:
        run.restore(Counter())
        run.log(1, {"reward": 0.5, "entropy": float("nan")})
        run.show(1, lambda: [SAMPLE])
        run.finish({})
    (_, begun), (_, step, metrics), (_, _, shown), *rest = told.calls
    assert begun["group"] == begun["name"] == "quick/rl"
    assert begun["config"]["url"] == "https://***@host/"  # a password leaves the machine with nobody's knowledge
    assert (step, metrics["reward"]) == (1, 0.5) and "entropy" not in metrics
    assert shown["rollout_0/image_0"] == ("image", (4, 4), "p1, sample 0")
    assert shown["rollouts"][2][0][2] == SAMPLE.completion
    assert rest == [("finish",)]


def test_a_run_that_goes_back_begins_another_run_of_the_tracker_with_all_steps(tmp_path, monkeypatch, capfd):
    told = Told(monkeypatch, "wandb")
    tracker = HostedTracker(TrackerName.wandb, tmp_path, {})
    tracker.write_anew([])
    assert not told.calls  # nothing begins before there is something to tell
    for step in (1, 2, 3):
        tracker.write(step, {"loss": 1.0})
    tracker.write_anew([{"step": n, "loss": 1.0} for n in (1, 2, 3)])
    assert len(told.calls) == 4  # nothing was taken back
    tracker.write_anew([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}])
    assert told.calls[4] == ("finish",) and told.calls[5][1]["name"].endswith(", from step 2")
    assert told.calls[5][1]["group"] == told.calls[0][1]["group"]
    assert [call[1] for call in told.calls[6:]] == [1, 2]
    assert "wandb cannot take back steps" in capfd.readouterr().err


def test_wandb_without_a_key_fails_instead_of_asking_a_person(tmp_path, monkeypatch, capfd):
    Told(monkeypatch, "wandb", key=None)
    with run_with(tmp_path, "wandb") as run:
        run.restore(Counter())
        run.log(1, {"loss": 1.0})
    assert (
        "wandb failed and shows no more of this run, which goes on (RuntimeError: wandb has no key"
        in capfd.readouterr().err
    )


def test_a_tracker_that_fails_says_so_once_and_the_run_and_the_others_go_on(tmp_path, monkeypatch, capfd):
    told = Told(monkeypatch, "wandb")
    told.log = lambda metrics, step: 1 / 0
    with run_with(tmp_path, "wandb", "tensorboard") as run:
        run.restore(Counter())
        for step in (1, 2, 3):
            run.log(step, {"loss": 1.0})
        run.finish({})
    assert capfd.readouterr().err.count("wandb failed") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
    events = [(event["event"], event.get("tracker")) for event in read_history(tmp_path)]
    assert events == [("started", None), ("tracker_failed", "wandb"), ("ended", None)]
    assert "ZeroDivisionError" in read_history(tmp_path)[1]["error"]


def test_a_full_disk_is_the_runs_own_failure(tmp_path, monkeypatch):
    told = Told(monkeypatch, "wandb")

    def full(metrics, step):
        raise OSError(errno.ENOSPC, "full")

    told.log = full
    with run_with(tmp_path, "wandb") as run:
        run.restore(Counter())
        with pytest.raises(RuntimeError, match="no space to write events"):
            run.log(1, {"loss": 1.0})


def test_samples_that_cannot_be_made_cost_the_tracker_and_not_the_run(tmp_path, capfd):
    with run_with(tmp_path, "tensorboard") as run:
        run.restore(Counter())
        run.show(1, lambda: [][0])
        run.log(1, {"loss": 1.0})
    assert capfd.readouterr().err.count("tensorboard failed") == 1
    assert (tmp_path / "metrics.jsonl").read_text()


def test_without_trackers_no_sample_is_made_and_no_event_file(tmp_path):
    with run_with(tmp_path) as run:
        run.restore(Counter())
        run.show(1, lambda: pytest.fail("asked for samples"))
        run.log(1, {"loss": 1.0})
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_at_the_start(monkeypatch, tmp_path, name):
    (tmp_path / name).mkdir()  # trackers leave folders of their own name; one is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(
        ValueError, match=rf"run.trackers: {name}: expected the package .* pip install 'sailvl2-rl\[{name}\]'"
    ):
        RunConfig(dir="x", trackers=[TrackerName(name)])


def test_trackers_are_named_once_and_by_their_names():
    with pytest.raises(ValueError, match=r"run.trackers: expected tensorboard or wandb or trackio, found 'board'"):
        RunConfig(dir="x", trackers=["board"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="expected each once"):
        RunConfig(dir="x", trackers=[TrackerName.tensorboard, TrackerName.tensorboard])


def test_tensorboard_shows_samples_as_plain_text_and_forgets_those_of_steps_that_are_taken_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventFiles(tmp_path)
    for step in (10, 20):
        files.write(step, {"loss": 1.0})
        files.show(step, [SAMPLE])
    files.write_anew([{"step": 10, "loss": 1.0}])
    files.close()
    shown = EventAccumulator(str(tmp_path / "rollouts"))
    shown.Reload()
    assert [event.step for event in shown.Images("rollout 0/image 0")] == [10]
    text = shown.Tensors("rollout 0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(not line or line == "---" or line.startswith("    ") for line in text.split("\n"))


def test_wandb_keeps_an_offline_run(tmp_path, monkeypatch):
    """The real package, without a network and without a key."""
    require_extra("wandb", "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with run_with(tmp_path / "a" / "rl", "wandb") as run:
        run.restore(Counter())
        run.log(1, {"reward": 0.5})
        run.show(1, lambda: [SAMPLE])
        run.log(2, {"reward": 0.6})
        run.finish({})
    (kept,) = (tmp_path / "a" / "rl" / "wandb").glob("offline-run-*")
    assert next(iter(kept.glob("run-*.wandb"))).stat().st_size > 0
    assert list(kept.rglob("*.png")) and list(kept.rglob("*.table.json"))
    assert [event["event"] for event in read_history(tmp_path / "a" / "rl")] == ["started", "ended"]
    assert json.loads((tmp_path / "a" / "rl" / "done.json").read_text()) == {}
