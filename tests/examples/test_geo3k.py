"""examples/geo3k: its three commands as they stand in its README, with the tiny model and rows of the hub's layout."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conf.cli import load_config
from tests.model.data import published

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "examples" / "geo3k" / "README.md"
SMALL = {
    "model.data.convert": [],
    "rlhf.train": [
        *("trainer.max_steps=1", "trainer.groups_per_step=2", "trainer.max_draws=2", "trainer.mini_batch_size=8"),
        *("trainer.passes=1", "algorithm.group_size=4", "algorithm.group_filter=none", "algorithm.overlong.buffer=1"),
        *("rollouts.max_prompt_tokens=96", "rollouts.max_completion_tokens=8", "evaluation.every=1"),
    ],
    "rlhf.evaluate": ["rollouts.max_prompt_tokens=96", "rollouts.max_completion_tokens=8", "num_threads=1"],
}
"""Module -> overrides behind those of the README that make the command small."""


def commands() -> list[list[str]]:
    """The words of each command in a block, behind `python -m`."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.split("python -m ", 1)[1]) for line in lines]


def test_there_are_three_commands_and_they_compose():
    assert [words[0] for words in commands()] == list(SMALL)
    (_, convert), (_, rl), (_, evaluate) = (
        (words, load_config(entry, [word for word in words[1:] if "=" in word] + extra)[0])
        for entry, words, extra in zip(
            ("convert", "rlhf", "evaluate"), commands(), (["dataset=geometry3k"], [], []), strict=True
        )
    )
    assert rl.prompts == f"{convert.out}/train.jsonl" and rl.evaluation.prompts == f"{convert.out}/validation.jsonl"
    assert evaluate.checkpoint == f"{rl.run.dir}/final" and evaluate.prompts == f"{convert.out}/test.jsonl"
    assert evaluate.rollouts == rl.rollouts and evaluate.reward == rl.reward


@pytest.mark.slow
def test_the_way_from_a_hub_folder_to_an_evaluation(tmp_path, tiny_folder):
    published.geometry3k(tmp_path / "downloads" / "geometry3k", repeats=2)
    held_out = tmp_path / "downloads" / "geometry3k" / "data"
    (held_out / "validation-00000-of-00001.parquet").write_bytes(
        (held_out / "test-00000-of-00001.parquet").read_bytes()
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SAIL-VL2-2B").symlink_to(tiny_folder)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for words in commands():
        program = [sys.executable, "-m", *words, *SMALL[words[0]]]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    metrics = [json.loads(line) for line in (tmp_path / "runs" / "geo3k" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 1
    answers = (tmp_path / "runs" / "geo3k" / "test.answers.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in answers} == {"geometry3k-test-1"}
    assert (tmp_path / "runs" / "geo3k" / "test.json").is_file()
