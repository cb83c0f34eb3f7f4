"""The Thinking pipeline in miniature: every stage runs, and a changed file runs again what depends on it alone."""

import json
import os
import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT

STAGES = [
    *("basics", "longcot_data", "longcot_sft", "rl_prompts", "rl_verifiable", "think_fusion", "hard_prompts"),
    "rl_mixed",
]


@pytest.mark.slow
def test_every_stage_runs_and_a_changed_file_runs_again_its_dependants(tmp_path):
    def launch(*more: str) -> str:
        arguments = ["recipe=thinking_smoke", f"run.dir={tmp_path / 'run'}", f"data={tmp_path / 'data'}", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAILVL2_REPORT": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "rlhf.pipeline", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def ran(said: str) -> list[str]:
        return [name for name in STAGES if f"\n== {name}: python" in said]

    assert ran(launch()) == STAGES
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    made = {stage["name"]: stage["data"] for stage in summary["stages"] if "data" in stage}
    assert made.keys() == {"longcot_data", "rl_prompts", "hard_prompts"}
    assert made["longcot_data"]["dropped"]["duplicate"] > 0  # the rows that come twice
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()

    general = tmp_path / "data" / "general.jsonl"
    general.write_text("".join(general.read_text().splitlines(keepends=True)[1:]))
    assert "stage hard_prompts  " in launch("action=status")
    assert ran(launch()) == ["hard_prompts", "rl_mixed"]
    assert ran(launch()) == []
