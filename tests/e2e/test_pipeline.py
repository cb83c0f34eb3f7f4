"""The whole pipeline in miniature, as the README prints it, and again after it was interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    "name",
    "seconds",
    "accuracy_think",
    "accuracy_think_sampled",
    "accuracy_direct",
    "format_rate",
    "mean_length",
    "num_eval",
}


def command(folder: Path, *extra: str) -> list[str]:
    arguments = ["recipe=quickstart_smoke", f"run.dir={folder / 'run'}", f"data={folder / 'digits'}", *extra]
    arguments.append(f"stages.think_fusion.data.demonstrations={folder / 'digits' / 'demonstrations.jsonl'}")
    return [sys.executable, "-m", "rlhf.pipeline", *arguments]


def launch(arguments: list[str], writes_report: bool = False, **changes) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAILVL2_REPORT": str(int(writes_report))}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A pipeline that was killed with SIGKILL during its second stage and started again by the same command."""
    folder = tmp_path_factory.mktemp("smoke")
    process = subprocess.Popen(command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "run" / "longcot_sft" / "config.yaml").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (folder / "run" / "pretrain" / "done.json").stat().st_mtime_ns
    done = launch(command(folder), writes_report=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "run" / "pretrain" / "done.json").stat().st_mtime_ns == first  # finished stages are not run again
    for stage in ("pretrain", "longcot_sft", "rl", "think_fusion"):
        assert stage in done.stdout
    return folder


def test_summary_and_products(finished):
    run = finished / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["pretrain", "longcot_sft", "rl", "think_fusion"]
    for stage in summary["stages"]:
        assert stage.keys() >= FIELDS and stage["num_eval"] == 8 and stage["seconds"] > 0
    assert summary["seed"] == 0 and 0 < summary["majority_answer_rate"] < 1
    assert summary["total_seconds"] > sum(stage["seconds"] for stage in summary["stages"]) * 0.9
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "ledger.jsonl",
        "rollouts/step_000001.jsonl",
        "checkpoints",
        "done.json",
    ):
        assert (run / "rl" / name).exists(), name
    assert list((run / "rl" / "events").glob("events.out.tfevents.*"))


def test_the_report_holds_all_stages_and_says_that_one_process_was_killed(finished):
    run = finished / "run"
    page = (run / "report.html").read_text()
    index = json.loads(re.findall(r'id="index">(.*?)</script>', page)[0])
    assert set(index["stages"]) == {"pretrain", "longcot_sft", "rl", "think_fusion"}  # answers of evaluations count
    assert set(index["modes"]) == {"training", "think", "think_sampled", "direct"}
    assert page.count("data:image/png;base64,") > 8
    assert not list(run.glob("*/report.html"))  # the pipeline's holds them
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "started", "ended"]
    assert list((run / "rl" / "events" / "rollouts").glob("events.out.tfevents.*.step_00000001"))


def test_stored_rollouts_and_ledger_agree(finished):
    rl = finished / "run" / "rl"
    ledger = [json.loads(line) for line in (rl / "ledger.jsonl").read_text().splitlines()]
    rollouts = [json.loads(line) for file in sorted(rl.glob("rollouts/*")) for line in file.read_text().splitlines()]
    assert [line["draw"] for line in ledger] == list(range(8))
    assert sorted({row["draw"] for row in rollouts}) == list(range(8)) and len(rollouts) == 8 * 8
    assert all(line["end"] == "trained" for line in ledger)


def test_the_export_evaluates_to_what_the_summary_says(finished):
    """Checked from outside, by the documented command."""
    arguments = [f"checkpoint={finished / 'run' / 'export'}", f"prompts={finished / 'digits' / 'test.jsonl'}"]
    arguments += ["num_prompts=8", "output=-"]
    done = launch([sys.executable, "-m", "rlhf.evaluate", *arguments])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    last = json.loads((finished / "run" / "summary.json").read_text())["stages"][-1]
    assert {key: last[key] for key in result} == result
    answers = (finished / "run" / "evaluations" / "think_fusion.answers.jsonl").read_text().splitlines()
    assert len(answers) == 8 * 3


def test_the_lineage_of_the_export_knows_what_the_stages_wrote(finished):
    from rlhf.export.lineage import find_model, lineage_of

    found = lineage_of(find_model(finished / "run"), "float32", [])
    assert [stage.name for stage in found.stages] == ["pretrain", "longcot_sft", "rl", "think_fusion"]
    for stage in found.stages:
        assert stage.steps and stage.seconds and stage.recipe and stage.code and stage.seed == 0
        assert stage.inputs and all(one.sha256 for one in stage.inputs.values())
        assert {one.mode for one in stage.figures} == {"think", "think_sampled", "direct"}
        assert all(one.protocol and one.low is not None and one.num_prompts == 8 for one in stage.figures)
    assert found.stages[0].is_from_nothing and all(stage.start for stage in found.stages[1:])


def test_a_failing_stage_stops_the_pipeline_with_its_exit_code(finished, tmp_path):
    done = launch(command(tmp_path, f"data={finished / 'digits'}", "stages.pretrain.data.path=nowhere.jsonl"))
    assert done.returncode == 2
    assert (
        "expected a JSONL file at nowhere.jsonl" in done.stderr
        and "stage pretrain ended with exit code 2" in done.stderr
    )
    assert not (tmp_path / "run" / "longcot_sft").exists()


def test_a_typo_in_a_later_stage_is_refused_before_anything_runs(tmp_path):
    done = launch(command(tmp_path, "stages.rl.algorithm.group_sise=4"))
    assert done.returncode == 2 and "did you mean 'algorithm.group_size'" in done.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "digits").exists()


def test_readme_commands_for_one_stage(finished, tmp_path):
    """The README's variations of rlhf.train, on the smoke checkpoint and two steps."""
    start = [
        f"checkpoint={finished / 'run' / 'longcot_sft' / 'final'}",
        f"prompts={finished / 'digits' / 'train.jsonl'}",
    ]
    variations = {
        "grpo": "algorithm=grpo",
        "group4": "algorithm.group_size=4",
        "brevity": "reward.functions=[examples/brevity_reward.py:brevity]",
    }
    readme = (ROOT / "README.md").read_text()
    for name, override in variations.items():
        assert f"run.dir=runs/rl_{name} {override}" in readme
        arguments = [*start, f"run.dir={tmp_path / name}", "recipe=quickstart_smoke", override]
        done = launch([sys.executable, "-m", "rlhf.train", *arguments])
        assert done.returncode == 0, done.stderr[-2000:]
    metrics = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in variations
    }
    assert all("kl/reference" in row for row in metrics["grpo"])
    assert all(0 < row["reward/brevity"] < 1 for row in metrics["brevity"])
    plain = json.loads((finished / "run" / "rl" / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["brevity"][0]["reward"] != plain["reward"]
    assert metrics["brevity"][0]["reward/answer"] == plain["reward/answer"]
