"""From sampled completions to rewarded ones: the one way that training and evaluation share."""

import sys
from collections.abc import Sequence
from typing import Protocol

from model.engine.base import NonFiniteError
from model.processing.tokenizer import Tokenizer
from model.run.printable import names
from rewards.answers import parse_completion
from rewards.result import RewardInput, RewardResult, Status
from rewards.rubric import Rubric
from rlhf.algorithms.algorithm import Algorithm
from rlhf.prompts import Task
from rlhf.trajectory import Group, Trajectory
from rollouts.rollout import FinishReason, Rollout

SAMPLER_FAILED = {
    FinishReason.error: RewardResult(None, {}, Status.unscorable, "the sampler's numbers were not finite"),
    FinishReason.deadline: RewardResult(None, {}, Status.unscorable, "the sampler was not done in rollouts.deadline_s"),
}


class Scoring(Protocol):
    """Gives every completion its reward, as a `Rubric` does."""

    def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
        """One result for each input, in order."""
        ...


class SamplerTooSlow(RuntimeError):
    """No completion of several prompts was done within `rollouts.deadline_s`."""

    exit_code = 8


def name_failures(rollouts: Sequence[list[Rollout]], num_before: int = 0) -> int:
    """Say which prompts the sampler failed at. `num_before` prompts came before these, at which it failed altogether;
    returns how many there are now.

    `NonFiniteError` or `SamplerTooSlow` once it fails at all there is of more than one prompt.
    """
    found = [rollout for group in rollouts for rollout in group]
    late = [r.prompt_id for r in found if r.finish_reason is FinishReason.deadline]
    failed = [r.prompt_id for r in found if r.finish_reason is FinishReason.error]
    num_in_a_row = num_before + len(rollouts) if len(late) + len(failed) == len(found) else 0
    everything = "which is all that was sampled of several prompts"
    if late:
        text = f"sampling: not done within rollouts.deadline_s: {len(late)} completions of prompts {names(set(late))}"
        if num_in_a_row > 1 and not failed:
            raise SamplerTooSlow(f"{text}, {everything}; raise the deadline")
        print(f"{text}; they are unscorable", file=sys.stderr)
    if failed:
        text = f"sampling: numbers were not finite for prompts {names(set(failed))}"
        if num_in_a_row > 1:
            raise NonFiniteError(f"{text}, {everything}; look at the weights and at these prompts' images")
        print(f"{text}; these completions are unscorable", file=sys.stderr)
    return num_in_a_row


def reward(
    tasks: Sequence[Task], rollouts: Sequence[list[Rollout]], scoring: Scoring, tokenizer: Tokenizer
) -> list[list[tuple[Rollout, RewardResult]]]:
    """Every rollout of every task with its reward, in one call of `scoring`.

    Rollouts that the sampler failed at are unscorable.
    """
    pairs = [(task, rollout) for task, group in zip(tasks, rollouts, strict=True) for rollout in group]
    inputs = [reward_input(task, r, tokenizer) for task, r in pairs if not r.finish_reason.is_failure]
    results = iter(scoring.score(inputs) if inputs else [])
    return [[(r, SAMPLER_FAILED.get(r.finish_reason) or next(results)) for r in group] for group in rollouts]


def score_groups(
    tasks: Sequence[Task],
    rollouts: Sequence[list[Rollout]],
    rubric: Rubric,
    tokenizer: Tokenizer,
    algorithm: Algorithm,
) -> list[Group]:
    """Rewarded groups, with the algorithm's own terms in the shaped rewards."""
    groups = []
    for task, rewarded in zip(tasks, reward(tasks, rollouts, rubric, tokenizer), strict=True):
        trajectories = tuple(Trajectory(r, result, algorithm.shape_reward(result, r)) for r, result in rewarded)
        index = rewarded[0][0].group_index
        groups.append(Group(index, task.prompt, task.images, trajectories, task.paths, task.mode))
    return groups


def reward_input(task: Task, rollout: Rollout, tokenizer: Tokenizer) -> RewardInput:
    """Build what a reward may look at. The text is decoded from the sampled ids."""
    text = tokenizer.decode(rollout.completion_ids)
    parsed = parse_completion(text)
    return RewardInput(
        prompt_id=task.prompt.id,
        messages=task.prompt.messages,
        images=task.paths,
        reference=task.prompt.reference,
        completion=text,
        thinking=parsed.thinking,
        answer=parsed.answer,
        token_ids=rollout.completion_ids,
        finish_reason=rollout.finish_reason.value,
        meta=task.prompt.meta,
        draw=rollout.group_index,
        mode=task.mode.value,
    )
