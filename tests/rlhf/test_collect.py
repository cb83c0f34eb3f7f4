"""Collecting groups: refill, budgets, surplus, reasons, and a ledger whose sums match."""

import dataclasses
import json
import math
import threading
import time
from pathlib import Path

import pytest
import torch

from model.interface import Mode
from rewards.config import RewardConfig
from rewards.result import RewardResult, Status
from rewards.rubric import Rubric
from rlhf.algorithms.config import Correction, CorrectionConfig, DapoConfig, GrpoConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.collect import BudgetExhausted, Collector
from rlhf.config import BudgetEnd, Curriculum, KeepSurplus, RlConfig, TrainerConfig
from rlhf.metrics import LossTotals, step_metrics, stored_rollouts
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.weights.sync import fill_worker

SAMPLER = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=4)


class ScriptedRubric(Rubric):
    """Correctness by rule: `rule(prompt number, sample number)` is True, False or None (unscorable)."""

    def __init__(self, rule) -> None:
        super().__init__(RewardConfig())
        self.rule = rule
        self.seen: dict[str, int] = {}

    def score(self, inputs):
        results = []
        for item in inputs:
            index = self.seen[item.prompt_id] = self.seen.get(item.prompt_id, -1) + 1
            verdict = self.rule(int(item.prompt_id[1:]), index)
            if verdict is None:
                results.append(RewardResult(None, {}, Status.unscorable, "scripted"))
            else:
                results.append(RewardResult(float(verdict), {"answer": float(verdict), "format": 1.0}))
        return results


@pytest.fixture
def collector(tiny, easy_prompts: Path):
    def make(rule, num_groups=4, max_draws=12, algorithm=None, **settings) -> Collector:
        prompts = PromptSet(easy_prompts, tiny[1], Mode.think, RolloutConfig())
        worker = fill_worker(EmbeddedWorker(*tiny, SAMPLER, 0), tiny[0])
        config = TrainerConfig(groups_per_step=num_groups, max_draws=max_draws, **settings)
        algorithm = algorithm or build_algorithm(DapoConfig(group_size=4), 4)
        return Collector(config, prompts, worker, ScriptedRubric(rule), tiny[1].tokenizer, algorithm, 0)

    return make


def one_step(collector: Collector):
    """Collect, and book what is trained as the loop does after its updates."""
    collected = collector.collect(1)
    collector.close(collected, set())
    return collected, collector.ledger.take_closed()


@pytest.fixture
def gather(collector):
    """One step without kept groups: every draw of it is closed."""

    def run(rule, num_groups=4, max_draws=12, algorithm=None, useful_share=1.0):
        one = collector(rule, num_groups, max_draws, algorithm)
        one.ledger.useful_share = useful_share
        collected, lines = one_step(one)
        assert [line["draw"] for line in lines] == list(range(one.ledger.next_draw))
        assert not one.ledger.in_flight
        return collected, one, lines

    return run


def test_mixed_groups_need_no_refill(gather):
    collected, one, lines = gather(lambda prompt, sample: sample % 2 == 0)
    assert (len(collected.groups), len(collected.dropped), one.ledger.next_draw) == (4, 0, 4)
    assert {line["end"] for line in lines} == {"trained"}


def test_a_step_says_how_far_it_is_and_whom_it_waits_for(collector, monkeypatch):
    monkeypatch.setattr("rlhf.collect.SHOWN_WAIT", 0.0)
    one = collector(lambda prompt, sample: sample % 2 == 0)
    score, shown = one._rubric.score, []
    one._rubric.score = lambda inputs: (time.sleep(0.4), score(inputs))[1]  # longer than a look at the samplers
    one.show = shown.append
    collected = one.collect(7)
    assert "step 7: 16 of 16 completions sampled, 0 scored; waiting for the rewards for 0 s" in shown
    assert collected.metrics["time/rewards_wait"] > 0 and collected.metrics["time/sampling"] > 0


