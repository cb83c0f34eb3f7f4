"""Sampling ahead of training: bounded staleness, nothing lost, and a checkpoint that knows no later step."""

import json
import threading
import time
from pathlib import Path

import pytest

from benchmarks.parts.scripted_sampler import ScriptedSampler
from conf.cli import load_config
from model.checkpoint import load_model
from model.interface import Mode
from model.run.interrupt import Interrupted
from rlhf.ahead import AheadCollector
from rlhf.algorithms.config import DapoConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.collect import Collector
from rlhf.config import TrainerConfig
from rlhf.prompts import PromptSet
from rlhf.stage import run_stage
from rollouts.config import RolloutConfig
from tests.rlhf.test_collect import ScriptedRubric
from tests.rlhf.test_train import LengthRubric, rows

LAST = 8


class Loop:
    """A trainer without a model: takes steps, publishes a version after each, notes what it was given."""

    def __init__(self, tiny, prompts: Path, num_ahead: int, seconds: float = 0.02, is_barrier=lambda step: False):
        processor = tiny[1]
        allowed = sorted(set(range(processor.tokenizer.num_entries)) - set(processor.barred_ids))
        self.sampler = ScriptedSampler(allowed, processor.tokenizer.end_id, 6, seconds)
        self.rubric = ScriptedRubric(lambda prompt, sample: sample % 3 == 0 and prompt % 3 > 0)
        config = TrainerConfig(groups_per_step=2, max_draws=12)
        algorithm = build_algorithm(DapoConfig(group_size=3), 6)
        opened = PromptSet(prompts, processor, Mode.think, RolloutConfig())
        inner = Collector(config, opened, self.sampler, self.rubric, processor.tokenizer, algorithm, 0)
        self.collector = AheadCollector(inner, self.sampler, num_ahead, LAST, is_barrier)
        self.version = self.number = 0
        self.training = 0.15  # seconds: long enough for later steps to be sampled
        self.staleness: list[int] = []
        self.lines: list[dict] = []

    def step(self):
        self.number += 1
        collected = self.collector.collect(self.number)
        self.metrics = collected.metrics
        time.sleep(self.training)
        oldest = min(group.policy_version for group in collected.groups)
        self.staleness.append(self.version - oldest)
        self.version += 1
        self.collector.sync(self.version, [])
        self.collector.close(collected, set())
        self.lines += self.collector.ledger.take_closed()
        return collected


@pytest.fixture
def loop(tiny, easy_prompts):
    made = []

    def make(num_ahead: int, **options) -> Loop:
        made.append(Loop(tiny, easy_prompts, num_ahead, **options))
        return made[-1]

    yield make
    for one in made:
        one.collector.close_thread()
    assert not [thread for thread in threading.enumerate() if thread.name == "sampling ahead"]


@pytest.mark.parametrize("num_ahead", [1, 2])
def test_staleness_is_bounded_and_every_draw_is_closed_once(loop, num_ahead):
    one = loop(num_ahead)
    for _ in range(LAST):
        one.step()
    assert max(one.staleness) == num_ahead and one.staleness[0] == 0
    assert one.sampler.version == LAST
    draws = [line["draw"] for line in one.lines]
    assert sorted(draws) == list(range(one.collector.ledger.next_draw)) and len(set(draws)) == len(draws)
    assert not one.collector.ledger.in_flight


def test_the_groups_of_each_step_are_those_of_sampling_in_turn(loop, tiny, easy_prompts):
    """Which draws a step gets does not depend on when they were sampled."""
    ahead, turn = loop(2), Loop(tiny, easy_prompts, 0)
    found = [[group.group_index for group in ahead.step().groups] for _ in range(LAST)]
    assert found == [[group.group_index for group in turn.step().groups] for _ in range(LAST)]
    assert set(turn.staleness) == {0}
    turn.collector.close_thread()


def test_weights_reach_unfinished_completions(loop):
    one = loop(1, seconds=0.4)
    one.step()
    second = one.step()
    runs = {t.rollout.policy_versions for group in second.groups for t in group.trajectories}
    assert any(len(versions) == 2 and [v for _, v in versions] == [0, 1] for versions in runs)


def test_no_step_is_sampled_ahead_across_a_barrier(loop):
    one = loop(2, is_barrier=lambda step: step % 3 == 0)
    for _ in range(LAST):
        one.step()
    assert one.staleness[0] == 0 and one.staleness[3] == 0 and one.staleness[6] == 0
    assert max(one.staleness) == 2


