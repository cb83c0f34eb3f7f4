"""From the groups of a step to optimizer updates that the algorithm's loss asks for."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from model.engine.balance import BalancedLoss, routed_counts
from model.engine.base import LossFn, LossSums, NonFiniteError, Scorer, StepResult, TrainEngine
from model.engine.parts import Costs
from model.processing.processor import Processor
from model.run.folder import RunFolder, Saves
from model.run.printable import names
from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.filters import with_advantage
from rlhf.config import TrainerConfig
from rlhf.trajectory import Group, Packing, PolicyBatch, Trajectory


class Moves(Saves, Protocol):
    """A reference that may become the policy, and is saved with it."""

    def refresh(self) -> None:
        """Become the policy as it is now."""
        ...


@dataclass(frozen=True)
class Policy:
    """The trained weights and, when the algorithm asks for KL, frozen ones: those it started from, or later ones."""

    engine: TrainEngine
    reference: Scorer | None
    processor: Processor
    micro_batch_tokens: int
    moving: "Moves | None" = None  # the reference once more, where it may become the policy

    @property
    def saves(self) -> Saves:
        """The part that writes and reads the engine's files in a checkpoint, those of a moving reference among them."""
        return self.moving or self.engine

    @property
    def packing(self) -> Packing:
        """How groups become micro-batches for this engine."""
        processor = self.processor
        pixels_per_token = processor.config.pixels_per_token
        num_parts = self.engine.num_parts
        costs = Costs.of(processor.config) if num_parts > 1 else None
        return Packing(self.micro_batch_tokens, processor.placeholder_id, pixels_per_token, num_parts, costs)


@dataclass(frozen=True)
class Update:
    """One optimizer update: the groups of a mini-batch, packed into micro-batches."""

    groups: Sequence[Group]
    batches: list[PolicyBatch]  # those of the trajectories that are passed: see `trainer.skip_zero_advantage`
    balance_coefficient: float = 0.0
    routed: Tensor | None = None  # [L, E] pairs that the routers of an MoE sent where, over the step


@dataclass(frozen=True)
class UpdateResult:
    """The step that an update took, the loss's figures, and the update's groups."""

    result: StepResult
    sums: LossSums
    groups: Sequence[Group]


def with_reference(groups: Sequence[Group], policy: Policy) -> list[Group]:
    """The groups with the reference's log-probabilities in each scored trajectory; unchanged without a reference.

    An MoE reference asks its own routers: experts that the policy's routers chose would make it another model.
    """
    if policy.reference is None:
        return list(groups)
    logprobs = policy.packing.logprobs(policy.reference, groups, replays=False)
    return [
        group.with_trajectories(_with_reference(group.trajectories, iter(found)))
        for group, found in zip(groups, logprobs, strict=True)
    ]


def _with_reference(trajectories: Sequence[Trajectory], found: Iterator[Tensor]) -> list[Trajectory]:
    return [replace(t, ref_logprobs=next(found)) if t.is_scored else t for t in trajectories]


def prepare(groups: Sequence[Group], policy: Policy, algorithm: Algorithm, config: TrainerConfig) -> list[Update]:
    """Every optimizer update of the step, all passes. `groups` hold what trains, with advantages.

    With one update per step the old policy is the policy itself; otherwise its log-probs are computed here, once, on
    the same micro-batches, so that the first ratio is exactly 1.
    """
    engine = policy.engine
    per_update = max(1, config.mini_batch_size // algorithm.config.group_size)
    mini_batches = [groups[start : start + per_update] for start in range(0, len(groups), per_update)]
    balance = config.balance_coefficient
    skips = config.skip_zero_advantage and algorithm.zero_advantage_is_silent and not balance
    updates = [
        Update(part, policy.packing.pack(with_advantage(part) if skips else part, algorithm.mean_per_sequence))
        for part in mini_batches
    ]
    inputs = [batch.inputs for one in updates for batch in one.batches]
    if len(updates) * config.passes == 1 and (len(inputs) == 1 or not balance):
        return [replace(one, balance_coefficient=balance) for one in updates]
    # One pass without gradient gives the old log-probs and the routed pairs that the balance term needs.
    scores = engine.logprobs(inputs)
    old = iter(scores)
    updates = [
        replace(one, batches=[replace(b, old_logprobs=next(old).logprobs) for b in one.batches]) for one in updates
    ]
    routed = routed_counts(scores) if balance and scores else None
    updates = [replace(one, balance_coefficient=balance, routed=routed) for one in updates]
    return updates * config.passes


def update(one: Update, policy: Policy, algorithm: Algorithm, step: int, number: int, run: RunFolder) -> UpdateResult:
    """Gradient of every micro-batch, then one optimizer step.

    A loss or gradient that is not finite reaches neither weights nor optimizer; its prompts are named on stderr and in
    skipped.jsonl. `NonFiniteError` after `engine.max_skipped_updates` of them in a row.
    """
    engine, denominator = policy.engine, algorithm.denominator(one.groups)
    loss: LossFn[PolicyBatch] = algorithm.loss
    if one.balance_coefficient:
        inputs = [batch.inputs for batch in one.batches]
        loss = BalancedLoss.over(loss, engine, inputs, one.balance_coefficient, denominator, one.routed)
    sums = engine.accumulate(one.batches, loss, denominator)
    suspects = [one.batches[number] for number in sums.not_finite]
    prompts = sorted({prompt for batch in suspects or one.batches for prompt in batch.prompt_ids})
    what = "loss" if suspects else "gradient"
    skipped = [{"update": number, "what": what, "prompts": prompts}]
    try:
        result = engine.step()
    except NonFiniteError as error:
        run.append("skipped.jsonl", step, skipped)
        raise NonFiniteError(f"step {step}: {error}; prompts of the last one: {names(prompts)}") from None
    if not result.applied:
        print(f"step {step}: update {number} skipped, {what} not finite; prompts: {names(prompts)}", file=sys.stderr)
        run.append("skipped.jsonl", step, skipped)
    return UpdateResult(result, sums, one.groups)
