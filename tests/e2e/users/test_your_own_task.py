"""docs/your-own-task.md: its blocks run as they are printed, in their order, in an empty folder, and the model learns."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

PAGE = (ROOT / "docs" / "your-own-task.md").read_text(encoding="utf-8")


def blocks() -> Iterator[tuple[str, str]]:
    """(language, text) of every block of the page that is to be run or saved."""
    yield from re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)


def accuracy(result: Path, mode: str) -> float:
    return json.loads(result.read_text())["modes"][mode]["accuracy"]


def test_every_step_has_its_block():
    """If this fails the test below may prove nothing."""
    modules = re.findall(r"-m ([\w.]+)", "".join(text for language, text in blocks() if language == "bash"))
    assert modules == [
        *("model.pretrain.train", "sft.train", "rlhf.evaluate", "rewards.check", "rlhf.train", "rlhf.evaluate"),
        *("rlhf.look", "rlhf.look", "model.chat", "model.export"),
    ]


@pytest.mark.nightly
def test_the_page_runs_as_written_and_the_model_learns(tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = ""
    for language, text in blocks():
        if language == "python":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
            continue
        done = subprocess.run(
            ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, text + done.stdout[-1000:] + done.stderr[-3000:]
        said += done.stdout
    before, after = (tmp_path / "runs" / "dice" / f"after_{name}.json" for name in ("sft", "rl"))
    assert accuracy(before, "think_sampled") > 0.2  # guessing the most common sum is right in one throw of eight
    # Sampled answers are what RL trains. 200 prompts have a standard error of 3.5 points at most.
    assert accuracy(after, "think_sampled") > accuracy(before, "think_sampled") + 0.08
    assert "nothing found" in said and "<think>" in said
    assert (tmp_path / "runs" / "dice" / "export" / "model.safetensors").is_file()
