"""The metrics of a step: plain numbers from groups and loss sums.

A mean or an extreme of nothing is NaN, which the run's folder writes as null; it is never 0.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import pstdev

import numpy as np

from model.engine.base import LossSums, StepResult
from model.processing.tokenizer import Tokenizer
from rewards.answers import parse_completion
from rlhf.algorithms.loss_metrics import GAP_POSITIONS
from rlhf.collect import Collected
from rlhf.drawing.ledger import Ledger
from rlhf.trajectory import Group, Trajectory
from rlhf.update import UpdateResult
from rollouts.records import RolloutContext, StoredRollout, name_within
from rollouts.rollout import question_of


class LossTotals:
    """Sums over the micro-batches of one step, whose first update finds the policy at `policy_version`."""

    def __init__(self, policy_version: int = 0) -> None:
        self.policy_version = policy_version
        self._sums = LossSums()
        self.updates: list[StepResult] = []
        self._tokens = {True: 0, False: 0}  # by whether their trajectory has an advantage
        self._tried: set[int] = set()
        self._trained: set[int] = set()

    @property
    def untrained(self) -> set[int]:
        """Indices of the groups none of whose updates was applied."""
        return self._tried - self._trained

    def add_update(self, update: UpdateResult) -> None:
        self.updates.append(update.result)
        indices = {group.group_index for group in update.groups}
        self._tried |= indices
        if update.result.applied:
            self._trained |= indices
        for trajectory in (t for group in update.groups for t in group.trajectories):
            self._tokens[trajectory.has_advantage] += trajectory.num_trained_tokens
        self._sums += update.sums

    def metrics(self) -> dict[str, float]:
        """Means per trained token, extremes, and the optimizer's view."""
        if not self.updates:
            return {"updates": 0.0}
        sums = self._sums.total()
        tokens = sums["tokens"]
        values = {
            "loss": sums["loss"] / len(self.updates),
            "entropy": _share(sums["entropy"], tokens),
            "clip/low_share": _share(sums["clipped_low"], tokens),
            "clip/high_share": _share(sums["clipped_high"], tokens),
            "kl/old": _share(sums["old_kl"], tokens),
            "kl/sampler": _share(sums["sampler_kl"], tokens),
            "ratio/min": sums["ratio_min"] if tokens else math.nan,
            "ratio/max": sums["ratio_max"] if tokens else math.nan,
            "sampler_gap/mean": _share(sums["sampler_gap"], tokens),
            "sampler_gap/max": sums["sampler_gap_max"] if tokens else math.nan,
            "correction/mean": _share(sums["correction"], tokens),
            "learning_rate": self.updates[-1].learning_rate,
            "grad_norm": float(np.max([update.grad_norm for update in self.updates])),
            "skipped_updates": float(sum(not update.applied for update in self.updates)),
            "updates": float(len(self.updates)),
            "trained_tokens": sums["tokens"],
            "zero_advantage_share": _share(self._tokens[False], sum(self._tokens.values())),
        }
        for tower in self.updates[-1].tower_norms:
            values[f"grad_norm/{tower}"] = float(np.max([update.tower_norms[tower] for update in self.updates]))
        for first in GAP_POSITIONS:
            if f"tokens_from_{first}" in sums:
                gap = sums[f"sampler_gap_from_{first}"] / sums[f"tokens_from_{first}"]
                values[f"sampler_gap/from_{first}"] = gap
        if "ref_kl" in sums:
            values["kl/reference"] = _share(sums["ref_kl"], tokens)
        if "dual_clipped" in sums:
            values["clip/dual_share"] = _share(sums["dual_clipped"], tokens)
        if "routes_replayed" in sums:
            values["routing/agreement"] = _share(sums["routes_agreed"], sums["routes_replayed"])
        for name in ("balance", "expert_entropy"):
            if name in sums:
                values[name] = sums[name] / len(self.updates)
        return values


