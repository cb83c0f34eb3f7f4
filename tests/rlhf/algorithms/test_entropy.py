"""The entropy bonus whose coefficient follows a target, by hand-worked steps."""

import json
import pickle

import pytest
import torch

from model.logprobs import TokenScores
from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.config import DapoConfig
from rlhf.algorithms.entropy import EntropyConfig, EntropyControl
from rlhf.algorithms.registry import build_algorithm
from rlhf.trajectory import PolicyBatch

NAN = float("nan")


def coefficients(control: EntropyControl, entropies: list[float]) -> list[float]:
    """The coefficient of each step whose entropy is given."""
    return [control.look(entropy)["entropy_coefficient"] for entropy in entropies]


def test_the_coefficient_follows_the_entropy_of_the_step_before():
    control = EntropyControl(EntropyConfig(target=0.2, step=0.5))
    # Weights after each step: 0.5, 1, 0.5 (off, for 0.3 is above), 0 (off), 0 (off), 0 (the target itself is no less).
    found = coefficients(control, [0.1, 0.1, 0.3, 0.3, 0.3, 0.2, 0.1])
    assert found == [0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert control.coefficient == 0.5


def test_the_weight_is_kept_while_the_bonus_is_off():
    control = EntropyControl(EntropyConfig(target=0.2, step=0.25, coefficient=1.0))
    # 1 -> 0.75 and off after 0.3; 1 and on after 0.1.
    assert coefficients(control, [0.3, 0.1, 0.1]) == [1.0, 0.0, 1.0]


def test_the_largest_coefficient_holds():
    control = EntropyControl(EntropyConfig(target=0.2, step=0.25, most=0.5))
    assert coefficients(control, [0.1] * 5) == [0.0, 0.25, 0.5, 0.5, 0.5]


def test_a_step_without_an_update_moves_nothing():
    control = EntropyControl(EntropyConfig(target=0.2, step=0.25))
    assert coefficients(control, [0.1, NAN, NAN, 0.1]) == [0.0, 0.25, 0.25, 0.25]


def test_the_paper_s_step_is_the_default():
    assert (EntropyConfig().step, EntropyConfig().most, EntropyConfig().target) == (0.005, None, 0.0)


def test_without_a_target_nothing_is_moved_and_no_figure_added():
    control = EntropyControl(EntropyConfig(coefficient=0.1))
    assert control.look(0.0) == {} and control.coefficient == 0.1
    assert control.may_act and not control.is_adaptive
    assert not EntropyControl(EntropyConfig()).may_act


def test_state_continues_exactly():
    entropies = [0.1, 0.3, 0.1, 0.1, 0.25, 0.1, 0.1]
    config = EntropyConfig(target=0.2, step=0.1)
    straight = coefficients(EntropyControl(config), entropies)
    for cut in range(len(entropies)):
        one, other = EntropyControl(config), EntropyControl(config)
        before = coefficients(one, entropies[:cut])
        other.restore(json.loads(json.dumps(one.state())))
        assert before + coefficients(other, entropies[cut:]) == straight


def loss_of(algorithm: Algorithm) -> float:
    """Of two tokens of ratio 1 with advantage 0, whose entropies are 2 and 3 nats."""
    logprobs = torch.tensor([-1.0, -2.0])
    batch = PolicyBatch(
        inputs=None,  # type: ignore[arg-type]
        loss_mask=torch.tensor([True, True]),
        advantages=torch.zeros(2),
        rollout_logprobs=logprobs,
        old_logprobs=None,
        ref_logprobs=None,
        sequence=torch.zeros(2, dtype=torch.long),
        token_weights=torch.ones(2),
    )
    return float(algorithm.loss(TokenScores(logprobs, torch.tensor([2.0, 3.0])), batch)[0])


def test_the_loss_has_the_bonus_of_the_present_step():
    algorithm = build_algorithm(DapoConfig(entropy=EntropyConfig(target=0.2, step=0.1)), 8)
    assert loss_of(algorithm) == 0.0
    algorithm.entropy.look(0.1)
    assert loss_of(algorithm) == pytest.approx(-0.1 * 5)
    assert pickle.loads(pickle.dumps(algorithm)).entropy.coefficient == 0.1, "other ranks take the same"
    algorithm.entropy.look(0.3)
    assert loss_of(algorithm) == 0.0


def test_completions_without_an_advantage_are_passed_where_a_bonus_may_act():
    algorithm = build_algorithm(DapoConfig(entropy=EntropyConfig(target=0.2)), 8)
    assert not algorithm.zero_advantage_is_silent and not algorithm.learns_from_advantages


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": NAN}, r"algorithm\.entropy\.coefficient: expected a number"),
        ({"target": -0.1}, r"algorithm\.entropy\.target: expected 0 \(off\) or more, found -0\.1"),
        ({"target": NAN}, r"algorithm\.entropy\.target"),
        ({"step": 0.0}, r"algorithm\.entropy\.step: expected a number above 0, found 0\.0"),
        ({"target": 0.2, "coefficient": -0.1}, r"algorithm\.entropy\.coefficient: expected 0 or more with"),
        ({"target": 0.2, "most": 0.001}, r"algorithm\.entropy\.most: expected null, or at least"),
        ({"target": 0.2, "coefficient": 1.0, "most": 0.5}, r"algorithm\.entropy\.most"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        EntropyConfig(**settings)
