"""Stages that make data of data: their settings, what later stages read of them, and how a fresh start clears them."""

import json
from pathlib import Path

import pytest

import rlhf.pipeline
from conf.cli import load_config
from model.run.durable import write_folder
from rlhf.planning.stages import plan
from rlhf.planning.stages_shown import plan_lines

CHOOSE = "{name: chosen, command: rlhf.pass_at_k, from: base, inputs: {prompts: t.jsonl}, overrides: [k=4]}"
RL = "{name: rl, command: rlhf.train, from: base, inputs: {prompts: '@chosen/prompts.jsonl'}}"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of these stages; gives its path."""
    (tmp_path / "data").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "data" / "t.jsonl").write_text("{}\n")

    def write(*stages: str) -> Path:
        path = tmp_path / "mine.yaml"
        listed = "".join(f"  - {stage}\n" for stage in stages)
        path.write_text(
            f"run: {{dir: {tmp_path / 'run'}, seed: 3}}\nbase: {tmp_path / 'base'}\ndata: {tmp_path / 'data'}\n"
            f"num_threads: 1\nstages:\n{listed}"
        )
        return path

    return write


def test_a_maker_gets_its_folder_seed_and_threads_and_a_later_stage_reads_its_rows(recipe, tmp_path):
    config, _ = load_config("pipeline", [f"recipe={recipe(CHOOSE, RL)}"])
    stages, evaluations = plan(config)
    chosen, trained = (stage.config for stage in stages)
    assert (chosen.out, chosen.seed, chosen.num_threads) == (str(tmp_path / "run/chosen"), 3, 1)
    assert (chosen.checkpoint, chosen.k) == (str(tmp_path / "base"), 4)
    assert trained.prompts == str(tmp_path / "run/chosen/prompts.jsonl") and evaluations == {}
    assert not stages[0].writes_model and not stages[0].has_run and stages[0].is_maker
    said = "\n".join(plan_lines(config, stages, evaluations))
    assert "1. chosen: python -m rlhf.pass_at_k prompts=" in said
    assert f"reads     {tmp_path / 'data/t.jsonl'}: there (inputs.prompts)" in said


def test_thinking_data_is_made_by_stages_too(recipe, tmp_path):
    stages = (
        "{name: cot, command: sft.prepare longcot, inputs: {rows: [a.jsonl, b.jsonl]}, overrides: [max_overlap=0.5]}",
        "{name: free, command: sft.prepare free_response, inputs: {prompts: [t.jsonl]}}",
        RL.replace("@chosen", "@free"),
        "{name: mixed, command: sft.prepare fusion, inputs: {rollouts: '@rl/rollouts', "
        "prompts: ['@free/prompts.jsonl'], direct: [d.jsonl]}}",
        "{name: sft, command: sft.train, from: rl, inputs: {data.demonstrations: '@mixed/demonstrations.jsonl'}}",
    )
    planned, _ = plan(load_config("pipeline", [f"recipe={recipe(*stages)}"])[0])
    cot, free, _, mixed, trained = (stage.config for stage in planned)
    assert (cot.rows, cot.max_overlap, cot.seed) == ([str(tmp_path / f"data/{x}.jsonl") for x in "ab"], 0.5, 3)
    assert (free.out, mixed.rollouts) == (str(tmp_path / "run/free"), str(tmp_path / "run/rl/rollouts"))
    assert (mixed.prompts, mixed.seed) == ([str(tmp_path / "run/free/prompts.jsonl")], 3)
    assert trained.data.demonstrations == str(tmp_path / "run/mixed/demonstrations.jsonl")
    assert planned[0].command[:3] == ["-m", "sft.prepare", "longcot"]
    assert [stage.product(tmp_path).name for stage in planned if stage.is_maker] == [
        "demonstrations.jsonl",
        "prompts.jsonl",
        "demonstrations.jsonl",
    ]


def test_a_maker_gives_no_checkpoint_and_keeps_its_folder(recipe):
    for stages, message in (
        ((CHOOSE, RL.replace("from: base", "from: chosen")), r"stages\.rl\.from: .*\(none\), found 'chosen'"),
        ((CHOOSE.replace("k=4", "out=x"),), r"stages\.chosen: out: the pipeline sets it"),
        ((CHOOSE.replace("k=4", "k=5"),), r"stages\.chosen: k: expected a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(load_config("pipeline", [f"recipe={recipe(*stages)}"])[0])


@pytest.fixture
def run(recipe, tmp_path, monkeypatch):
    """Runs a recipe whose processes are replaced by ones that write what such stages leave."""
    started: list[str] = []

    def process(title: str, arguments: list[str], look=None, launcher=()) -> None:
        name = title.removeprefix("stage ")
        started.append(name)
        folder = tmp_path / "run" / name
        if arguments[1] == "rlhf.train":
            write_folder(folder / "final", {"model": b"1"})
            (folder / "run.json").touch()
            (folder / "metrics.jsonl").write_text('{"step": 1, "nll_per_token": 2.0}\n')
            return
        (folder / "media").mkdir(parents=True, exist_ok=True)
        (folder / "media" / f"{'0' * 64}.png").touch()
        (folder / "summary.json").write_text(json.dumps({"kept": 5}))
        (folder / "prompts.jsonl").write_text("{}\n")

    monkeypatch.setattr(rlhf.pipeline, "_run", process)

    def run(*overrides: str, stages: tuple[str, ...] = (CHOOSE, RL)) -> list[str]:
        started.clear()
        config, resolved = load_config("pipeline", [f"recipe={recipe(*stages)}", *overrides])
        rlhf.pipeline.run_pipeline(config, resolved)
        return [*started]

    return run


def test_a_finished_maker_is_not_run_again_and_its_counts_are_in_the_summary(run, tmp_path):
    assert run() == ["chosen", "rl"] and run() == []
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stages"][0]["data"] == {"kept": 5} and "data" not in summary["stages"][1]
    (tmp_path / "run" / "chosen" / "prompts.jsonl").unlink()
    assert run() == ["chosen"], "one whose rows are gone is run again"


def test_a_fresh_start_clears_what_the_maker_wrote_and_nothing_else(run, tmp_path):
    run()
    own = tmp_path / "run" / "chosen"
    (own / "notes.txt").write_text("mine")
    (own / "media" / "mine.png").touch()
    assert run("run.start=fresh", stages=(CHOOSE.replace("chosen", "other"),)) == ["other"]
    assert (own / "prompts.jsonl").exists(), "a folder of another recipe's stage is not touched"
    (own / "samples").mkdir()
    (own / "samples" / "0.jsonl").touch()
    config, _ = load_config("pipeline", [f"recipe={tmp_path / 'mine.yaml'}"])
    stages = plan(load_config("pipeline", [f"recipe={tmp_path / 'mine.yaml'}"])[0])[0]
    rlhf.pipeline._clear(tmp_path / "run", [*stages], [config.base])
    assert not (tmp_path / "run" / "other").exists()
    assert run("run.start=fresh") == ["chosen", "rl"]
    assert sorted(path.name for path in own.iterdir()) == ["media", "notes.txt", "prompts.jsonl", "summary.json"]
    assert (own / "media" / "mine.png").exists() and not (own / "samples").exists()


def test_a_maker_that_failed_or_was_killed_is_run_again(run, tmp_path, monkeypatch):
    process = rlhf.pipeline._run

    def failing(title: str, arguments: list[str], look=None, launcher=()) -> None:
        process(title, arguments)
        raise rlhf.pipeline.StageFailed(title, 2)

    monkeypatch.setattr(rlhf.pipeline, "_run", failing)
    with pytest.raises(rlhf.pipeline.StageFailed, match="stage chosen ended with exit code 2"):
        run()
    monkeypatch.setattr(rlhf.pipeline, "_run", process)
    assert run() == ["chosen", "rl"], "rows without the record of a finished stage may be another command's"
