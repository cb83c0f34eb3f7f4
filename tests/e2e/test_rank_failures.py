"""A rank that fails is named within `engine.patience_s` + 5 s, and no process is left."""

import json
import time
from pathlib import Path

import pytest

from tests.parity.ranks import ends, start

PATIENCE = 3.0
EXIT_CODE = 10


def failed_run(folder: Path, how: str, rank: int = 1) -> tuple[list[int], str, float]:
    """(exit codes, what rank 0 said, seconds from the beginning of the failure to the last end)."""
    job = {"module": "tests.parity.failing_ranks", "engine": "fsdp", "overrides": {"patience_s": PATIENCE}}
    (folder / "job.json").write_text(json.dumps({**job, "how": how, "rank": rank}))
    codes = ends(start(2, ["tests/parity/ranks.py", str(folder)], folder), 60)
    took = time.time() - float((folder / "begins").read_text())
    return codes, (folder / "rank0.txt").read_text(), took


@pytest.mark.parametrize(
    ("how", "cause"),
    [("raises", "ArithmeticError: the loss does not work"), ("memory", "out of memory in micro-batch 2 of 3, of")],
)
def test_rank_0_names_itself(tmp_path, how, cause):
    """Its error is not lost while the others wait for it, and none of them is blamed."""
    codes, said, took = failed_run(tmp_path, how, rank=0)
    last = said.strip().splitlines()[-1]
    assert cause in last and "rank 0" in last and "rank 1 (" not in last, said[-3000:]
    assert codes[0] == EXIT_CODE and took < PATIENCE + 5


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("killed", "was killed or ended without a word"),
        ("raises", "ArithmeticError: the loss does not work"),
        ("stopped", "was stopped by a signal"),
        ("stuck", "is stuck"),
        ("memory", "out of memory in micro-batch 2 of 3, of"),
    ],
)
def test_the_last_line_names_rank_and_cause(tmp_path, how, cause):
    codes, said, took = failed_run(tmp_path, how)
    last = said.strip().splitlines()[-1]
    assert cause in last and "rank 1" in last and "accumulate" in last, said[-3000:]
    assert "the same command" in last.lower()
    assert codes[0] == EXIT_CODE, said[-3000:]
    assert took < PATIENCE + 5
