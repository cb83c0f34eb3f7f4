"""Groups, filters, weights, denominators, packing, and the first ratio."""

import dataclasses
from pathlib import Path

import pytest
import torch

from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.interface import Mode
from rewards.result import RewardResult, Status
from rlhf.algorithms import build_algorithm
from rlhf.config import AdvantageScale, AlgorithmConfig, DapoConfig, GroupFilter, GrpoConfig, TrainerConfig
from rlhf.prompts import PromptSet
from rlhf.trainer import Policy, prepare
from rlhf.trajectory import Group, Trajectory, pack
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import FinishReason, Prompt, Rollout, generate

LIMIT = 40


def result(answer: float | None, form: float = 1.0) -> RewardResult:
    if answer is None:
        return RewardResult(None, {}, Status.unscorable, "test")
    return RewardResult(0.9 * answer + 0.1 * form, {"answer": answer, "format": form})


def make_group(results: list[RewardResult], lengths: list[int] | None = None) -> Group:
    lengths = lengths or [3] * len(results)
    trajectories = tuple(
        Trajectory(
            Rollout(0, "p", i, [1, 2, 3], [4] * n, [1] * n, [-1.0] * n, ((0, 0),), FinishReason.stop), r, r.value or 0.0
        )
        for i, (r, n) in enumerate(zip(results, lengths, strict=True))
    )
    return Group(0, Prompt("p", [], "1"), (), trajectories)


DAPO = build_algorithm(DapoConfig(), LIMIT)
GRPO = build_algorithm(GrpoConfig(), LIMIT)


def test_paper_defaults():
    assert (DAPO.config.clip_low, DAPO.config.clip_high, DAPO.config.kl_coefficient) == (0.2, 0.28, 0.0)
    assert DAPO.config.group_filter is GroupFilter.correctness_spread and not DAPO.mean_per_sequence
    assert (GRPO.config.clip_low, GRPO.config.clip_high, GRPO.config.kl_coefficient) == (0.2, 0.2, 0.04)
    assert GRPO.config.group_filter is GroupFilter.none and GRPO.mean_per_sequence


def test_correctness_spread_ignores_format():
    only_format = make_group([result(0, 1), result(0, 0), result(0, 1)])
    assert DAPO.drop_reason(only_format) == "all_wrong"
    assert DAPO.drop_reason(make_group([result(1, 1), result(1, 0)])) == "all_right"
    assert DAPO.drop_reason(make_group([result(1), result(0)])) == ""
    by_reward = build_algorithm(DapoConfig(group_filter=GroupFilter.reward_spread), LIMIT)
    assert by_reward.drop_reason(only_format) == ""
    assert by_reward.drop_reason(make_group([result(0), result(0)])) == "equal_rewards"
    assert GRPO.drop_reason(only_format) == ""


def test_unscorable_trajectories_enter_neither_mean_nor_loss():
    group = make_group([result(1), result(None), result(0), result(None)])
    assert DAPO.drop_reason(group) == ""
    assigned = DAPO.assign_advantages(group)
    assert [t.rollout.sample_index for t in assigned.trajectories] == [0, 2]
    assert [t.advantage for t in assigned.trajectories] == pytest.approx([1, -1], rel=1e-5)
    assert DAPO.denominator([assigned]) == 6.0
    for algorithm in (DAPO, GRPO):
        assert algorithm.drop_reason(make_group([result(1), result(None), result(None)])) == "unscorable"
        assert algorithm.drop_reason(make_group([result(None)] * 4)) == "unscorable"


def test_denominator_counts_tokens_or_sequences():
    groups = [make_group([result(1), result(0)], [5, 2]), make_group([result(1), result(0), result(0)], [1, 1, 9])]
    assert DAPO.denominator(groups) == 18.0
    assert GRPO.denominator(groups) == 5.0


def test_token_weights_of_both_normalisations():
    group = GRPO.assign_advantages(make_group([result(1), result(0)], [4, 2]))
    (by_sequence,) = pack([group], 1000, 519, 4, GRPO.mean_per_sequence)
    assert by_sequence.token_weights.tolist() == [0.25] * 4 + [0.5] * 2
    (by_token,) = pack([group], 1000, 519, 4, DAPO.mean_per_sequence)
    assert by_token.token_weights.tolist() == [1.0] * 6
    assert by_token.sequence.tolist() == [0] * 4 + [1] * 2
    assert by_token.advantages.tolist() == pytest.approx([1.0] * 4 + [-1.0] * 2, rel=1e-5)


def test_a_group_over_the_budget_repeats_its_prefix():
    group = DAPO.assign_advantages(make_group([result(i % 2) for i in range(4)], [5, 5, 5, 5]))
    batches = pack([group], 14, 519, 4, False)
    assert [b.inputs.num_tokens for b in batches] == [13, 13]
    assert sum(b.loss_mask.sum().item() for b in batches) == 20
    assert pack([group], 23, 519, 4, False)[0].inputs.num_tokens == 23


