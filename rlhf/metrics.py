"""What a step says about itself: plain numbers from groups and loss sums."""

from typing import Any

from model.engine.base import StepResult
from model.tokenizer import Tokenizer
from rewards.result import Status
from rlhf.collect import Collected
from rlhf.ledger import Ledger
from rollouts.rollout import FinishReason

_MAXIMA = ("ratio_max", "sampler_gap_max")
_MINIMA = ("ratio_min",)


class LossTotals:
    """Sums over the micro-batches of one step."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.updates: list[StepResult] = []

    def add(self, metrics: dict[str, float]) -> None:
        """Add one micro-batch's sums (extremes are kept, not added)."""
        for name, value in metrics.items():
            if name not in self.sums:
                self.sums[name] = value
            elif name in _MAXIMA:
                self.sums[name] = max(self.sums[name], value)
            elif name in _MINIMA:
                self.sums[name] = min(self.sums[name], value)
            else:
                self.sums[name] += value

    def add_update(self, result: StepResult) -> None:
        self.updates.append(result)

    def metrics(self) -> dict[str, float]:
        """Means per trained token, extremes, and the optimizer's view."""
        if not self.updates:
            return {"updates": 0.0}
        tokens = max(1.0, self.sums["tokens"])
        values = {
            "loss": self.sums["loss"] / len(self.updates),
            "entropy": self.sums["entropy"] / tokens,
            "clip/low_share": self.sums["clipped_low"] / tokens,
            "clip/high_share": self.sums["clipped_high"] / tokens,
            "kl/old": self.sums["old_kl"] / tokens,
            "ratio/min": self.sums["ratio_min"],
            "ratio/max": self.sums["ratio_max"],
            "sampler_gap/mean": self.sums["sampler_gap"] / tokens,
            "sampler_gap/max": self.sums["sampler_gap_max"],
            "learning_rate": self.updates[-1].learning_rate,
            "grad_norm": max(update.grad_norm for update in self.updates),
            "skipped_updates": float(sum(not update.applied for update in self.updates)),
            "updates": float(len(self.updates)),
            "trained_tokens": self.sums["tokens"],
        }
        if "ref_kl" in self.sums:
            values["kl/reference"] = self.sums["ref_kl"] / tokens
        return values


def step_metrics(collected: Collected, totals: LossTotals, ledger: Ledger) -> dict[str, float]:
    """Everything metrics.jsonl keeps of a step, times aside. Rewards and accuracy are over all sampled groups."""
    trajectories = [t for group in collected.all_groups for t in group.trajectories]
    scored = [t for t in trajectories if t.reward.status is Status.ok]
    lengths = [len(t.rollout.completion_ids) for t in trajectories]
    num_drawn = len(collected.groups) + len(collected.dropped)
    metrics = {
        "reward": _mean([t.reward.value or 0.0 for t in scored]),
        "reward/shaped": _mean([t.shaped_reward for t in scored]),
        "accuracy": _mean([float(t.reward.correct) for t in scored]),
        "length/mean": _mean(lengths),
        "length/max": float(max(lengths, default=0)),
        "overlong_share": _mean([float(t.rollout.finish_reason is FinishReason.length) for t in trajectories]),
        "unscorable_share": 1.0 - len(scored) / max(1, len(trajectories)),
        "groups/drawn": float(num_drawn),
        "groups/trained": float(len(collected.groups)),
        "groups/dead_share": len(collected.dropped) / max(1, num_drawn),
        "completion_tokens": float(sum(lengths)),
        "ledger/draws": float(ledger.next_draw),
        "ledger/trained": float(ledger.trained),
    }
    for name in sorted({part for t in scored for part in t.reward.parts}):
        metrics[f"reward/{name}"] = _mean(
            [t.reward.parts[name] for t in scored if t.reward.parts.get(name) is not None]
        )
    for reason in sorted({reason for _, reason in collected.dropped}):
        metrics[f"dropped/{reason}"] = float(sum(r == reason for _, r in collected.dropped))
    return {**metrics, **totals.metrics()}


def stored_rollouts(collected: Collected, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Every sampled rollout as plain data, dropped groups included."""
    reasons = {group.draw: reason for group, reason in collected.dropped}
    return [
        {
            "draw": group.draw,
            "prompt_id": group.prompt.id,
            "sample_index": trajectory.rollout.sample_index,
            "text": tokenizer.decode(trajectory.rollout.completion_ids),
            "reference": group.prompt.reference,
            "reward": trajectory.reward.value,
            "parts": trajectory.reward.parts,
            "status": trajectory.reward.status.value,
            "reason": trajectory.reward.reason,
            "dropped": reasons.get(group.draw, ""),
            "finish_reason": trajectory.rollout.finish_reason.value,
            "policy_version": trajectory.rollout.policy_versions[0][1],
            "completion_ids": trajectory.rollout.completion_ids,
        }
        for group in collected.all_groups
        for trajectory in group.trajectories
    ]


def _mean(values: list) -> float:
    return sum(values) / len(values) if values else 0.0
