"""Losses against hand-worked numbers and independent formulas."""

import math

import pytest
import torch

from rlhf.algorithms.config import Correction, KlEstimator, RatioLevel
from rlhf.algorithms.losses import (
    clipped_objective,
    correction_weights,
    detached_clip_objective,
    gated_objective,
    geometric_objective,
    kl_estimate,
    log_ratio,
    sequence_sums,
    token_covariances,
)

ALL = torch.tensor([True] * 5)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sequence_sums_go_back_to_every_token():
    sequence = torch.tensor([0, 0, 1, 2, 2])
    assert sequence_sums(doubles(1, 2, 4, 8, 16), sequence).tolist() == [3, 3, 4, 24, 24]
    assert sequence_sums(doubles(), torch.tensor([], dtype=torch.long)).tolist() == []


def test_log_ratios_of_the_three_levels():
    """Two trajectories of 3 and 2 tokens; the third token does not train, so it counts in no mean."""
    policy, old = doubles(-1, -2, -9, -1, -3), doubles(-2, -2.5, -1, -3, -2)
    mask, sequence = torch.tensor([True, True, False, True, True]), torch.tensor([0, 0, 0, 1, 1])
    assert log_ratio(policy, old, mask, sequence, RatioLevel.token).tolist() == [1, 0.5, 0, 2, -1]
    assert log_ratio(policy, old, mask, sequence, RatioLevel.sequence).tolist() == [0.75, 0.75, 0, 0.5, 0.5]
    assert log_ratio(policy, old, mask, sequence, RatioLevel.whole_sequence).tolist() == [1.5, 1.5, 0, 1, 1]


def test_clipped_objective_and_its_gradient_by_hand():
    """Ratios 1.5, 1.5, 0.5, 0.5, 1.1 against advantages +, -, +, -, +, bounds 0.8 and 1.28."""
    logs = doubles(1.5, 1.5, 0.5, 0.5, 1.1).log().requires_grad_()
    objective = clipped_objective(logs, doubles(2, -2, 2, -2, 1), 0.2, 0.28)
    assert objective.tolist() == pytest.approx([2.56, -3.0, 1.0, -1.6, 1.1])
    objective.sum().backward()
    assert logs.grad is not None
    # Clipped tokens (first and fourth) have no gradient; the others ratio * A.
    assert logs.grad.tolist() == pytest.approx([0.0, -3.0, 1.0, 0.0, 1.1])


def test_dual_clip_holds_the_loss_of_a_bad_token_that_became_likely():
    """A = -2: at ratio 5 PPO's objective is -10; with c = 3 it is -6 and has no gradient. A > 0 is untouched."""
    logs = doubles(5, 2, 5).log().requires_grad_()
    objective = clipped_objective(logs, doubles(-2, -2, 2), 0.2, 0.2, dual_clip=3.0)
    assert objective.tolist() == pytest.approx([-6.0, -4.0, 2.4])
    objective.sum().backward()
    assert logs.grad is not None and logs.grad.tolist() == pytest.approx([0.0, -4.0, 0.0])


def test_detached_clip_keeps_the_gradient_of_clipped_tokens():
    """CISPO: weight min(ratio, 5) without gradient, so d/d(ln p) = weight * A even at ratio 9."""
    policy = doubles(-1, -2).requires_grad_()
    objective = detached_clip_objective(
        policy - (policy.detach() - doubles(9, 0.5).log()), policy, doubles(1, -3), 1.0, 4.0
    )
    assert objective.tolist() == pytest.approx([5 * 1 * -1, 0.5 * -3 * -2])
    objective.sum().backward()
    assert policy.grad is not None and policy.grad.tolist() == pytest.approx([5.0, -1.5])


def test_extreme_ratios_stay_finite():
    logs = doubles(-1e4, 1e4).requires_grad_()
    objective = clipped_objective(logs, doubles(1, -1), 0.2, 0.2)
    objective.sum().backward()
    assert torch.isfinite(objective).all() and logs.grad is not None and torch.isfinite(logs.grad).all()


@pytest.mark.parametrize(
    ("estimator", "expected"), [(KlEstimator.k1, 0.5), (KlEstimator.k2, 0.125), (KlEstimator.k3, math.exp(-0.5) - 0.5)]
)
def test_kl_estimators_by_hand(estimator, expected):
    found = kl_estimate(doubles(-1.0, -1.0), doubles(-1.5, -7.0), torch.tensor([True, False]), estimator)
    assert found.tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("estimator", [KlEstimator.k1, KlEstimator.k3])
