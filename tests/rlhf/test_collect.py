"""Collecting groups: refill, budgets, surplus, reasons, and a ledger whose sums match."""

from pathlib import Path

import pytest

from model.interface import Mode
from rewards.config import RewardConfig
from rewards.result import RewardResult, Status
from rewards.rubric import Rubric
from rlhf.algorithms import build_algorithm
from rlhf.collect import collect
from rlhf.config import DapoConfig, GrpoConfig
from rlhf.ledger import Ledger
from rlhf.metrics import LossTotals, step_metrics, stored_rollouts
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker

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
def gather(tiny, easy_prompts: Path):
    def run(rule, num_groups=4, max_draws=12, algorithm=None, ledger=None):
        prompts = PromptSet(easy_prompts, tiny[1], Mode.think, 96)
        worker = EmbeddedWorker(*tiny, SAMPLER, 0)
        ledger = ledger or Ledger()
        algorithm = algorithm or build_algorithm(DapoConfig(group_size=4), 4)
        collected = collect(
            prompts, worker, ScriptedRubric(rule), tiny[1].tokenizer, algorithm, ledger, num_groups, max_draws
        )
        ledger.check()
        lines = ledger.take_closed()
        assert [line["draw"] for line in lines] == list(range(ledger.next_draw - len(lines), ledger.next_draw))
        assert not ledger.in_flight
        return collected, ledger, lines

    return run


def test_mixed_groups_need_no_refill(gather):
    collected, ledger, lines = gather(lambda prompt, sample: sample % 2 == 0)
    assert (len(collected.groups), len(collected.dropped), ledger.next_draw) == (4, 0, 4)
    assert {line["end"] for line in lines} == {"trained"}


def test_dead_groups_are_refilled_and_named(gather):
    """Even prompts are all right, prompts 1, 5, 9 all wrong, the others mixed."""

    def rule(prompt: int, sample: int) -> bool:
        return prompt % 2 == 0 or (prompt % 4 == 3 and sample == 0)

    collected, ledger, lines = gather(rule, num_groups=3, max_draws=12)
    assert len(collected.groups) == 3
    assert all(int(group.prompt.id[1:]) % 4 == 3 for group in collected.groups)
    reasons = {reason for _, reason in collected.dropped}
    assert reasons <= {"all_right", "all_wrong", "surplus"} and "all_right" in reasons
    assert ledger.trained + sum(ledger.dropped.values()) == ledger.next_draw == len(lines)
    assert len({line["prompt_id"] for line in lines}) == len(lines)  # one epoch never repeats a prompt


def test_the_budget_ends_it(gather):
    for rule, reason in (
        (lambda p, s: True, "all_right"),
        (lambda p, s: False, "all_wrong"),
        (lambda p, s: None, "unscorable"),
    ):
        collected, ledger, _ = gather(rule, num_groups=4, max_draws=10)
        assert (len(collected.groups), ledger.next_draw) == (0, 10)
        assert ledger.dropped == {reason: 10}
        metrics = step_metrics(collected, LossTotals(), ledger)
        assert (
            metrics["groups/dead_share"] == 1.0 and metrics[f"dropped/{reason}"] == 10.0 and metrics["updates"] == 0.0
        )


def test_the_next_step_asks_for_more_at_once_and_drops_the_surplus(gather):
    ledger = Ledger(useful_share=0.5)
    collected, ledger, _ = gather(lambda p, s: s == 0, num_groups=3, max_draws=12, ledger=ledger)
    assert (len(collected.groups), ledger.dropped, ledger.useful_share) == (3, {"surplus": 3}, 1.0)
    assert [group.draw for group in collected.groups] == [0, 1, 2]


def test_unscorable_rollouts_are_counted_not_scored(gather, tiny):
    collected, ledger, _ = gather(lambda p, s: None if s == 3 else s == 0)
    metrics = step_metrics(collected, LossTotals(), ledger)
    assert metrics["unscorable_share"] == 0.25
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    stored = stored_rollouts(collected, tiny[1].tokenizer)
    assert len(stored) == 16
    assert {row["status"] for row in stored if row["sample_index"] == 3} == {"unscorable"}
    assert all(row["reward"] is None for row in stored if row["sample_index"] == 3)


def test_grpo_trains_dead_groups_with_zero_advantage(gather):
    algorithm = build_algorithm(GrpoConfig(group_size=4), 4)
    collected, ledger, _ = gather(lambda p, s: True, algorithm=algorithm)
    assert (len(collected.groups), ledger.next_draw) == (4, 4)
    assert {t.advantage for g in collected.groups for t in algorithm.assign_advantages(g).trajectories} == {0.0}


def test_ledger_state_round_trip_and_imbalance():
    ledger = Ledger()
    ledger.train(ledger.draw("a"))
    ledger.drop(ledger.draw("b"), "all_wrong")
    assert Ledger.from_state(ledger.state()) == Ledger(2, 1, {"all_wrong": 1})
    ledger.draw("c")
    with pytest.raises(RuntimeError, match="1 draws are still in flight"):
        ledger.state()
    ledger.trained += 1
    with pytest.raises(RuntimeError, match="ledger: 3 draws, but 2 trained"):
        ledger.check()


def test_prompts_are_drawn_in_keyed_epochs(tiny, easy_prompts):
    def order(seed: int, start: int) -> list[str]:
        prompts = PromptSet(easy_prompts, tiny[1], Mode.think, 96, seed)
        return [prompts.at(start + i).prompt.id for i in range(12)]

    assert sorted(order(0, 0)) == sorted(order(0, 12)) == sorted(f"p{i}" for i in range(12))
    assert order(0, 0) == order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 12)


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
        PromptSet(path, tiny[1], Mode.think, 96)


def test_duplicate_ids_and_missing_files(tiny, tmp_path):
    path = tmp_path / "prompts.jsonl"
    row = '{"id": "a", "messages": [{"role": "user", "content": "x"}], "reference": "1"}\n'
    path.write_text(row * 2)
    with pytest.raises(ValueError, match=":2: id: expected a unique value, found 'a' again"):
        PromptSet(path, tiny[1], Mode.think, 96)
    with pytest.raises(ValueError, match=r"expected a JSONL file at .*none.jsonl, found none"):
        PromptSet(tmp_path / "none.jsonl", tiny[1], Mode.think, 96)
