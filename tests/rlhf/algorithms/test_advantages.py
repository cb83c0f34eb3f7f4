"""Baselines, scales and penalties against hand-worked numbers."""

import math

import pytest

from rlhf.algorithms.advantages import centred_rewards, deviations, overlong_penalty
from rlhf.algorithms.config import AdvantageScale, Baseline

GROUPS = [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0]]
ONES = [[1.0] * 4, [1.0] * 2]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (Baseline.none, GROUPS),
        (Baseline.group_mean, [[0.5, -0.5, -0.5, 0.5], [0.5, -0.5]]),
        (Baseline.leave_one_out, [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [1.0, -1.0]]),
        (Baseline.batch_mean, [[0.5, -0.5, -0.5, 0.5], [0.5, -0.5]]),
    ],
)
def test_baselines_by_hand(baseline, expected):
    assert centred_rewards(GROUPS, ONES, baseline) == [pytest.approx(group) for group in expected]


def test_leave_one_out_is_the_mean_of_the_others():
    rewards = [0.3, 0.9, 0.1, 0.4, 1.0]
    (found,) = centred_rewards([rewards], [[1.0] * 5], Baseline.leave_one_out)
    for index, reward in enumerate(rewards):
        others = rewards[:index] + rewards[index + 1 :]
        assert found[index] == pytest.approx(reward - sum(others) / 4, rel=1e-12)


def test_the_steps_mean_weighs_trajectories():
    """Rewards 1 and 0 of 3 and 1 tokens: mean 0.75."""
    assert centred_rewards([[1.0], [0.0]], [[3.0], [1.0]], Baseline.batch_mean) == [[0.25], [-0.75]]


def test_scales_by_hand():
    centred = [[0.5, -0.5, -0.5, 0.5], [1.0, -1.0]]
    assert deviations(centred, ONES, AdvantageScale.none) == [1.0, 1.0]
    assert deviations(centred, ONES, AdvantageScale.group_std) == pytest.approx([0.5, 1.0], rel=1e-5)
    step = math.sqrt((4 * 0.25 + 2 * 1.0) / 6)
    assert deviations(centred, ONES, AdvantageScale.batch_std) == pytest.approx([step, step], rel=1e-5)
    weighted = math.sqrt((4 * 0.25 * 1 + 2 * 1.0 * 3) / 10)
    weights = [[1.0] * 4, [3.0] * 2]
    assert deviations(centred, weights, AdvantageScale.batch_std) == pytest.approx([weighted] * 2, rel=1e-5)


@pytest.mark.parametrize("baseline", [Baseline.group_mean, Baseline.leave_one_out, Baseline.batch_mean])
def test_equal_rewards_give_exactly_zero(baseline):
    """0.1 cannot be represented: a mean of eight of them differs in the last bit, which must not become a signal."""
    assert centred_rewards([[0.1] * 8], [[1.0] * 8], baseline) == [[0.0] * 8]
    assert centred_rewards([[0.7] * 3], [[1.0] * 3], baseline) == [[0.0] * 3]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_reward_that_is_no_number_is_not_taken_for_equal_ones(place):
    rewards = [math.nan if i == place else 1.0 for i in range(3)]
    assert all(map(math.isnan, centred_rewards([rewards], [[1.0] * 3], Baseline.group_mean)[0]))


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0), (32, 0), (33, 1 / 8), (36, 0.5), (39, 7 / 8), (40, 1), (99, 1)]
)
def test_soft_overlong_punishment(length, expected):
    assert overlong_penalty(length, limit=40, buffer=8, penalty=1.0) == pytest.approx(expected)
    assert overlong_penalty(length, limit=40, buffer=0, penalty=2.0) == (2.0 if length >= 40 else 0.0)
