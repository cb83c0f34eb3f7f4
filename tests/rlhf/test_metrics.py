"""What the metrics of a step say, on groups whose figures are known."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from model.engine.base import LossSums, StepResult
from model.processing.tokenizer import Tokenizer
from rewards.result import RewardResult
from rlhf.collect import Collected
from rlhf.drawing.ledger import Ledger
from rlhf.metrics import LossTotals, reward_metrics, step_metrics, stored_rollouts
from rlhf.update import UpdateResult
from rollouts.records import StoredRollout
from tests.rlhf.groups import group, trajectory

PART = {
    "loss": 1.0, "tokens": 4.0, "entropy": 2.0, "clipped_low": 1.0, "clipped_high": 0.0, "old_kl": 0.4,
    "sampler_kl": 0.8, "ratio_min": 0.9, "ratio_max": 1.1, "sampler_gap": 0.2, "sampler_gap_max": 0.1, "correction": 4.0,
}  # fmt: skip


def collected(*groups, dropped=(), kept=()) -> Collected:
    return Collected(list(groups), list(dropped), list(kept), num_drawn=len(groups) + len(dropped))


def test_rewards_are_means_over_what_was_scored():
    found = reward_metrics([group(0, 1.0, 0.5, None), group(1, 0.0)])
    assert found["reward"] == pytest.approx(0.5) and found["reward/answer"] == pytest.approx(0.5)
    assert found["accuracy"] == pytest.approx(1 / 3)  # a half is not right
    assert found["unscorable_share"] == 0.25 and found["completion_tokens"] == 8


def test_a_mean_of_nothing_is_no_number():
    unscored = reward_metrics([group(0, None, None)])
    assert {name for name, value in unscored.items() if math.isnan(value)} == {"reward", "reward/shaped", "accuracy"}
    assert (unscored["unscorable_share"], unscored["length/mean"]) == (1.0, 2.0)
    nothing = reward_metrics([])
    assert {name for name, value in nothing.items() if not math.isnan(value)} == {"completion_tokens"}
    made = trajectory(0, 1.0)
    silent = replace(made, reward=RewardResult(1.0, {"answer": 1.0, "judge": None}))
    assert math.isnan(reward_metrics([group(0, 1.0).with_trajectories([silent])])["reward/judge"])


def test_a_step_without_trained_groups_has_no_ages():
    found = step_metrics(collected(dropped=[(group(0, 0.0, 0.0), "all_wrong")]), LossTotals(), Ledger())
    assert all(math.isnan(found[name]) for name in ("policy_age/mean", "policy_age/max", "staleness/mean"))
    assert (found["groups/dead_share"], found["groups/trained"], found["reward"]) == (1.0, 0.0, 0.0)


def test_an_update_without_trained_tokens_has_no_means():
    totals = LossTotals()
    sums = LossSums(({**dict.fromkeys(PART, 0.0), "ratio_min": 1.0, "ratio_max": 1.0},))
    totals.add_update(UpdateResult(StepResult(0.1, 0.0, True), sums, []))
    found = totals.metrics()
    assert all(math.isnan(found[name]) for name in ("entropy", "kl/old", "ratio/max", "sampler_gap/max"))
    assert math.isnan(found["zero_advantage_share"]) and (found["loss"], found["trained_tokens"]) == (0.0, 0.0)


def test_loss_figures_are_per_token_over_all_updates():
    totals = LossTotals(policy_version=3)
    for applied, ratio in ((True, 1.5), (False, 1.2)):
        sums = LossSums(({**PART, "ratio_max": ratio}, {**PART, "tokens": 12.0}))
        one = group(int(applied), 1.0, 0.0)
        totals.add_update(UpdateResult(StepResult(0.1, 2.0, applied, {"vision": 0.5}), sums, [one]))
    found = totals.metrics()
    assert (found["trained_tokens"], found["updates"], found["skipped_updates"]) == (32, 2, 1)
    assert found["entropy"] == 8 / 32 and found["ratio/max"] == 1.5 and found["ratio/min"] == 0.9
    assert found["loss"] == 4 / 2 and found["grad_norm/vision"] == 0.5
    assert found["zero_advantage_share"] == 1.0  # no trajectory of these groups has an advantage
    assert totals.untrained == {0}


def test_a_group_is_trained_if_one_of_its_updates_was_applied():
    totals = LossTotals()
    for applied in (False, True):
        totals.add_update(UpdateResult(StepResult(0.1, 1.0, applied), LossSums((PART,)), [group(5, 1.0)]))
    assert totals.untrained == set()


def test_groups_and_their_ends_are_counted():
    ledger = Ledger(next_draw=4, trained=1)
    one = collected(group(0, 1.0, 0.0), dropped=[(group(1, 0.0, 0.0), "all_wrong")], kept=[group(2, 1.0, 0.0)])
    found = step_metrics(one, LossTotals(), ledger)
    assert (found["groups/drawn"], found["groups/trained"], found["groups/kept"]) == (2, 1, 1)
    assert found["groups/dead_share"] == 0.5 == found["dead_share/all_wrong"] and found["dropped/all_wrong"] == 1
    assert found["groups/reward_spread"] == 0.25  # 0.5 and 0
    assert (found["ledger/draws"], found["ledger/trained"]) == (4, 1)


def test_staleness_counts_tokens_by_the_version_that_drew_them():
    made = trajectory(0, 1.0, ids=(1, 2, 3, 4), versions=((0, 1), (3, 2)))
    one = group(0, 1.0).with_trajectories([made])
    found = step_metrics(collected(one), LossTotals(policy_version=3), Ledger())
    assert found["staleness/mean"] == (3 * 2 + 1 * 1) / 4 and found["staleness/max"] == 2
    assert (found["staleness/share_1"], found["staleness/share_2"]) == (0.25, 0.75)
    assert found["staleness/mixed_share"] == 1.0 and found["policy_age/max"] == 2


def test_stored_rollouts_name_why_a_group_did_not_train(tiny):
    tokenizer: Tokenizer = tiny[1].tokenizer
    one = collected(group(1, 1.0, None), dropped=[(group(0, 0.0, 0.0), "all_wrong")])
    lines = stored_rollouts(one, tokenizer, Path("run"))
    assert [(line["draw"], line["dropped"], line["status"]) for line in lines] == [
        (0, "all_wrong", "ok"), (0, "all_wrong", "ok"), (1, "", "ok"), (1, "", "unscorable"),
    ]  # fmt: skip
    assert lines[3]["reward"] is None and lines[3]["reason"] == "no judge"
    assert {line["text"] for line in lines} == {tokenizer.decode([11, 12])}
    assert lines[0]["format"] == StoredRollout("p", [], "stop", {}).format
    assert {line["question"] for line in lines} == {"1+1?"} and {line["advantage"] for line in lines} == {None}


def test_stored_rollouts_keep_what_a_person_wants_to_see(tiny):
    text = "<think>one and one</think>\\boxed{2}"
    made = group(0, 1.0, 0.0, ids=tuple(tiny[1].tokenizer.encode(text)))
    made = replace(made, files=["data/a.png"])
    judged = replace(made.trajectories[0], reward=replace(made.trajectories[0].reward, answer="2"))
    trained = made.with_trajectories([replace(judged, advantage=0.5)])  # the other left before training
    step = collected(made.with_trajectories([judged, made.trajectories[1]]))
    first, second = stored_rollouts(step, tiny[1].tokenizer, Path("run"), [trained])
    assert (first["thinking"], first["answer"], first["images"]) == ("one and one", "2", ["data/a.png"])
    assert (first["advantage"], second["advantage"], second["answer"]) == (0.5, None, None)