def test_state_holds_nothing_of_later_steps(loop):
    one = loop(2)
    states = []
    for _ in range(4):
        one.step()
        states.append(one.collector.state())
    for state in states:
        assert not state["ledger"]["in_flight"]
        assert state["ledger"]["next_draw"] == state["ledger"]["trained"] + sum(state["ledger"]["dropped"].values())
    assert [state["ledger"]["trained"] for state in states] == [2, 4, 6, 8]


def test_an_error_while_sampling_ahead_comes_with_the_step_that_it_belongs_to(loop):
    one = loop(1)
    score = one.rubric.score
    calls = []

    def fail(inputs):
        calls.append(len(inputs))
        if one.rubric.step == 2:
            raise RuntimeError("the verifier is gone")
        return score(inputs)

    one.rubric.score = fail
    one.step()
    with pytest.raises(RuntimeError, match="the verifier is gone"):
        one.step()


def test_what_check_raises_ends_the_second_thread(loop):
    one = loop(1, seconds=30.0)

    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.collector.collect(1, check)


def test_idle_shares_say_who_waited_for_whom(loop):
    one = loop(1, seconds=0.3)
    one.training = 0.0
    for _ in range(4):
        one.step()
    shares = one.metrics
    assert shares["idle/trainer_share"] > 0.8 and shares["idle/sampler_share"] < 0.2


def run(tiny_folder, prompts, folder, *overrides, rubric=LengthRubric):
    limits = ["trainer.max_steps=6", "trainer.groups_per_step=2", "trainer.max_draws=6", "trainer.mini_batch_size=8"]
    sizes = ["algorithm.group_size=4", "algorithm.overlong.buffer=2", "rollouts.max_completion_tokens=5"]
    other = ["engine.num_threads=1", "run.save_every=3", "rollouts.pool.workers=1"]
    required = [f"checkpoint={tiny_folder}", f"prompts={prompts}", f"run.dir={folder}"]
    run_stage(*load_config("rlhf", ["recipe=quickstart", *required, *limits, *sizes, *other, *overrides]), rubric)


def test_a_run_ahead_trains_saves_and_continues(tiny_folder, easy_prompts, tmp_path, monkeypatch):
    """Stopped in its fourth step by SIGTERM, it goes on from there: every draw is closed once over both parts."""

    class Stopped(LengthRubric):
        calls, killed = 0, 5

    folder = tmp_path / "ahead"
    overrides = ["rollouts.max_staleness=1", "algorithm.correction.rule=token_truncate"]
    with pytest.raises(Interrupted):
        run(tiny_folder, easy_prompts, folder, *overrides, rubric=Stopped)
    run(tiny_folder, easy_prompts, folder, *overrides)
    metrics = rows(folder)
    assert [line["step"] for line in metrics] == list(range(1, 7))
    assert max(line["staleness/max"] for line in metrics) == 1.0
    assert all(0 <= line["idle/trainer_share"] <= 1 for line in metrics)
    ledger = rows(folder, "ledger.jsonl")
    draws = [line["draw"] for line in ledger]
    assert sorted(draws) == list(range(len(draws)))
    load_model(folder / "final")
    assert json.loads((folder / "done.json").read_text())["updates"] == 6


def test_in_turn_is_what_a_run_without_staleness_does(tiny_folder, easy_prompts, tmp_path):
    """k = 0 is the synchronous run to the bit, in whatever process its sampler is."""
    run(tiny_folder, easy_prompts, tmp_path / "zero", "rollouts.max_staleness=0")
    run(tiny_folder, easy_prompts, tmp_path / "sync", "rollouts.pool.placement=trainer")
    for one, other in zip(rows(tmp_path / "zero"), rows(tmp_path / "sync"), strict=True):
        assert measured(one) == measured(other)


def measured(line: dict) -> dict:
    """A step's metrics without times and what only a pool has."""
    return {k: v for k, v in line.items() if not k.startswith(("time/", "pool/")) and "per_second" not in k}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollouts.max_staleness=1", "algorithm=grpo"], "algorithm.correction.rule=none takes no account of that"),
        (["rollouts.max_staleness=1", "trainer.passes=2"], "expected 0, or at least the 2 updates of a step"),
        (
            ["rollouts.max_staleness=1", "rollouts.pool.placement=trainer", "rollouts.pool.workers=1"],
            "expected 0 with rollouts.pool.placement=trainer, found 1",
        ),
    ],
)
def test_what_cannot_run_ahead_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("rlhf", ["recipe=quickstart", "checkpoint=c", "prompts=p", *overrides])
