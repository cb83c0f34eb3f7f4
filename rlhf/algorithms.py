"""Algorithms as named bundles: reward shaping, group filter, advantages, loss and its denominator.

To add one: a config class in `rlhf/config.py`, its YAML in `conf/algorithm/`, a line in `ALGORITHMS` here and in
`conf/schema.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from model.logprobs import TokenScores
from rewards.result import RewardResult
from rlhf.advantages import group_advantages, overlong_penalty
from rlhf.config import AdvantageScale, AlgorithmConfig, DapoConfig, GrpoConfig, LossNormalisation
from rlhf.filters import drop_reason
from rlhf.losses import clipped_surrogate, k3_kl
from rlhf.trajectory import Group, PolicyBatch
from rollouts.rollout import Rollout

Config = TypeVar("Config", bound=AlgorithmConfig)


class Algorithm(Generic[Config]):
    """A clipped policy-gradient algorithm; the config holds its differences."""

    def __init__(self, config: Config, max_completion_tokens: int) -> None:
        self.config = config
        self.max_completion_tokens = max_completion_tokens

    @property
    def mean_per_sequence(self) -> bool:
        return self.config.normalisation is LossNormalisation.sequences

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_coefficient > 0

    def shape_reward(self, reward: RewardResult, rollout: Rollout) -> float:
        """The reward after the algorithm's own terms."""
        return reward.value or 0.0

    def drop_reason(self, group: Group) -> str:
        """Empty when the group trains."""
        return drop_reason(group, self.config.group_filter)

    def assign_advantages(self, group: Group) -> Group:
        """The group's scored trajectories with advantages; unscorable ones are left out of mean and loss."""
        scored = group.scored
        divide = self.config.advantage_scale is AdvantageScale.group_std
        advantages = group_advantages([t.shaped_reward for t in scored], divide)
        return group.with_trajectories([replace(t, advantage=a) for t, a in zip(scored, advantages, strict=True)])

    def denominator(self, groups: Sequence[Group]) -> float:
        """What one update's loss sum is divided by: trained tokens, or trajectories."""
        trajectories = [t for group in groups for t in group.scored]
        if self.mean_per_sequence:
            return float(len(trajectories))
        return float(sum(sum(t.rollout.completion_mask) for t in trajectories))

    def loss(self, scores: TokenScores, batch: PolicyBatch) -> tuple[Tensor, dict[str, float]]:
        """Sum of the loss over the micro-batch; without stored old log-probs the ratio is exactly 1."""
        policy = scores.logprobs
        old = policy.detach() if batch.old_logprobs is None else batch.old_logprobs
        loss_sum, metrics = clipped_surrogate(
            policy,
            old,
            batch.advantages,
            batch.loss_mask,
            batch.token_weights,
            self.config.clip_low,
            self.config.clip_high,
        )
        if batch.ref_logprobs is not None:
            kl_sum = k3_kl(policy, batch.ref_logprobs, batch.loss_mask, batch.token_weights)
            loss_sum = loss_sum + self.config.kl_coefficient * kl_sum
            metrics["ref_kl"] = float(k3_kl(policy.detach(), batch.ref_logprobs, batch.loss_mask, batch.loss_mask))
        with torch.no_grad():
            gap = (policy.detach() - batch.rollout_logprobs).abs()[batch.loss_mask]
            metrics["tokens"] = float(batch.loss_mask.sum())
            metrics["entropy"] = float(scores.entropy[batch.loss_mask].sum())
            metrics["sampler_gap"] = float(gap.sum())
            metrics["sampler_gap_max"] = float(gap.max()) if gap.numel() else 0.0
        return loss_sum, metrics


class Grpo(Algorithm[GrpoConfig]):
    """GRPO (arXiv 2402.03300)."""


class Dapo(Algorithm[DapoConfig]):
    """DAPO (arXiv 2503.14476): GRPO with other defaults, plus the soft overlong punishment."""

    def shape_reward(self, reward: RewardResult, rollout: Rollout) -> float:
        length = len(rollout.completion_ids)
        if rollout.finish_reason.value == "stop" and length == self.max_completion_tokens:
            length -= 1  # it ended by itself on the last token; only an unfinished one takes the whole penalty
        penalty = overlong_penalty(
            length, self.max_completion_tokens, self.config.overlong_buffer, self.config.overlong_penalty
        )
        return super().shape_reward(reward, rollout) - penalty


ALGORITHMS: dict[str, type[Algorithm]] = {"grpo": Grpo, "dapo": Dapo}


def build_algorithm(config: AlgorithmConfig, max_completion_tokens: int) -> Algorithm:
    """The registered algorithm of a config. `ValueError` names the known ones."""
    if config.name not in ALGORITHMS:
        raise ValueError(f"algorithm.name: expected one of {sorted(ALGORITHMS)}, found {config.name!r}")
    return ALGORITHMS[config.name](config, max_completion_tokens)