def test_dead_groups_are_refilled_and_named(gather):
    """Even prompts are all right, prompts 1, 5, 9 all wrong, the others mixed."""

    def rule(prompt: int, sample: int) -> bool:
        return prompt % 2 == 0 or (prompt % 4 == 3 and sample == 0)

    collected, one, lines = gather(rule, num_groups=3, max_draws=12)
    assert len(collected.groups) == 3
    assert all(int(group.prompt.id[1:]) % 4 == 3 for group in collected.groups)
    reasons = {reason for _, reason in collected.dropped}
    assert reasons <= {"all_right", "all_wrong", "surplus"} and "all_right" in reasons
    ledger = one.ledger
    assert ledger.trained + sum(ledger.dropped.values()) == ledger.next_draw == len(lines)
    assert len({line["prompt_id"] for line in lines}) == len(lines)  # one epoch never repeats a prompt


def test_the_budget_ends_it(gather):
    for rule, reason in (
        (lambda p, s: True, "all_right"),
        (lambda p, s: False, "all_wrong"),
        (lambda p, s: None, "unscorable"),
    ):
        collected, one, _ = gather(rule, num_groups=4, max_draws=10)
        assert (len(collected.groups), one.ledger.next_draw) == (0, 10)
        assert one.ledger.dropped == {reason: 10}
        metrics = step_metrics(collected, LossTotals(), one.ledger)
        assert metrics[f"dead_share/{reason}"] == 1.0
        assert (
            metrics["groups/dead_share"] == 1.0 and metrics[f"dropped/{reason}"] == 10.0 and metrics["updates"] == 0.0
        )


def test_the_next_step_asks_for_more_at_once_and_drops_the_surplus(gather):
    collected, one, _ = gather(lambda p, s: s == 0, num_groups=3, max_draws=12, useful_share=0.5)
    ledger = one.ledger
    assert (len(collected.groups), ledger.dropped, ledger.useful_share) == (3, {"surplus": 3}, 1.0)
    assert [group.group_index for group in collected.groups] == [0, 1, 2]


def test_unscorable_rollouts_are_counted_not_scored(gather, tiny):
    collected, one, _ = gather(lambda p, s: None if s == 3 else s == 0)
    metrics = step_metrics(collected, LossTotals(), one.ledger)
    assert metrics["unscorable_share"] == 0.25
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    stored = stored_rollouts(collected, tiny[1].tokenizer, Path("run"))
    assert len(stored) == 16
    assert {row["status"] for row in stored if row["sample_index"] == 3} == {"unscorable"}
    assert all(row["reward"] is None for row in stored if row["sample_index"] == 3)


def test_grpo_trains_dead_groups_with_zero_advantage(gather):
    algorithm = build_algorithm(GrpoConfig(group_size=4), 4)
    collected, one, _ = gather(lambda p, s: True, algorithm=algorithm)
    assert (len(collected.groups), one.ledger.next_draw) == (4, 4)
    groups = algorithm.assign_advantages(collected.groups)
    assert {t.advantage for g in groups for t in g.trajectories} == {0.0}


class TestWhenTheBudgetEnds:
    """Prompts 3, 7 and 11 are useful; a step wants four groups and may draw the twelve prompts once."""

    @staticmethod
    def rule(prompt: int, sample: int) -> bool:
        return prompt % 2 == 0 or (prompt % 4 == 3 and sample % 4 == 0)

    def test_train_partial(self, collector):
        collected, lines = one_step(collector(self.rule))
        assert sorted(group.prompt.id for group in collected.groups) == ["p11", "p3", "p7"]
        assert [line["end"] for line in lines].count("trained") == 3

    @pytest.mark.parametrize("surplus", list(KeepSurplus))
    def test_skip_step(self, collector, surplus):
        one = collector(self.rule, when_budget_ends=BudgetEnd.skip_step, keep_surplus=surplus)
        collected, lines = one_step(one)
        assert collected.groups == []
        if surplus is KeepSurplus.never:
            assert one.ledger.dropped == {"all_right": 6, "all_wrong": 3, "skipped_step": 3}
            assert len(lines) == 12 and not one.ledger.in_flight
        else:  # kept, so that the next step begins with three of four
            assert one.ledger.dropped == {"all_right": 6, "all_wrong": 3}
            assert len(lines) == 9 and len(one.ledger.in_flight) == 3
            later, _ = one_step(one)
            assert len(later.groups) == 4 and later.num_drawn <= 12

    def test_stop(self, collector):
        one = collector(self.rule, when_budget_ends=BudgetEnd.stop)
        with pytest.raises(
            BudgetExhausted, match=r"12 prompts were drawn and 3 of trainer\.groups_per_step = 4"
        ) as stop:
            one.collect(1)
        assert stop.value.exit_code == 7 and "'all_right': 6" in str(stop.value)

    @pytest.mark.parametrize("policy", list(BudgetEnd))
    @pytest.mark.parametrize(
        ("rule", "reason"),
        [
            (lambda p, s: True, "all_right"),
            (lambda p, s: False, "all_wrong"),
            (lambda p, s: None, "unscorable"),
        ],
    )
    def test_dead_sets_end_too(self, collector, policy, rule, reason):
        one = collector(rule, when_budget_ends=policy)
        if policy is BudgetEnd.stop:
            with pytest.raises(BudgetExhausted, match=f"0 of .*'{reason}': 12"):
                one.collect(1)
            return
        collected, _ = one_step(one)
        assert (collected.groups, one.ledger.dropped, collected.num_drawn) == ([], {reason: 12}, 12)
        metrics = step_metrics(collected, LossTotals(), one.ledger)
        assert (metrics["updates"], metrics["groups/dead_share"]) == (0.0, 1.0)


