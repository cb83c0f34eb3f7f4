"""The parts of every algorithm: reward shaping, group filter, advantages, loss, denominator, from one config."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from model.logprobs import TokenScores
from rewards.result import RewardResult
from rlhf.algorithms.advantages import EPSILON, centred_rewards, deviations, overlong_penalty
from rlhf.algorithms.config import (
    AdvantageScale,
    AlgorithmConfig,
    Baseline,
    KlPlace,
    LossNormalisation,
    RatioLevel,
)
from rlhf.algorithms.entropy import EntropyControl
from rlhf.algorithms.filters import drop_reason
from rlhf.algorithms.loss_metrics import loss_metrics
from rlhf.algorithms.losses import clipped_objective, correction_weights, kl_estimate, log_ratio
from rlhf.trajectory import Group, PolicyBatch, Trajectory
from rollouts.rollout import FinishReason, Rollout

Config = TypeVar("Config", bound=AlgorithmConfig)


class Algorithm(Generic[Config]):
    """A policy-gradient algorithm over groups. Most differ in their config alone; others override a method."""

    clips_any_sign = False
    """Whether the bounds of the ratio hold whatever the advantage's sign, which is how clipped tokens are counted."""
    advantage_scales_objective = True
    """Whether the objective is the advantage times something, and so has no gradient where that is 0. A class that
    replaces `objective` or `loss` has to say so itself; it is False until then."""

    def __init_subclass__(cls) -> None:
        bases = [base for base in cls.__bases__ if issubclass(base, Algorithm)]
        replaced = any(
            getattr(cls, name) is not getattr(base, name)
            for base in bases
            for name in ("objective", "token_objective", "loss")
        )
        if replaced and "advantage_scales_objective" not in vars(cls):
            cls.advantage_scales_objective = False

    def __init__(self, config: Config, max_completion_tokens: int) -> None:
        self.config = config
        self.entropy = EntropyControl(config.entropy)
        self.max_completion_tokens = max_completion_tokens

    @property
    def mean_per_sequence(self) -> bool:
        """Whether a token weighs 1 / (trained tokens of its trajectory) instead of 1."""
        return self.config.normalisation is LossNormalisation.sequences

    @property
    def needs_reference(self) -> bool:
        return self.config.kl.coefficient > 0

    @property
    def learns_from_advantages(self) -> bool:
        """Whether an update whose advantages are all 0 teaches nothing; a KL term only pulls back to the reference."""
        return self.advantage_scales_objective and not self.entropy.may_act

    @property
    def zero_advantage_is_silent(self) -> bool:
        """Whether a trajectory whose advantage is 0 adds exactly nothing to the gradient of the loss."""
        return self.learns_from_advantages and not (self.needs_reference and self.config.kl.place is KlPlace.loss)

    def shape_reward(self, reward: RewardResult, rollout: Rollout) -> float:
        """The reward after the algorithm's own terms."""
        value = reward.value or 0.0
        rule = self.config.overlong
        if not rule.punishes:
            return value
        length = len(rollout.completion_ids)
        if rollout.finish_reason is FinishReason.stop and length == self.max_completion_tokens:
            length -= 1  # it ended by itself on the last token; only an unfinished one takes the whole penalty
        buffer = max(1, self.max_completion_tokens // 5) if rule.buffer is None else rule.buffer
        return value - overlong_penalty(length, self.max_completion_tokens, buffer, rule.penalty)

    def drop_reason(self, group: Group) -> str:
        """Empty when the group trains."""
        return drop_reason(group, self.config.group_filter, self.config.overlong.masks)

    def assign_advantages(self, groups: Sequence[Group]) -> list[Group]:
        """The groups of one step with those trajectories that train, each with its advantage.

        Unscorable trajectories enter nothing. Masked overlong ones count in baselines and then leave.
        """
        scored = [group.scored for group in groups]
        weights = [[self._statistical_weight(t) for t in group] for group in scored]
        rewards = [[self._reward(t) for t in group] for group in scored]
        centred = centred_rewards(rewards, weights, self.config.baseline)
        if self.config.kl.place is KlPlace.reward and self.config.ratio_level is RatioLevel.token:
            assigned = self._token_advantages(scored, centred)
        else:
            divisors = deviations(centred, weights, self.config.advantage_scale)
            assigned = [
                [replace(t, advantage=c / divisor) for t, c in zip(group, values, strict=True)]
                for group, values, divisor in zip(scored, centred, divisors, strict=True)
            ]
        return [
            group.with_trajectories([t for t in trajectories if not (self.config.overlong.masks and t.is_overlong)])
            for group, trajectories in zip(groups, assigned, strict=True)
        ]

    def denominator(self, groups: Sequence[Group]) -> float:
        """The number that divides one update's loss sum. `groups` hold the trajectories that train."""
        trajectories = [t for group in groups for t in group.trajectories]
        match self.config.normalisation:
            case LossNormalisation.tokens:
                return float(sum(t.num_trained_tokens for t in trajectories))
            case LossNormalisation.sequences:
                return float(len(trajectories))
            case LossNormalisation.constant:
                return float(len(trajectories) * self.max_completion_tokens)

    def objective(self, log_ratio: Tensor, policy_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """[N] each, what is maximised at each token. `log_ratio` is ln(policy / old) at the config's level."""
        config = self.config
        return clipped_objective(log_ratio, advantages, config.clip_low, config.clip_high, config.dual_clip)

    def token_objective(self, log_ratio: Tensor, policy_logprobs: Tensor, batch: PolicyBatch) -> Tensor:
        """As `objective`, for algorithms that look at whole sequences or at the micro-batch."""
        return self.objective(log_ratio, policy_logprobs, batch.advantages)

    def loss(self, scores: TokenScores, batch: PolicyBatch) -> tuple[Tensor, dict[str, float]]:
        """Sum of the loss over the micro-batch; without stored old log-probs the ratio is exactly 1."""
        config, mask = self.config, batch.loss_mask
        policy = scores.logprobs
        old = policy.detach() if batch.old_logprobs is None else batch.old_logprobs
        log_ratios = log_ratio(policy, old, mask, batch.sequence, config.ratio_level)
        weights = correction_weights(
            old, batch.rollout_logprobs, mask, batch.sequence, config.correction.rule, config.correction.cap
        )
        objective = self.token_objective(log_ratios, policy, batch)
        if objective.shape != policy.shape:
            raise ValueError(
                f"objective: expected [N] = {list(policy.shape)}, a number for each token, found "
                f"{list(objective.shape)}; mend {type(self).__name__}.objective"
            )
        per_token = -objective * weights
        if config.kl.place is KlPlace.loss and batch.ref_logprobs is not None:
            per_token = per_token + config.kl.coefficient * kl_estimate(
                policy, batch.ref_logprobs, mask, config.kl.estimator
            )
        if self.entropy.coefficient:
            per_token = per_token - self.entropy.coefficient * scores.entropy
        loss_sum = (torch.where(mask, per_token, 0.0) * batch.token_weights).sum()
        return loss_sum, loss_metrics(config, scores, batch, old, log_ratios, weights, self.clips_any_sign)

    def _reward(self, trajectory: Trajectory) -> float:
        """With a KL in the reward of whole completions, less that."""
        if self.config.kl.place is KlPlace.loss or self.config.ratio_level is RatioLevel.token:
            return trajectory.shaped_reward
        return trajectory.shaped_reward - self.config.kl.coefficient * float(self._reference_kl(trajectory).sum())

    def _reference_kl(self, trajectory: Trajectory) -> Tensor:
        """[tokens] of the completion, between the sampling policy and the reference; fp64."""
        assert trajectory.ref_logprobs is not None
        rollout = torch.tensor(trajectory.rollout.rollout_logprobs, dtype=torch.float64)
        mask = torch.tensor(trajectory.rollout.completion_mask, dtype=torch.bool)
        return kl_estimate(rollout, trajectory.ref_logprobs.double(), mask, self.config.kl.estimator)

    def _token_advantages(
        self, scored: Sequence[Sequence[Trajectory]], centred: Sequence[Sequence[float]]
    ) -> list[list[Trajectory]]:
        """Advantages of each token: the centred reward less the KL from there on (REINFORCE++, arXiv 2501.03262)."""
        config = self.config
        penalties = [[config.kl.coefficient * _to_go(self._reference_kl(t)) for t in group] for group in scored]
        values = [[c - p for c, p in zip(cs, ps, strict=True)] for cs, ps in zip(centred, penalties, strict=True)]
        everything = torch.cat([value for group in values for value in group]) if any(values) else torch.zeros(1)
        shift = everything.mean() if config.baseline is Baseline.batch_mean else 0.0
        divisors = deviations(centred, [[1.0] * len(group) for group in centred], config.advantage_scale)
        if config.advantage_scale is AdvantageScale.batch_std:
            divisors = [float(everything.std(correction=0)) + EPSILON] * len(values)
        return [
            [replace(t, token_advantages=((v - shift) / d).tolist()) for t, v in zip(group, vectors, strict=True)]
            for group, vectors, d in zip(scored, values, divisors, strict=True)
        ]

    def _statistical_weight(self, trajectory: Trajectory) -> float:
        """How much a trajectory counts in statistics of the step: as much as in the loss."""
        return float(trajectory.num_trained_tokens) if self.config.normalisation is LossNormalisation.tokens else 1.0


def _to_go(values: Tensor) -> Tensor:
    """Sum of each value and those behind it."""
    return values.flip(0).cumsum(0).flip(0)
