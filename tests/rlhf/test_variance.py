"""MMR1's variance-aware draws: scores and weights by hand, shares of draws, and an exact continuation."""

import json
from collections import Counter

import pytest

from rlhf.algorithms.config import DapoConfig
from rlhf.config import Curriculum, RlConfig, RlDataConfig, TrainerConfig, VarianceConfig
from rlhf.drawing.draws import DrawOrder
from rlhf.drawing.variance import VarianceWeights, distinct_share

IDS = [f"p{i}" for i in range(12)]


def order(config: VarianceConfig | None = None) -> DrawOrder:
    return DrawOrder(IDS, [1.0] * 12, 0, Curriculum.variance, config)


def test_the_paper_s_values_are_the_defaults():
    config = VarianceConfig()
    assert (config.share, config.outcome, config.diversity) == (0.5, 0.8, 0.2)


@pytest.mark.parametrize(
    ("completions", "share"),
    [
        ([[1, 2, 3, 4]], 1.0),  # 123 and 234
        ([[1, 2, 3], [1, 2, 3]], 0.5),
        ([[1, 1, 1, 1, 1]], 1 / 3),
        ([[1, 2, 3, 4], [9, 2, 3, 4]], 3 / 4),  # 123 234 923 234
        ([[1, 2], [3]], 0.0),  # too short for a run of three
        ([], 0.0),
    ],
)
def test_diversity_is_the_share_of_different_runs_of_three_tokens(completions, share):
    assert distinct_share(completions) == pytest.approx(share)


def test_scores_and_weights_by_hand():
    # Scores: 0.8 x 0.25 + 0.2 x 1 = 0.4, and 0.8 x 0 + 0.2 x 0.5 = 0.1; their mean is 0.25.
    # Weights: 0.5 + 0.5 x 0.4 / 0.25 = 1.3, 0.5 + 0.5 x 0.1 / 0.25 = 0.7, and 1 for a prompt that nobody saw.
    weights = VarianceWeights(VarianceConfig(), {"a": 0.5, "b": 1.0}, {"a": 1.0, "b": 0.5})
    found = [weights.share(name) for name in ("a", "b", "new")]
    assert found == pytest.approx([1.0, 0.7 / 1.3, 1 / 1.3])


@pytest.mark.parametrize("rates", [{}, {"a": 0.0, "b": 1.0}])
def test_without_any_score_prompts_are_drawn_alike(rates):
    weights = VarianceWeights(VarianceConfig(share=1.0), rates, dict.fromkeys(rates, 0.0))
    assert [weights.share(name) for name in ("a", "b", "new")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_draws_goes_by_score(share):
    """Scores 0.4, 0.2 and 0 for four prompts each: 2/3 and 1/3 of the weighted draws; 4 sigma is below 0.04."""
    one = order(VarianceConfig(share))
    for index, name in enumerate(IDS):
        num_right, diversity = [(2, 1.0), (4, 1.0), (4, 0.0)][index % 3]
        one.record(name, num_right, 4, diversity)
    counts = Counter(index % 3 for index in (one.next() for _ in range(3000)))
    for kind, weighted in enumerate((2 / 3, 1 / 3, 0.0)):
        assert counts[kind] / 3000 == pytest.approx((1 - share) / 3 + share * weighted, abs=0.04)
    assert share < 1 or counts[2] == 0


def test_diversities_follow_the_policy():
    one = order()
    one.record("p0", 1, 4, 1.0)
    one.record("p0", 1, 4, 0.5)
    one.record("p1", 0, 0, 1.0)  # nothing was scored
    assert one.diversities == {"p0": 0.75} and one.pass_rates == {"p0": 0.25}


def test_state_continues_exactly():
    one = order()
    for number in range(9):
        index = one.next()
        one.record(IDS[index], number % 3, 4, number / 7)
    other = order()
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    for number in range(50):
        index = one.next()
        assert other.next() == index
        for each in (one, other):
            each.record(IDS[index], number % 5, 4, number / 51)


def test_other_curricula_keep_no_diversities():
    one = DrawOrder(IDS, [1.0] * 12, 0, Curriculum.pass_rate)
    assert not one.wants_diversity and set(one.state()) == {"cursor", "pass_rates"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, r"data\.variance\.share: expected 0 to 1, found 1\.5"),
        ({"share": float("nan")}, r"data\.variance\.share"),
        ({"outcome": -1.0}, r"data\.variance\.outcome: expected 0 or more, found -1\.0"),
        ({"diversity": float("inf")}, r"data\.variance\.diversity"),
        ({"outcome": 0.0, "diversity": 0.0}, r"data\.variance\.outcome, data\.variance\.diversity: expected one above"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        VarianceConfig(**settings)


def test_settings_that_nothing_looks_at_are_refused():
    data = RlDataConfig(variance=VarianceConfig(share=0.3))
    with pytest.raises(ValueError, match=r"data\.variance: expected its defaults with trainer\.curriculum=none"):
        RlConfig("c", "p", algorithm=DapoConfig(), data=data)
    RlConfig("c", "p", algorithm=DapoConfig(), data=data, trainer=TrainerConfig(curriculum=Curriculum.variance))
