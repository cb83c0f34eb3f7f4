"""Do sampler and trainer agree? Each step looks at some completions, and where they differ, at why."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.collect import StepCollector
from rlhf.trajectory import Group
from rlhf.update import Policy
from rollouts.probe import cause_of, first_difference, probe_engine
from rollouts.rollout import Rollout, RolloutRequest

_LOOKED_AT = 2  # completions of a step, whose log-probs the trainer computes for this alone


@dataclass(frozen=True)
class Gap:
    """Largest |sampler - trainer| over the tokens of a rollout, and whether the present weights wrote it all."""

    rollout: Rollout
    value: float
    is_present: bool


class MismatchWatch:
    """Compares before the update, with the weights that the newest tokens were sampled from."""

    def __init__(self, policy: Policy, limit: float) -> None:
        """Beyond `limit` nats a gap is looked into and warned of."""
        self._policy, self._processor, self._limit = policy, policy.processor, limit

    def look(self, step: int, groups: Sequence[Group], collector: StepCollector) -> dict[str, float]:
        """Metrics of two completions of a group, others each step; a warning on stderr names the cause of a large gap
        and the first differing tensor. Where the trainer replays routes, the gap without that is measured too."""
        chosen = [group for group in groups if group.scored]
        if not chosen:
            return {}
        group = chosen[step % len(chosen)]
        first = step // len(chosen) % len(group.scored)
        group = group.with_trajectories((group.scored * 2)[first : first + min(_LOOKED_AT, len(group.scored))])
        gaps = self._gaps(group)
        present, older = ([gap for gap in gaps if gap.is_present is wanted] for wanted in (True, False))
        metrics = {}
        if older:
            metrics["mismatch/older_weights"] = max(gap.value for gap in older)
        if not present:
            return metrics
        worst = max(present, key=lambda gap: gap.value if gap.value == gap.value else float("inf"))
        metrics["mismatch/present"] = worst.value
        if any(gap.rollout.routes for gap in present):
            own = self._gaps(group, replays=False)
            metrics["mismatch/present_own_routes"] = max(gap.value for gap in own if gap.is_present)
        if not worst.value <= self._limit:
            cause, detail = self._explain(group, worst.rollout, collector)
            metrics[f"mismatch/cause_{cause}"] = 1.0
            print(
                f"step {step}: sampler and trainer differ by {worst.value:.3g} nats at prompt {group.prompt.id}, "
                f"draw {group.group_index} (trainer.max_sampler_gap = {self._limit:g}); {detail}",
                file=sys.stderr,
            )
        return metrics

    def _gaps(self, group: Group, replays: bool = True) -> list[Gap]:
        engine, gaps = self._policy.engine, []
        (found,) = self._policy.packing.logprobs(engine, [group], replays)
        for trajectory, logprobs in zip(group.scored, found, strict=True):
            rollout = trajectory.rollout
            gap = (logprobs - torch.tensor(rollout.rollout_logprobs)).abs().max()
            # After an update in flight, keys and values are still the older weights'.
            is_present = [version for _, version in rollout.policy_versions] == [engine.step_count]
            gaps.append(Gap(rollout, float(gap), is_present))
        return gaps

    def _explain(self, group: Group, rollout: Rollout, collector: StepCollector) -> tuple[str, str]:
        """(cause, what to tell a person)."""
        placeholder = self._processor.placeholder_id
        ids = list(rollout.prompt_ids)
        short = [one for one, before in zip(ids, [-1, *ids], strict=False) if not one == before == placeholder]
        request = RolloutRequest(rollout.group_index, rollout.prompt_id, ids, short, group.images, 1)
        ours = probe_engine(self._policy.engine, request, placeholder, self._processor.config.pixels_per_token)
        for name, theirs in collector.probe(request):
            if difference := first_difference(ours, theirs):
                return cause_of(difference), f"first differing tensor at {name}: {difference}"
        return "decoder", "ids, pixels, weights and embeddings agree where they can be seen: the decoders do not"
