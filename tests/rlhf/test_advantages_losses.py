"""Advantages and losses against hand-worked numbers and independent formulas."""

import math

import pytest
import torch

from rlhf.advantages import group_advantages, overlong_penalty
from rlhf.losses import clipped_surrogate, k3_kl


def test_group_advantages_by_hand():
    assert group_advantages([1.0, 0.0, 0.0, 1.0], divide_by_std=False) == [0.5, -0.5, -0.5, 0.5]
    scaled = group_advantages([1.0, 0.0, 0.0, 1.0], divide_by_std=True)
    assert scaled == pytest.approx([1, -1, -1, 1], rel=1e-5)
    one_of_four = group_advantages([1.0, 0.0, 0.0, 0.0], divide_by_std=True)
    assert one_of_four == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, rel=1e-5)
    assert sum(group_advantages([0.3, 0.1, 0.9, 0.2], divide_by_std=True)) == pytest.approx(0.0, abs=1e-12)


def test_equal_rewards_give_exactly_zero():
    """0.1 cannot be represented: a mean of eight of them differs in the last bit, which must not become a signal."""
    assert group_advantages([0.1] * 8, divide_by_std=True) == [0.0] * 8
    assert group_advantages([0.7] * 3, divide_by_std=False) == [0.0] * 3


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0), (32, 0), (33, 1 / 8), (36, 0.5), (39, 7 / 8), (40, 1), (99, 1)]
)
def test_soft_overlong_punishment(length, expected):
    assert overlong_penalty(length, limit=40, buffer=8, penalty=1.0) == pytest.approx(expected)
    assert overlong_penalty(length, limit=40, buffer=0, penalty=2.0) == (2.0 if length >= 40 else 0.0)


def test_clipped_surrogate_by_hand():
    """Ratios 1.5, 1.5, 0.5, 0.5, 1.1 against advantages +, -, +, -, +, bounds 0.8 and 1.28."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 9.0], dtype=torch.float64)
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, 5.0], dtype=torch.float64)
    mask = torch.tensor([True] * 5 + [False])
    weights = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    old = torch.full((6,), -1.0, dtype=torch.float64)
    policy = (old + ratio.log()).requires_grad_()
    loss, metrics = clipped_surrogate(policy, old, advantage, mask, weights, 0.2, 0.28)
    # min(1.5*2, 1.28*2) + min(-3, -2.56) + 0.5*min(1, 1.6) + min(-1, -1.6) + 1.1
    assert loss.item() == pytest.approx(-(2.56 - 3.0 + 0.5 - 1.6 + 1.1))
    loss.backward()
    # Clipped tokens (first and fourth) and the masked one have no gradient; the others -weight * ratio * A.
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, 3.0, -0.5, 0.0, -1.1, 0.0])
    assert (metrics["clipped_low"], metrics["clipped_high"]) == (1.0, 1.0)
    assert metrics["ratio_max"] == pytest.approx(1.5)
    assert metrics["ratio_min"] == pytest.approx(0.5)


def test_extreme_ratios_stay_finite():
    policy = torch.tensor([-1e4, 0.0], requires_grad=True)
    loss, _ = clipped_surrogate(
        policy, torch.tensor([0.0, -1e4]), torch.tensor([1.0, 1.0]), torch.tensor([True, True]), torch.ones(2), 0.2, 0.2
    )
    loss.backward()
    assert torch.isfinite(loss) and policy.grad is not None and torch.isfinite(policy.grad).all()


def test_k3_is_an_unbiased_estimate_of_the_kl():
    """Exact expectation over a 5-letter alphabet: E_policy[k3] = KL(policy, reference)."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(5, generator=generator, dtype=torch.float64).softmax(0)
    q = torch.randn(5, generator=generator, dtype=torch.float64).softmax(0)
    expectation = k3_kl(p.log(), q.log(), torch.ones(5, dtype=torch.bool), p)
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-12)
    masked = k3_kl(p.log(), q.log(), torch.zeros(5, dtype=torch.bool), p)
    assert masked.item() == 0.0
