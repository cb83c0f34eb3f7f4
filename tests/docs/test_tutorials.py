"""The tutorials own-algorithm, resume and cluster: their blocks run as they stand, in their order.

`make smoke` is not run for them: a model of the same size and its data stand where it would have left them.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, tiny_folder, digits_folder) -> Path:
    """A folder as it is behind `make smoke`."""
    for name, target in (
        ("runs/smoke/longcot_sft/final", tiny_folder),
        ("data/digits_smoke", digits_folder),
        ("launch", ROOT / "launch"),
        (".venv", ROOT / ".venv"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    return tmp_path


@pytest.fixture
def shell(place) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(["bash", "-c", text], cwd=place, env=known, capture_output=True, text=True)

    return run


def read(name: str, place: Path) -> list[str]:
    """The blocks of bash of a tutorial that need nothing; those of Python become the files that they name."""
    found = []
    for block in blocks(ROOT / "docs" / "tutorials" / f"{name}.md"):
        if block.language == "python":
            (place / re.findall(r"^# (\S+\.py)$", block.text, re.MULTILINE)[0]).write_text(block.text)
        elif block.language == "bash" and not block.needs:
            found.append(block.text)
    return found


def finished(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def test_an_algorithm_of_your_own(place, shell):
    [command] = read("own-algorithm", place)
    finished(shell(command))
    assert len((place / "runs" / "bounded" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_stopped_run_goes_on(place, shell):
    """SIGTERM, which the first Ctrl-C is like, comes in the second update."""
    [command] = read("resume", place)
    assert shell(f"exec {command}", SAILVL2_FAILPOINT="update:2:term").returncode == 5
    before = len((place / "runs" / "stopped" / "metrics.jsonl").read_text().splitlines())
    assert 0 < before < 6
    finished(shell(command))
    assert len((place / "runs" / "stopped" / "metrics.jsonl").read_text().splitlines()) == 6


def test_several_processes(place, shell):
    commands = read("cluster", place)
    assert len(commands) == 3
    for command in commands:
        finished(shell(command))
    assert (place / "runs" / "sharded" / "final" / "config.json").is_file()
    assert (place / "runs" / "pooled" / "final" / "config.json").is_file()
