"""Groups as micro-batches: log-probabilities come back to their trajectories however the groups are dealt."""

from dataclasses import replace

import pytest
import torch

from model.engine.base import Scorer
from model.logprobs import TokenScores
from rewards.result import RewardResult, Status
from rlhf.trajectory import Group, Packing, Trajectory
from rollouts.rollout import FinishReason, Prompt, Rollout


class Echo(Scorer):
    """Scores every token by its own id, so that a mix-up shows."""

    def __init__(self) -> None:
        self.num_batches = 0

    def logprobs(self, batches):
        self.num_batches = len(batches)
        return [TokenScores(b.target_ids.double(), torch.zeros(len(b.target_ids)), None) for b in batches]


def group(index: int, lengths: list[int]) -> Group:
    trajectories = []
    for sample, length in enumerate(lengths):
        ids = [100 * index + 10 * sample + position for position in range(length)]
        rollout = Rollout(
            index, f"p{index}", sample, [5] * 7, ids, [1] * length, [0.0] * length, ((0, 0),), FinishReason.stop
        )
        scored = sample != 1 or index % 2 == 0
        reward = RewardResult(1.0, {}) if scored else RewardResult(None, {}, Status.unscorable, "no")
        trajectories.append(Trajectory(rollout, reward, 1.0))
    return Group(index, Prompt(f"p{index}", [], "1"), [], tuple(trajectories))


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("budget", [14, 40, 1000])
def test_log_probabilities_belong_to_their_trajectories(num_parts, budget):
    groups = [group(index, [3 + index, 9 - index, 4]) for index in range(5)]
    scorer = Echo()
    found = Packing(budget, 519, 4, num_parts).logprobs(scorer, groups)
    assert [[column.tolist() for column in columns] for columns in found] == [
        [[float(token) for token in t.rollout.completion_ids] for t in one.scored] for one in groups
    ]
    assert num_parts == 1 or scorer.num_batches % num_parts == 0 or budget == 14


def test_parts_change_no_sum(num_parts=3):
    """Targets, masks and weights of all micro-batches together are the same."""
    groups = [replace(group(index, [3 + index, 2]), group_index=index) for index in range(6)]
    whole, dealt = (
        sorted(
            (int(t), float(w))
            for b in Packing(60, 519, 4, parts).pack(groups, True)
            for t, w in zip(b.inputs.target_ids, b.token_weights, strict=True)
        )
        for parts in (1, num_parts)
    )
    assert whole == dealt
