"""The notebooks run from top to bottom, in a folder where nothing is, as a checkout without a quickstart would run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def run(notebook: Path, folder: Path) -> str:
    """The output of a notebook's code, as one program in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code_of(notebook)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_plain_and_holds_no_output(notebook):
    document = json.loads(notebook.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            assert not [line for line in cell["source"] if line.startswith(("%", "!"))]  # plain Python


def test_the_library_notebook_runs(tmp_path):
    said = run(ROOT / "examples" / "notebooks" / "library.ipynb", tmp_path)
    assert "a right completion: 1.0" in said and "one half is 0.5: 1.0" in said and "not judged: math:" in said
    assert "think: 0 of 8 right" in said  # the model has learned nothing


@pytest.mark.slow
def test_the_notebook_about_rewards_runs(tmp_path):
    said = run(ROOT / "examples" / "notebooks" / "own_reward.ipynb", tmp_path)
    assert "{'share_of_digits': 0.4545" in said and "\n2 {'reward" in said
    assert (tmp_path / "runs" / "notebook" / "rl" / "final" / "config.json").is_file()


@pytest.mark.nightly
def test_the_notebook_of_a_whole_run_learns(tmp_path):
    """Half of the answers or more come right, of one in four by chance; other CPUs round in another way."""
    said = run(ROOT / "examples" / "notebooks" / "whole_run.ipynb", tmp_path)
    before, after = map(int, re.search(r"right before RL: (\d+) of 32, after: (\d+) of 32", said).groups())
    assert after > before
    assert "think_sampled" in said and (tmp_path / "runs" / "notebook" / "whole" / "test.answers.jsonl").is_file()