class TestKeptSurplus:
    def make(self, collector) -> Collector:
        one = collector(lambda p, s: s % 2 == 0, num_groups=3, keep_surplus=KeepSurplus.always)
        one.ledger.useful_share = 0.5  # draws six, needs three
        return one

    def test_is_trained_first_in_the_next_step(self, collector):
        one = self.make(collector)
        first, lines = one_step(one)
        assert [g.group_index for g in first.groups] == [0, 1, 2] and [g.group_index for g in first.kept] == [3, 4, 5]
        assert sorted(one.ledger.in_flight) == [3, 4, 5] and len(lines) == 3 and first.dropped == []
        second, lines = one_step(one)
        assert [g.group_index for g in second.groups] == [3, 4, 5] and second.num_drawn == 0
        assert one.ledger.trained == one.ledger.next_draw == 6 and not one.ledger.in_flight

    def test_survives_a_checkpoint_to_the_bit(self, collector):
        one, other = self.make(collector), self.make(collector)
        one_step(one)
        other.restore(json.loads(json.dumps(one.state())))
        assert other.state() == one.state()
        for kept, restored in zip(one.kept, other.kept, strict=True):
            assert kept.trajectories == restored.trajectories and kept.prompt == restored.prompt
            assert all(torch.equal(a, b) for a, b in zip(kept.images, restored.images, strict=True))
        later, again = one_step(one), one_step(other)
        assert [g.group_index for g in later[0].groups] == [g.group_index for g in again[0].groups] and later[
            1
        ] == again[1]

    def test_its_age_is_reported(self, collector):
        one = self.make(collector)
        one_step(one)
        collected, _ = one_step(one)
        metrics = step_metrics(collected, LossTotals(policy_version=2), one.ledger)
        assert (metrics["policy_age/mean"], metrics["policy_age/max"]) == (2.0, 2.0)

    def test_needs_a_correction(self):
        with pytest.raises(ValueError, match=r"trainer\.keep_surplus: always .* algorithm\.correction\.rule=token_tr"):
            RlConfig("c", "p", algorithm=DapoConfig(), trainer=TrainerConfig(keep_surplus=KeepSurplus.always))
        corrected = DapoConfig(correction=CorrectionConfig(Correction.token_truncate))
        RlConfig("c", "p", algorithm=corrected, trainer=TrainerConfig(keep_surplus=KeepSurplus.always))


def test_an_interruption_leaves_the_round(collector):
    def check() -> None:
        raise KeyboardInterrupt

    one = collector(lambda p, s: s == 0)
    with pytest.raises(KeyboardInterrupt):
        one.collect(1, check)


def test_updates_that_were_skipped_drop_their_groups(collector):
    one = collector(lambda p, s: s == 0)
    collected = one.collect(1)
    one.close(collected, {collected.groups[0].group_index})
    assert (one.ledger.trained, one.ledger.dropped) == (3, {"not_finite": 1})


