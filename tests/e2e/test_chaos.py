"""A run whose samplers are killed, stopped and made to lie by a schedule, against the same run left alone."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import rollouts.processes
from conf.cli import load_config
from rlhf.train import run_stage
from rollouts.processes import ProcessFleet, ProcessMember

NUM_EVENTS, STEPS = 20, 60


class Schedule:
    """`NUM_EVENTS` of each kind in turn, after seeded numbers of answers that hold completions."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.due = sorted(rng.choice(np.arange(10, 3 * STEPS), NUM_EVENTS, replace=False).tolist())
        self.happened: list[str] = []
        self._count = 0

    def strike(self, member: ProcessMember, groups: list) -> None:
        self._count += 1
        if len(self.happened) == NUM_EVENTS or self._count < self.due[len(self.happened)]:
            return
        kind = ("kill", "hang", "lie")[len(self.happened) % 3]
        self.happened.append(kind)
        if kind == "lie":
            groups[0][1][-1].completion_ids.append(0)
        else:
            os.kill(member.process.pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


@pytest.fixture
def chaos(monkeypatch):
    schedule = Schedule(0)

    class Member(ProcessMember):
        def answers(self):
            found = super().answers()
            for kind, *rest in found:
                if kind == "done" and rest[0]:
                    schedule.strike(self, rest[0])
            return found

    def start(self, number: int) -> ProcessMember:
        member = Member(number, self._buffer.descriptor, "")
        member.call((self._start, self._buffer.places, self._buffer.size, self._buffer.descriptor))
        return member

    monkeypatch.setattr(rollouts.processes.ProcessFleet, "start", start)
    return schedule


def run(folder: Path, checkpoint: Path, prompts: Path, *overrides: str) -> None:
    settings = [f"trainer.max_steps={STEPS}", "trainer.groups_per_step=6", "trainer.mini_batch_size=24"]
    sizes = ["algorithm.group_size=4", "rollouts.max_completion_tokens=16", "trainer.max_draws=12"]
    pool = ["rollouts.pool.workers=3", "rollouts.pool.patience_s=2", "engine.num_threads=1", "run.save_every=30"]
    required = [f"checkpoint={checkpoint}", f"prompts={prompts}", f"run.dir={folder}", "algorithm.group_filter=none"]
    run_stage(*load_config("rlhf", [*required, *settings, *sizes, *pool, *overrides]))


@pytest.mark.slow
def test_twenty_events_leave_the_run_as_it_would_have_been(tiny_folder, digits_folder, tmp_path, request, capsys):
    """With one thread each, completions do not depend on where they are sampled: the model is the same to the bit."""
    prompts = digits_folder / "train.jsonl"
    run(tmp_path / "calm", tiny_folder, prompts)
    schedule = request.getfixturevalue("chaos")
    run(tmp_path / "chaos", tiny_folder, prompts)
    assert schedule.happened == (["kill", "hang", "lie"] * 7)[:NUM_EVENTS]
    assert capsys.readouterr().err.count(" is replaced, ") == NUM_EVENTS
    lines = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("calm", "chaos")]
    assert lines[0] == lines[1]
    for path in sorted((tmp_path / "calm" / "rollouts").glob("*.jsonl")):
        assert path.read_text() == (tmp_path / "chaos" / "rollouts" / path.name).read_text()
    calm, chaos = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("calm", "chaos"))
    assert all(calm[name].equal(chaos[name]) for name in calm)
    metrics = [json.loads(line) for line in (tmp_path / "chaos" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == STEPS


def test_the_fleet_still_starts_its_members_in_one_place():
    """The schedule above replaces `start`; if its signature changes, so must that."""
    assert ProcessFleet.start.__code__.co_varnames[:2] == ("self", "number")
