"""The pre-training path in miniature, as `make base-smoke` runs it: every stage, from random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["start", "vit_warmup", "vit_alignment", "vit_knowledge", "basic", "multitask"]
STAGES += [*(f"sft_phase{number}" for number in (1, 2, 3, 4)), "sft_phase4_again"]


def launch(folder: Path, *extra: str) -> subprocess.CompletedProcess:
    arguments = ["recipe=base_smoke", f"run.dir={folder / 'run'}", f"data={folder / 'data'}", *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf.pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def changed(run: Path, before: str, after: str) -> set[str]:
    """The towers whose weights differ between two stages."""
    old, new = (load_file(run / name / "final" / "model.safetensors") for name in (before, after))
    return {key.split(".")[0] for key, tensor in new.items() if not tensor.equal(old[key])}


@pytest.mark.slow
def test_every_stage_runs_and_a_finished_path_is_left_alone(tmp_path):
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    order = [*STAGES[:6], "probes", *STAGES[6:], "soup"]
    assert [stage["name"] for stage in summary["stages"]] == order
    assert set(summary["accuracy"]) == {"digits", "words", "pictures", "charts"}
    assert all(0 <= accuracy <= 1 for accuracy in summary["accuracy"].values()) and summary["total_seconds"] > 0
    assert "What each stage gave: accuracy of direct answers" in done.stdout
    assert [*summary["probes"]] == ["start", "vit_alignment", "vit_knowledge", "multitask"]
    for figures in summary["probes"].values():
        assert 0 <= figures["top1"] <= 1
        assert all(figures[name] > 0 for name in ("nearest_neighbour", "wasserstein", "mean_distance"))
    assert "What the probes measured" in done.stdout
    merged = next(line for line in done.stdout.splitlines() if line.startswith('{"out"'))
    assert json.loads(merged)["score"] >= max(json.loads(merged)["scores"].values())
    trained = {name: json.loads((run / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in STAGES}
    assert {metrics["step"] for metrics in trained.values()} == {2}
    assert {"loss/captions", "loss/scanned"} <= set(trained["vit_warmup"])
    assert (run / "export" / "model.safetensors").exists()
    assert changed(run, "start", "vit_warmup") == {"mlp1"}
    assert changed(run, "vit_warmup", "vit_alignment") == {"mlp1", "vision_model"}
    assert changed(run, "vit_alignment", "vit_knowledge") == {"mlp1", "vision_model", "language_model"}
    assert changed(run, "vit_knowledge", "basic") == {"mlp1"}
    before = {name: (run / name / "metrics.jsonl").stat().st_mtime_ns for name in STAGES}
    assert launch(tmp_path).returncode == 0
    assert before == {name: (run / name / "metrics.jsonl").stat().st_mtime_ns for name in STAGES}
