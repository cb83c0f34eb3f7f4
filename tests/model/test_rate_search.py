"""AdaLRS in supervised runs: what a trial that failed leaves, and what a run with trials writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_model
from model.data.sources import DataFolders
from model.engine.config import AdaLrsConfig, EngineConfig, HeldOutConfig, OptimizerConfig, Schedule
from model.engine.local import LocalEngine
from model.pretrain.config import PretrainConfig, PretrainDataConfig
from model.pretrain.documents import open_documents
from model.pretrain.stage import run_stage
from model.run.config import RunConfig
from model.supervised import cross_entropy, make_train_batch

STEPS = 36
Make = Callable[..., PretrainConfig]


@pytest.fixture
def make(tmp_path, tiny_folder) -> Make:
    """A run of 36 updates whose trials are partly kept and partly rolled back."""
    captions = [{"caption": f"a picture of {number % 3}"} for number in range(12)]
    train, held = tmp_path / "web.jsonl", tmp_path / "held.jsonl"
    for path, rows in ((train, captions), (held, captions[:3])):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(name: str = "run", run: dict | None = None, **changes) -> PretrainConfig:
        given = {
            "checkpoint": str(tiny_folder),
            "max_steps": STEPS,
            "data": PretrainDataConfig(path=str(train), mixture={"web": 4}),
            "optimizer": OptimizerConfig(1e-4, 2, Schedule.cosine, 0.1),
            "engine": EngineConfig(num_threads=1),
            "evaluation": HeldOutConfig(data=str(held), every=5),
            "adalrs": AdaLrsConfig(window=3, begin=0.1, end=0.95),
            "run": RunConfig(**{"dir": str(tmp_path / name), "save_every": 7, **(run or {})}),
        }
        return PretrainConfig(**{**given, **changes})

    return config


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_with_trials_ends_as_if_those_that_failed_had_never_been(make, tmp_path, capsys):
    """Its updates are made again at the scales that stayed, over the same rows: the weights are equal to the bit."""
    config: PretrainConfig = make()
    run_stage(config, "a: 1")
    run, said = tmp_path / "run", capsys.readouterr().out
    trials, metrics = lines(run / "adalrs.jsonl"), lines(run / "metrics.jsonl")
    verdicts = [trial["verdict"] for trial in trials]
    assert {"kept", "rolled_back"} <= {*verdicts}
    assert [line["step"] for line in metrics] == [*range(1, STEPS + 1)]
    assert all(trial["step"] == trial["start"] + 1 for trial in trials)
    assert said.count("adalrs: updates ") == len(trials) and said.count("; rolled back") == verdicts.count(
        "rolled_back"
    )
    extra = sum(
        len(trial["losses_before"]) + len(trial["losses"]) * (trial["verdict"] == "rolled_back") for trial in trials
    )
    assert metrics[-1]["adalrs/extra_updates"] == extra >= 3 * len(trials)
    assert json.loads((run / "done.json").read_text())["steps"] == STEPS
    assert (run / "adalrs.png").read_bytes().startswith(b"\x89PNG")
    model, processor = load_model(Path(config.checkpoint))
    engine = LocalEngine(model, config.engine, config.optimizer, STEPS)
    rows_of_step = open_documents(config.data, processor, config.run.seed, DataFolders())
    for step, line in enumerate(metrics):
        rows = rows_of_step(step)
        batch = make_train_batch(rows, processor)
        engine.accumulate([batch], cross_entropy, float(len(batch.loss_weights)))
        assert engine.step(line["adalrs/rate_scale"]).learning_rate == line["learning_rate"]
    found = dict(load_model(run / "final")[0].named_parameters())
    assert all(torch.equal(found[name], own) for name, own in engine.model.named_parameters())


def test_no_checkpoint_and_no_evaluation_lies_within_a_trial(make, tmp_path):
    """An evaluation that falls due in a trial is made after its last update if that one stays."""
    run_stage(make(run={"keep_checkpoints": 100}), "a: 1")
    run = tmp_path / "run"
    trials = lines(run / "adalrs.jsonl")
    within = {step for trial in trials for step in range(trial["start"] + 1, trial["start"] + len(trial["losses"]))}
    saved = {int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir()}
    evaluated = [line["step"] for line in lines(run / "evaluations.jsonl")]
    assert {trial["start"] for trial in trials} <= saved and saved - within >= {STEPS}
    starts = {trial["start"] for trial in trials if trial["verdict"] == "rolled_back"}
    stayed = [trial for trial in trials if trial["verdict"] != "rolled_back"]
    inside = {step for trial in stayed for step in range(trial["start"] + 1, trial["start"] + len(trial["losses"]))}
    assert not inside & {*evaluated} and not inside & saved and starts <= saved
    assert len(evaluated) == len({*evaluated}) and evaluated[0] == 0 and evaluated[-1] == STEPS
    assert len(evaluated) == 2 + STEPS // 5


def test_checkpoints_that_are_written_in_the_background_are_gone_back_to_alike(make, tmp_path):
    for name, background in (("run", False), ("behind", True)):
        run_stage(make(name, {"save_in_background": background, "keep_checkpoints": 1}), "a: 1")
    found = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines(tmp_path / name / file)]
        for name in ("run", "behind")
        for file in ("metrics.jsonl", "adalrs.jsonl", "evaluations.jsonl")
    ]
    assert found[:3] == found[3:]
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("run", "behind")]
    assert weights[0] == weights[1]


def test_a_damaged_checkpoint_of_a_trial_ends_the_run_with_its_name(make, tmp_path, monkeypatch):
    """The updates of a failed trial must not stay."""
    from model.engine.adalrs import AdaLrs

    observe = AdaLrs.observe

    def spoil(self: AdaLrs, step: int, loss: float | None):
        if self.trial_start is not None:
            newest = max((tmp_path / "run" / "checkpoints").iterdir())
            (newest / "state.json").write_text("{}")
            return observe(self, step, None)
        return observe(self, step, loss)

    monkeypatch.setattr(AdaLrs, "observe", spoil)
    with pytest.raises(ValueError, match=r"resume: no checkpoint in .* is intact: step_00000007"):
        run_stage(make(), "a: 1")


def test_without_a_window_nothing_is_written(make, tmp_path):
    run_stage(make(adalrs=AdaLrsConfig(), max_steps=3), "a: 1")
    assert not list((tmp_path / "run").glob("adalrs*"))
    assert not any(name.startswith("adalrs/") for name in lines(tmp_path / "run" / "metrics.jsonl")[0])


def test_a_run_that_is_too_short_is_refused_before_its_first_update(make, tmp_path):
    with pytest.raises(ValueError, match=r"adalrs\.window: expected at most 2 updates"):
        run_stage(make(max_steps=6), "a: 1")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