def step_metrics(collected: Collected, totals: LossTotals, ledger: Ledger) -> dict[str, float]:
    """Everything metrics.jsonl keeps of a step, times aside. Rewards and accuracy are over all groups of the step."""
    groups = collected.sampled
    return {**reward_metrics(groups), **_group_metrics(collected, groups, totals, ledger), **totals.metrics()}


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, accuracy and lengths over the completions of some groups."""
    trajectories = [t for group in groups for t in group.trajectories]
    scored = [t for t in trajectories if t.is_scored]
    lengths = [len(t.rollout.completion_ids) for t in trajectories]
    metrics = {
        "reward": _mean([t.reward.value or 0.0 for t in scored]),
        "reward/shaped": _mean([t.shaped_reward for t in scored]),
        "accuracy": _mean([float(t.reward.correct) for t in scored if t.reward.is_judged]),
        "answer_share": _mean([float(t.reward.answer is not None) for t in trajectories]),
        "length/mean": _mean(lengths),
        "length/max": float(max(lengths, default=math.nan)),
        "overlong_share": _mean([float(t.is_overlong) for t in trajectories]),
        "unscorable_share": 1.0 - _share(len(scored), len(trajectories)),
        "completion_tokens": float(sum(lengths)),
    }
    for name in sorted({part for t in scored for part in t.reward.parts}):
        values = [value for t in scored if (value := t.reward.parts.get(name)) is not None]
        metrics[f"reward/{name}"] = _mean(values)
    return metrics


def _group_metrics(collected: Collected, groups: list[Group], totals: LossTotals, ledger: Ledger) -> dict[str, float]:
    reasons = Counter(reason for _, reason in collected.dropped)
    ages = [float(totals.policy_version - group.policy_version) for group in collected.groups]
    rewards = [[t.shaped_reward for t in group.scored] for group in groups if group.scored]
    metrics = {
        "groups/drawn": float(collected.num_drawn),
        "groups/trained": float(len(collected.groups)),
        "groups/kept": float(len(collected.kept)),
        "groups/dead_share": _share(len(collected.dropped), len(groups)),
        "groups/reward_spread": _mean([pstdev(values) for values in rewards]),
        "policy_age/mean": _mean(ages),
        "policy_age/max": max(ages, default=math.nan),
        **collected.metrics,
        **_staleness(collected.groups, totals.policy_version),
        "ledger/draws": float(ledger.next_draw),
        "ledger/trained": float(ledger.trained),
        "ledger/in_flight": float(len(ledger.in_flight)),
    }
    for reason, count in sorted(reasons.items()):
        metrics[f"dropped/{reason}"] = float(count)
        metrics[f"dead_share/{reason}"] = _share(count, len(groups))
    return metrics


def _staleness(groups: Sequence[Group], policy_version: int) -> dict[str, float]:
    """How many versions older than the policy the samplers of the trained tokens were, and the share of each age."""
    ages: Counter[int] = Counter()
    mixed, count = 0, 0
    for trajectory in (t for group in groups for t in group.scored):
        runs = trajectory.rollout.policy_versions
        ends = [*(start for start, _ in runs[1:]), len(trajectory.rollout.completion_ids)]
        for (first, version), after in zip(runs, ends, strict=True):
            ages[policy_version - version] += max(0, after - first)
        mixed += len(runs) > 1
        count += 1
    total = sum(ages.values())
    shares = {f"staleness/share_{age}": tokens / total for age, tokens in sorted(ages.items()) if tokens}
    return {
        "staleness/mean": _share(sum(age * tokens for age, tokens in ages.items()), total),
        "staleness/max": float(max((age for age, tokens in ages.items() if tokens), default=math.nan)),
        "staleness/mixed_share": _share(mixed, count),
        **shares,
    }


def stored_rollouts(
    collected: Collected, tokenizer: Tokenizer, folder: Path, trained: Sequence[Group] = ()
) -> list[dict[str, object]]:
    """Every sampled rollout as JSON data, dropped groups included. `trained` are the step's groups with advantages.

    Images that lie in the run's `folder` are named relative to it, so that the folder may be moved.
    """
    reasons = {group.group_index: reason for group, reason in collected.dropped}
    advantages = {
        (group.group_index, t.rollout.sample_index): t.mean_advantage for group in trained for t in group.trajectories
    }
    return [
        _stored(group, trajectory, tokenizer, folder, reasons.get(group.group_index, ""), advantages)
        for group in collected.sampled
        for trajectory in group.trajectories
    ]


def _stored(
    group: Group,
    trajectory: Trajectory,
    tokenizer: Tokenizer,
    folder: Path,
    dropped: str,
    advantages: Mapping[tuple[int, int], float],
) -> dict[str, object]:
    rollout, reward = trajectory.rollout, trajectory.reward
    text = tokenizer.decode(rollout.completion_ids)
    return StoredRollout(
        group_index=group.group_index,
        prompt_id=group.prompt.id,
        sample_index=rollout.sample_index,
        text=text,
        reference=group.prompt.reference,
        reward=reward.value,
        parts=reward.parts,
        status=reward.status.value,
        reason=reward.reason,
        dropped=dropped,
        finish_reason=rollout.finish_reason.value,
        policy_version=rollout.policy_versions[0][1],
        completion_ids=rollout.completion_ids,
        context=RolloutContext(
            question=question_of(group.prompt.messages),
            images=[name_within(folder, file) for file in group.files],
            thinking=parse_completion(text).thinking,
            answer=reward.answer,
            advantage=advantages.get((group.group_index, rollout.sample_index)),
            prompt_mode=group.mode.value,
        ),
    ).to_json()


def _mean(values: Sequence[float]) -> float:
    return _share(sum(values), len(values))


def _share(amount: float, total: float) -> float:
    return amount / total if total else math.nan
