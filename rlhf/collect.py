"""From prompts to rewarded groups, refilling what the algorithm's filter drops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.tokenizer import Tokenizer
from rewards.answers import parse_completion
from rewards.result import RewardInput
from rewards.rubric import Rubric
from rlhf.algorithms import Algorithm
from rlhf.ledger import Ledger
from rlhf.prompts import PromptSet, Task
from rlhf.trajectory import Group, Trajectory
from rollouts.rollout import Rollout, RolloutWorker, generate


@dataclass(frozen=True)
class Collected:
    """`groups` train; `dropped` do not, each with its reason."""

    groups: list[Group]
    dropped: list[tuple[Group, str]]

    @property
    def all_groups(self) -> list[Group]:
        """Everything that was sampled, in draw order."""
        return sorted([*self.groups, *(group for group, _ in self.dropped)], key=lambda group: group.draw)


def collect(
    prompts: PromptSet,
    worker: RolloutWorker,
    rubric: Rubric,
    tokenizer: Tokenizer,
    algorithm: Algorithm,
    ledger: Ledger,
    num_groups: int,
    max_draws: int,
) -> Collected:
    """Draw until `num_groups` groups pass the filter or `max_draws` prompts were drawn.

    Each round draws what is still missing, divided by the share of draws that were useful in the last step: few large
    rounds sample faster than many small ones. Useful groups beyond `num_groups` are dropped as surplus.
    """
    useful: list[Group] = []
    dropped: list[tuple[Group, str]] = []
    while len(useful) < num_groups and (drawn := len(useful) + len(dropped)) < max_draws:
        wanted = math.ceil((num_groups - len(useful)) / max(ledger.useful_share, num_groups / max_draws))
        count = min(wanted, max_draws - drawn)
        tasks = [prompts.at(ledger.next_draw + i) for i in range(count)]
        draws = [ledger.draw(task.prompt.id) for task in tasks]
        group_size = algorithm.config.group_size
        requests = [task.request(draw, group_size) for task, draw in zip(tasks, draws, strict=True)]
        rollouts = generate(worker, requests)
        for group in score_groups(tasks, rollouts, rubric, tokenizer, algorithm, prompts.root):
            reason = algorithm.drop_reason(group) or ("surplus" if len(useful) == num_groups else "")
            if reason:
                ledger.drop(group.draw, reason)
                dropped.append((group, reason))
            else:
                ledger.train(group.draw)
                useful.append(group)
    num_useful = len(useful) + sum(reason == "surplus" for _, reason in dropped)
    ledger.useful_share = num_useful / max(1, len(useful) + len(dropped))
    return Collected(useful, dropped)


def score_groups(
    tasks: Sequence[Task],
    rollouts: Sequence[list[Rollout]],
    rubric: Rubric,
    tokenizer: Tokenizer,
    algorithm: Algorithm,
    root: Path,
) -> list[Group]:
    """Rewards for every rollout, in one call of the rubric."""
    inputs = [
        reward_input(task, rollout, tokenizer, root)
        for task, group in zip(tasks, rollouts, strict=True)
        for rollout in group
    ]
    results = iter(rubric.score(inputs))
    groups = []
    for task, group in zip(tasks, rollouts, strict=True):
        rewarded = [(rollout, next(results)) for rollout in group]
        trajectories = tuple(Trajectory(r, reward, algorithm.shape_reward(reward, r)) for r, reward in rewarded)
        groups.append(Group(group[0].draw, task.prompt, task.images, trajectories))
    return groups


def reward_input(task: Task, rollout: Rollout, tokenizer: Tokenizer, root: Path) -> RewardInput:
    """What a reward may look at. The text is decoded from the sampled ids."""
    text = tokenizer.decode(rollout.completion_ids)
    parsed = parse_completion(text)
    return RewardInput(
        prompt_id=task.prompt.id,
        messages=task.prompt.messages,
        images=[str(root / name) for name in task.tokens.files],
        reference=task.prompt.reference,
        completion=text,
        thinking=parsed.thinking,
        answer=parsed.answer,
        token_ids=rollout.completion_ids,
        finish_reason=rollout.finish_reason.value,
        meta=task.prompt.meta,
    )
