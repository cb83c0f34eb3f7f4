"""The order of draws: keyed epochs, thinned by data-set weights and pass rates, exact from two pieces of state."""

import json
from collections import Counter

import pytest

from rlhf.config import Curriculum
from rlhf.drawing.draws import DrawOrder

IDS = [f"p{i}" for i in range(12)]


def draws(order: DrawOrder, count: int) -> list[int]:
    return [order.next() for _ in range(count)]


def test_equal_weights_give_epochs():
    order = DrawOrder(IDS, [1.0] * 12, seed=0)
    first, second = draws(order, 12), draws(order, 12)
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert order.cursor == 24
    assert draws(DrawOrder(IDS, [1.0] * 12, seed=0), 12) == first != draws(DrawOrder(IDS, [1.0] * 12, seed=1), 12)


def test_weights_are_shares_of_the_draws():
    """Six rows of weight 3, five of weight 1, one of weight 0: 18/23 of the draws; 4 sigma of a binomial is 0.02."""
    order = DrawOrder(IDS, [3.0] * 6 + [1.0] * 5 + [0.0], seed=0)
    counts = Counter(draws(order, 4000))
    assert counts[11] == 0
    share = sum(counts[i] for i in range(6)) / 4000
    assert share == pytest.approx(18 / 23, abs=0.03)


def test_no_positive_weight_is_refused():
    with pytest.raises(ValueError, match=r"data\.weights: expected a data set with a weight above 0"):
        DrawOrder(IDS, [0.0] * 12, seed=0)


def test_the_curriculum_prefers_prompts_that_sometimes_succeed():
    order = DrawOrder(IDS, [1.0] * 12, seed=0, curriculum=Curriculum.pass_rate)
    for index, name in enumerate(IDS):
        order.record(name, num_right=(0, 2, 4)[index % 3], num_scored=4)
    counts = Counter(index % 3 for index in draws(order, 3000))
    # Weights 0.1, 1 and 0.1: the middle third is drawn ten times as often as the others.
    assert counts[1] / 3000 == pytest.approx(10 / 12, abs=0.03)
    assert counts[0] > 0 and counts[2] > 0


def test_pass_rates_follow_the_policy():
    order = DrawOrder(IDS, [1.0] * 12, seed=0)
    order.record("p0", 0, 4)
    order.record("p0", 4, 4)
    order.record("p1", 0, 0)  # nothing could be scored: nothing is known
    order.record("p2", 2.5, 5)  # a reward between 0 and 1, where answers are not rewarded
    assert order.pass_rates == {"p0": 0.5, "p2": 0.5}


def test_state_continues_exactly():
    weights = [3.0] * 6 + [1.0] * 6
    order = DrawOrder(IDS, weights, 0, Curriculum.pass_rate)
    for index in draws(order, 7):
        order.record(IDS[index], index % 3, 4)
    other = DrawOrder(IDS, weights, 0, Curriculum.pass_rate)
    other.restore(json.loads(json.dumps(order.state())))
    assert draws(other, 50) == draws(order, 50)