def test_pass_rates_are_remembered_and_reported(collector):
    one = collector(lambda p, s: s == 0, curriculum=Curriculum.pass_rate)
    collected, _ = one_step(one)
    assert set(one.order.pass_rates.values()) == {0.25}
    metrics = step_metrics(collected, LossTotals(), one.ledger)
    assert (metrics["prompts/pass_rate"], metrics["prompts/seen_share"]) == (0.25, 4 / 12)


def test_diversities_are_remembered_where_the_curriculum_asks_for_them(collector):
    one = collector(lambda p, s: s == 0, curriculum=Curriculum.variance)
    collected, _ = one_step(one)
    values = one.order.diversities.values()
    assert len(values) == 4 and all(0 < value <= 1 for value in values)
    metrics = step_metrics(collected, LossTotals(), one.ledger)
    assert metrics["prompts/diversity"] == pytest.approx(sum(values) / 4)


def test_a_pass_rate_of_nothing_is_no_number(collector):
    one = collector(lambda p, s: None, curriculum=Curriculum.pass_rate)
    metrics = step_metrics(one_step(one)[0], LossTotals(), one.ledger)
    assert math.isnan(metrics["prompts/pass_rate"]) and metrics["prompts/seen_share"] == 0.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "a", "messages": [], "reference": "1"}', "ends with a user message"),
        ('{"id": "a", "messages": [{"role": "user", "content": "x"}]}', "reference: expected str, found None"),
        ('{"id": "a", "messages": [{"role": "user", "content": "x"}], "reference": " "}', "expected an answer"),
        (
            '{"id": "a", "messages": [{"role": "user", "content": "%s"}], "reference": "1"}' % ("word " * 90),
            "max_prompt_tokens",
        ),
        ('{"id": "a", ', r"prompts.jsonl:1: expected a JSON object"),
        ("[1]", "found list"),
        ("", "at least one row"),
    ],
)
def test_bad_prompt_rows_are_named(tiny, tmp_path, row, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(ValueError, match=message):
        PromptSet(path, tiny[1], Mode.think, RolloutConfig(max_prompt_tokens=96))


def test_duplicate_ids_and_missing_files(tiny, tmp_path):
    path = tmp_path / "prompts.jsonl"
    row = '{"id": "a", "messages": [{"role": "user", "content": "x"}], "reference": "1"}\n'
    path.write_text(row * 2)
    with pytest.raises(ValueError, match=":2: id: expected a unique value, found 'a' again"):
        PromptSet(path, tiny[1], Mode.think, RolloutConfig())
    with pytest.raises(ValueError, match=r"expected a JSONL file at .*none.jsonl, found none"):
        PromptSet(tmp_path / "none.jsonl", tiny[1], Mode.think, RolloutConfig())


class PatientWorker(EmbeddedWorker):
    """Holds its second group back until the first one was scored."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.scored = threading.Event()
        self.polls = 0

    def poll(self):
        self.polls += 1
        if self.polls == 2:
            assert self.scored.wait(20), "nothing was scored while the sampler was at work"
        return super().poll()


def test_groups_are_scored_while_others_are_sampled(collector, tiny):
    one = collector(lambda prompt, sample: sample % 2 == 0)
    one._worker = worker = fill_worker(PatientWorker(*tiny, dataclasses.replace(SAMPLER, max_rows=4), 0), tiny[0])
    score = one._rubric.score

    def tell(inputs):
        worker.scored.set()
        return score(inputs)

    one._rubric.score = tell
    collected, _ = one_step(one)
    assert [group.group_index for group in collected.groups] == [0, 1, 2, 3]


def test_what_rewards_raise_ends_the_sampling(collector, tiny):
    one = collector(lambda prompt, sample: 1 / 0, num_groups=8)
    one._worker = worker = fill_worker(EmbeddedWorker(*tiny, dataclasses.replace(SAMPLER, max_rows=4), 0), tiny[0])
    done, poll = [], worker.poll
    worker.poll = lambda: done.extend(found := poll()) or found
    with pytest.raises(ZeroDivisionError):
        one.collect(1, lambda: time.sleep(0.1))
    assert 0 < len(done) < 8 and worker.is_idle  # what was not sampled is given up
