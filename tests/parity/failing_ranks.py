"""Losses with which one rank fails, for `tests/e2e/test_rank_failures.py`."""

import os
import signal
import time
from pathlib import Path

from model.config import Flavour
from tests.parity.engine_cases import Build, Setting, batches, cross_entropy, num_targets, rows


def act(how: str) -> None:
    """What happens to the rank that fails, in the second micro-batch that it works on."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raises":
        raise ArithmeticError("the loss does not work")
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "stuck":
        time.sleep(1000)
    if how == "memory":
        raise MemoryError("can't allocate memory: you tried to allocate 12 bytes")


class FailingLoss:
    """Cross-entropy that goes wrong on one rank."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how, self.calls = rank, how, 0

    def __call__(self, scores, batch):
        self.calls += 1
        if int(os.environ["RANK"]) == self.rank and self.calls == 2:
            act(self.how)
        return cross_entropy(scores, batch)


def run(job: dict, build: Build, folder: Path) -> dict:
    """Say what began, so that the test can measure from there; then train until it fails."""
    engine = build(Setting(Flavour.tiny))
    made = batches(rows(1, Flavour.tiny), 14, engine.num_parts)
    (folder / "begins").write_text(str(time.time()))
    engine.accumulate(made, FailingLoss(job["rank"], job["how"]), num_targets(made))
    engine.step()
    return {}
