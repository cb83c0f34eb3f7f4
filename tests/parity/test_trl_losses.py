"""Same tensors, same loss and gradient as TRL 1.16, for every loss that both have.

TRL's own `_compute_loss` runs on a stand-in for its trainer that hands it the log-probabilities. float64; both sides
differ in summation order alone: 1e-6 relative is the bar, 1e-10 is what is asserted.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from model.logprobs import TokenScores
from rewards.result import RewardResult
from rlhf.algorithms.config import ALGORITHM_CONFIGS as BUNDLES
from rlhf.algorithms.config import (
    Correction,
    CorrectionConfig,
    KlConfig,
    KlEstimator,
    KlPlace,
    LossNormalisation,
    RatioLevel,
)
from rlhf.algorithms.entropy import EntropyConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.trajectory import Group, PolicyBatch, Trajectory
from rollouts.rollout import FinishReason, Prompt, Rollout
from tests.conftest import require_extra

B, T, LIMIT = 6, 9, 12
LENGTHS = torch.tensor([9, 3, 5, 1, 7, 4])


@pytest.fixture(scope="module")
def trainers():
    """TRL's two trainer classes; importing them takes seconds."""
    require_extra("trl", "trl")
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    return GRPOTrainer, RLOOTrainer


class Tensors:
    """Random log-probabilities [B, T] of four models, advantages [B]; log-ratios wide enough to clip both ways."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(scale: float) -> torch.Tensor:
            return scale * torch.randn(B, T, generator=generator, dtype=torch.float64)

        self.old = -1.0 - noise(1.0).abs()
        self.policy = self.old + noise(0.4)
        self.rollout = self.old + noise(0.5)
        self.ref = self.old + noise(0.5)
        self.entropy = noise(1.0).abs()
        self.advantages = torch.randn(B, generator=generator, dtype=torch.float64)
        self.mask = (torch.arange(T) < LENGTHS[:, None]).long()
        self.mask[0, 4:6] = 0  # a tool's turn


def trl_loss(trainer_class, tensors: Tensors, ratio: torch.Tensor | None = None, **settings):
    """(loss, gradient with respect to the policy's log-probs [B, T]) of TRL."""
    policy, entropy = tensors.policy.clone().requires_grad_(), tensors.entropy.clone().requires_grad_()
    accelerator = SimpleNamespace(
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
        sync_gradients=True,
    )
    args = SimpleNamespace(delta=settings.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1)
    args.sapo_temperature_pos, args.sapo_temperature_neg = 1.0, 1.05  # the defaults of its config
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (policy, entropy, None),
        _metrics={"train": defaultdict(list)},
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=args,
        current_gradient_accumulation_steps=1,
        max_completion_length=LIMIT,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        use_vllm=ratio is not None,
        vllm_importance_sampling_correction=ratio is not None,
        **{"beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"},
        **{"_entropy_bonus_enabled": False, "use_adaptive_entropy": False, "entropy_coef": 0.0},
    )
    vars(trainer).update(settings)
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs = {
        **{"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids},
        "completion_mask": tensors.mask,
        "advantages": tensors.advantages,
        "old_per_token_logps": tensors.old,
        "old_logps": (tensors.old * tensors.mask).sum(1),
        "ref_per_token_logps": tensors.ref,
        "num_items_in_batch": tensors.mask.sum(),
        "importance_sampling_ratio": ratio,
    }
    loss = trainer_class._compute_loss(trainer, None, inputs)
    loss.backward()
    gradients = [x.grad if x.grad is not None else torch.zeros_like(x) for x in (policy, entropy)]
    return loss.item(), *gradients


def our_loss(config, tensors: Tensors):
    """The same of ours, over packed tokens without the padding."""
    algorithm = build_algorithm(config, LIMIT)
    real = torch.arange(T) < LENGTHS[:, None]
    policy, entropy = tensors.policy.clone().requires_grad_(), tensors.entropy.clone().requires_grad_()
    mask = tensors.mask[real].bool()
    sequence = torch.repeat_interleave(torch.arange(B), LENGTHS)
    trained = tensors.mask.sum(1).double()
    weights = (1.0 / trained if algorithm.mean_per_sequence else torch.ones(B, dtype=torch.float64))[sequence]
    batch = PolicyBatch(
        inputs=None,  # type: ignore[arg-type]
        loss_mask=mask,
        advantages=tensors.advantages[sequence],
        rollout_logprobs=tensors.rollout[real],
        old_logprobs=tensors.old[real],
        ref_logprobs=tensors.ref[real] if algorithm.needs_reference else None,
        sequence=sequence,
        token_weights=weights,
    )
    loss, _ = algorithm.loss(TokenScores(policy[real], entropy[real]), batch)
    loss = loss / algorithm.denominator([as_group(tensors)])
    loss.backward()
    gradients = [x.grad if x.grad is not None else torch.zeros_like(x) for x in (policy, entropy)]
    return loss.item(), *gradients


def as_group(tensors: Tensors) -> Group:
    """Only what a denominator counts."""
    trajectories = []
    for i, length in enumerate(LENGTHS.tolist()):
        mask = tensors.mask[i, :length].tolist()
        rollout = Rollout(0, "p", i, [1], [2] * length, mask, [0.0] * length, ((0, 0),), FinishReason.stop)
        trajectories.append(Trajectory(rollout, RewardResult(0.0, {}), 0.0))
    return Group(0, Prompt("p", [], "1"), (), tuple(trajectories))


def assert_same(ours, theirs) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert (mine - other).abs().max() <= 1e-10 * max(other.abs().max().item(), 1e-300)


NO_KL = KlConfig(0.0)
CASES = {
    "grpo": (replace(BUNDLES["grpo"](), kl=NO_KL), {"loss_type": "grpo"}),
    "grpo with KL": (BUNDLES["grpo"](), {"loss_type": "grpo", "beta": 0.04}),
    "bnpo": (replace(BUNDLES["grpo"](), kl=NO_KL, normalisation=LossNormalisation.tokens), {"loss_type": "bnpo"}),
    "dr_grpo": (BUNDLES["dr_grpo"](), {"loss_type": "dr_grpo"}),
    "dr_grpo with KL": (replace(BUNDLES["dr_grpo"](), kl=KlConfig(0.1)), {"loss_type": "dr_grpo", "beta": 0.1}),
    "dapo": (BUNDLES["dapo"](), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo with KL": (
        replace(BUNDLES["dapo"](), kl=KlConfig(0.2)),
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.2},
    ),
    "dapo with an entropy bonus": (
        replace(BUNDLES["dapo"](), entropy=EntropyConfig(0.05)),
        {"loss_type": "dapo", "epsilon_high": 0.28, "_entropy_bonus_enabled": True, "entropy_coef": 0.05},
    ),
    "dual clip": (replace(BUNDLES["dapo"](), dual_clip=1.4), {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.4}),
    "gspo": (
        replace(BUNDLES["gspo"](), clip_low=0.05, clip_high=0.06),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
    ),
    "gspo with KL": (
        replace(BUNDLES["gspo"](), kl=KlConfig(0.1)),
        {
            **{"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1},
            **{"epsilon_low": 3e-4, "epsilon_high": 4e-4},
        },
    ),
    "cispo": (replace(BUNDLES["cispo"](), clip_high=0.3), {"loss_type": "cispo", "epsilon_high": 1.3}),
    "sapo": (BUNDLES["sapo"](), {"loss_type": "sapo"}),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(trainers, name, seed):
    config, settings = CASES[name]
    tensors = Tensors(seed)
    ours, theirs = our_loss(config, tensors), trl_loss(trainers[0], tensors, **settings)
    assert_same(ours, theirs)
    assert theirs[1].abs().max() > 0


@pytest.mark.parametrize("rule", [rule for rule in Correction if rule is not Correction.none])
@pytest.mark.parametrize("name", ["dapo", "cispo", "grpo"])
def test_sampler_correction(trainers, name, rule):
    """TRL computes the weights where it scores; its four modes are written out here from its source."""
    cap = 1.3
    tensors = Tensors(2)
    difference = (tensors.old - tensors.rollout) * tensors.mask
    ratio = (difference.sum(-1, keepdim=True) if rule.value.startswith("sequence") else difference).exp()
    ratio = ratio.clamp(max=cap) if rule.value.endswith("truncate") else ratio.masked_fill(ratio > cap, 0.0)
    config, settings = CASES[name]
    config = replace(config, correction=CorrectionConfig(rule, cap))
    assert (ratio != (difference.sum(-1, keepdim=True) if ratio.shape[1] == 1 else difference).exp()).any()
    assert_same(our_loss(config, tensors), trl_loss(trainers[0], tensors, ratio=ratio, **settings))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rloo(trainers, seed):
    tensors = Tensors(seed)
    tensors.policy = tensors.old + 0.2 * (tensors.policy - tensors.old)  # products of ratios: keep some unclipped
    config = replace(BUNDLES["rloo"](), kl=NO_KL)
    assert config.ratio_level is RatioLevel.whole_sequence
    ours, theirs = our_loss(config, tensors), trl_loss(trainers[1], tensors)
    assert_same(ours, theirs)
    assert theirs[1].abs().max() > 0


def test_rloo_advantages_with_kl_in_the_reward():
    """By TRL's own lines: rewards less beta times the summed k1, each minus the mean of the other two."""
    beta, tensors = 0.05, Tensors(3)
    algorithm = build_algorithm(BUNDLES["rloo"](), LIMIT)
    assert algorithm.config.kl == KlConfig(beta, KlEstimator.k1, KlPlace.reward)
    group = as_group(tensors)
    rewards = torch.tensor([0.1, 1.0, 0.0, 1.0, 0.9, 0.0], dtype=torch.float64)
    trajectories = [
        replace(
            t,
            shaped_reward=rewards[i].item(),
            ref_logprobs=tensors.ref[i, : LENGTHS[i]],
            rollout=replace(t.rollout, rollout_logprobs=tensors.old[i, : LENGTHS[i]].tolist()),
        )
        for i, t in enumerate(group.trajectories)
    ]
    (assigned,) = algorithm.assign_advantages([group.with_trajectories(trajectories)])
    kl = ((tensors.old - tensors.ref) * tensors.mask).sum(-1)
    penalised = rewards - beta * kl
    baselines = (penalised.sum() - penalised) / (B - 1)
    expected = (penalised - baselines).tolist()
    assert [t.advantage for t in assigned.trajectories] == pytest.approx(expected, rel=1e-10)