def test_k1_and_k3_are_unbiased(estimator):
    """Exact expectation over a 5-letter alphabet: E_policy[k] = KL(policy, other)."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(5, generator=generator, dtype=torch.float64).softmax(0)
    q = torch.randn(5, generator=generator, dtype=torch.float64).softmax(0)
    expectation = (p * kl_estimate(p.log(), q.log(), ALL, estimator)).sum()
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-12)


def test_k2_has_the_gradient_of_the_kl():
    """E_policy[d k2] = d KL (arXiv 2506.09477): checked over the whole alphabet, samples detached."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    q = torch.randn(5, generator=generator, dtype=torch.float64).softmax(0)
    logp = logits.log_softmax(0)
    (by_k2,) = torch.autograd.grad(
        (logp.exp().detach() * kl_estimate(logp, q.log(), ALL, KlEstimator.k2)).sum(), logits, retain_graph=True
    )
    (exact,) = torch.autograd.grad((logp.exp() * (logp - q.log())).sum(), logits)
    assert torch.allclose(by_k2, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Correction.none, [1, 1, 1, 1, 1]),
        (Correction.token_truncate, [2, 0.5, 1, 1, 2]),
        (Correction.token_mask, [0, 0.5, 1, 1, 2]),
        (Correction.sequence_truncate, [1.5, 1.5, 1, 2, 2]),
        (Correction.sequence_mask, [1.5, 1.5, 1, 2, 2]),
    ],
)
def test_correction_weights_by_hand(rule, expected):
    """Weights 3, 1/2, (masked) and 1, 2; products 1.5 and 2; cap 2."""
    rollout = doubles(-1, -1, -1, -1, -1)
    old = rollout + doubles(3, 0.5, 7, 1, 2).log()
    mask, sequence = torch.tensor([True, True, False, True, True]), torch.tensor([0, 0, 0, 1, 1])
    assert correction_weights(old, rollout, mask, sequence, rule, 2.0).tolist() == pytest.approx(expected)


def test_sequence_correction_above_the_cap():
    old, sequence = doubles(1.5, 1.5).log(), torch.tensor([0, 0])
    mask, rollout = torch.tensor([True, True]), doubles(0, 0)
    weights = [
        correction_weights(old, rollout, mask, sequence, rule, 2.0).tolist()
        for rule in (Correction.sequence_truncate, Correction.sequence_mask)
    ]
    assert weights == [[2.0, 2.0], [0.0, 0.0]]


def test_correction_has_no_gradient():
    old = doubles(-1.0).requires_grad_()
    weights = correction_weights(old, doubles(-2.0), ALL[:1], torch.tensor([0]), Correction.token_truncate, 9.0)
    assert not weights.requires_grad


def test_the_gate_of_sapo_by_hand():
    """At ratio 1 the gradient is that of ratio * A; far away it fades, sooner for negative advantages."""
    logs = doubles(1, 1, 3, 3).log().requires_grad_()
    objective = gated_objective(logs, doubles(2, -2, 2, -2), 1.0, 2.0)
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0, 0, 2, 4)]
    assert objective.tolist() == pytest.approx([8 * sigmoid[0], -4 * sigmoid[1], 8 * sigmoid[2], -4 * sigmoid[3]])
    objective.sum().backward()
    assert logs.grad is not None
    slopes = [4 * s * (1 - s) for s in sigmoid]  # 1 at ratio 1
    assert logs.grad.tolist() == pytest.approx([2 * slopes[0], -2 * slopes[1], 6 * slopes[2], -6 * slopes[3]])


def test_the_geometric_mean_of_gmpo_by_hand():
    """Two sequences; the third token does not train. Bounds of the log ratio: 0.4 above for A > 0, -0.4 for A < 0."""
    logs = doubles(0.6, -0.2, 9, -0.9, 0.3).requires_grad_()
    mask, sequence = torch.tensor([True, True, False, True, True]), torch.tensor([0, 0, 0, 1, 1])
    objective = geometric_objective(logs, doubles(2, 2, 2, -1, -1), mask, sequence, 0.4, 0.4)
    first, second = math.exp((0.4 - 0.2) / 2), math.exp((-0.4 + 0.3) / 2)
    assert objective[mask].tolist() == pytest.approx([2 * first, 2 * first, -second, -second])
    (objective * mask).sum().backward()
    assert logs.grad is not None
    # Clipped tokens have no gradient; the others get that of their sequence's ratio, once for each of its two tokens.
    assert logs.grad.tolist() == pytest.approx([0, 2 * first, 0, 0, -second])


def test_covariances_are_over_trained_tokens_alone():
    mask = torch.tensor([True, False, True])
    found = token_covariances(doubles(-1, -50, -3), doubles(2, 9, 0), mask)
    assert found.tolist() == [1.0, -math.inf, 1.0]
    assert token_covariances(doubles(-1), doubles(1), torch.tensor([False])).tolist() == [-math.inf]