def test_soft_overlong_punishment_spares_a_turn_that_ended():
    def shaped(length: int, reason: FinishReason) -> float:
        rollout = Rollout(0, "p", 0, [1], [1] * length, [1] * length, [0.0] * length, ((0, 0),), reason)
        return DAPO.shape_reward(result(1), rollout)

    assert shaped(LIMIT - 8, FinishReason.stop) == pytest.approx(1.0)
    assert shaped(LIMIT - 4, FinishReason.stop) == pytest.approx(0.5)
    assert shaped(LIMIT, FinishReason.length) == pytest.approx(0.0)
    assert shaped(LIMIT, FinishReason.stop) == pytest.approx(1 - 7 / 8)


def test_unknown_algorithm_names_the_known():
    with pytest.raises(ValueError, match=r"expected one of \['dapo', 'grpo'\], found 'ppo'"):
        build_algorithm(AlgorithmConfig(name="ppo"), LIMIT)
    unscaled = dataclasses.replace(
        DapoConfig(), group_size=1, group_filter=GroupFilter.none, advantage_scale=AdvantageScale.none
    )
    assert unscaled.group_size == 1


@pytest.fixture(scope="module")
def sampled(tiny, digits_folder: Path) -> list[Group]:
    """Four real groups of six with alternating made-up rewards."""
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, 96)
    worker = EmbeddedWorker(*tiny, RolloutConfig(max_completion_tokens=10), 0)
    tasks = [prompts[i] for i in range(4)]
    groups = []
    for task, rollouts in zip(tasks, generate(worker, [t.request(d, 6) for d, t in enumerate(tasks)]), strict=True):
        rewards = [result(float(i % 2)) for i in range(6)]
        trajectories = tuple(Trajectory(r, w, w.value or 0.0) for r, w in zip(rollouts, rewards, strict=True))
        groups.append(DAPO.assign_advantages(Group(0, task.prompt, task.images, trajectories)))
    return groups


def make_policy(tiny, budget: int, reference: bool = False) -> Policy:
    from model.sail_vl2 import SailVL2

    model = SailVL2(tiny[0].config)
    model.load_state_dict(tiny[0].state_dict())
    engine = LocalEngine(model, EngineConfig(num_threads=1), OptimizerConfig(), 10, 1.0, tiny[1].barred_ids)
    return Policy(engine, engine.frozen_copy() if reference else None, tiny[1], budget)


@pytest.mark.parametrize(("passes", "mini_batch_size"), [(1, 24), (2, 12)])
def test_first_ratio_is_exactly_one(tiny, sampled, passes, mini_batch_size):
    """Also with stored old log-probs: they come from the same arithmetic on the same micro-batches."""
    policy = make_policy(tiny, 200)
    config = TrainerConfig(mini_batch_size=mini_batch_size, passes=passes)
    algorithm = build_algorithm(DapoConfig(group_size=6), LIMIT)
    updates = prepare(sampled, policy, algorithm, config)
    assert len(updates) == passes * 24 // mini_batch_size
    mini_batch, batches = updates[0]
    assert (batches[0].old_logprobs is None) == (passes == 1)
    for batch in batches:
        metrics = policy.engine.forward_backward(batch, algorithm.loss, algorithm.denominator(mini_batch))
        assert metrics["ratio_min"] == metrics["ratio_max"] == 1.0
    policy.engine.step()
    _, later = updates[-1]
    metrics = policy.engine.forward_backward(later[0], algorithm.loss, 1.0)
    assert (metrics["ratio_max"] != 1.0) == (passes > 1)


def test_loss_does_not_depend_on_the_packing(tiny, sampled):
    """fp32; the same sums in another order: 1e-5 relative."""
    losses, gradients = [], []
    for budget in (60, 250, 5000):
        policy = make_policy(tiny, budget)
        (update,) = prepare(sampled, policy, DAPO, TrainerConfig(mini_batch_size=96))
        losses.append(sum(policy.engine.forward_backward(b, DAPO.loss, 100.0)["loss"] for b in update[1]))
        gradients.append(torch.cat([p.grad.flatten() for p in policy.engine.model.parameters() if p.grad is not None]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5, abs=1e-7)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_kl_to_the_reference_starts_at_zero_and_then_pulls_back(tiny, sampled):
    policy = make_policy(tiny, 5000, reference=True)
    algorithm = build_algorithm(GrpoConfig(group_size=6), LIMIT)
    (update,) = prepare(sampled, policy, algorithm, TrainerConfig(mini_batch_size=96))
    batch = update[1][0]
    metrics = policy.engine.forward_backward(batch, algorithm.loss, 24.0)
    assert metrics["ref_kl"] == 0.0
    policy.engine.step()
    moved = policy.engine.forward_backward(batch, algorithm.loss, 24.0)
    assert moved["ref_kl"] > 0.0
