"""Groups that wait for a later step go through a checkpoint unchanged."""

import json
import math

from model.processing.processor import PromptTokens
from rlhf.kept import restore_group, stored_group
from rlhf.prompts import Task
from tests.rlhf.groups import group


def test_a_group_comes_back_to_the_bit(tmp_path):
    one = group(7, 1 / 3, None, 0.0, ids=(3, 4, 5), versions=((0, 4), (2, 5)))
    one = one.with_trajectories([*one.trajectories[:2], one.trajectories[2]])
    task = Task(one.prompt, PromptTokens([5, 6, 7], [], []), one.images, tmp_path)
    record = json.loads(json.dumps(stored_group(one)))
    again = restore_group(record, task)
    assert again.trajectories == one.trajectories
    assert (again.group_index, again.prompt, again.images) == (7, one.prompt, one.images)
    assert again.policy_version == 4 and again.trajectories[0].rollout.policy_versions == ((0, 4), (2, 5))
    first = again.trajectories[0].reward.value
    assert first is not None and math.ulp(first) and first == 1 / 3


def test_ids_of_the_prompt_are_not_stored_but_taken_from_the_data(tmp_path):
    one = group(0, 1.0, 0.0)
    assert "prompt_ids" not in json.dumps(stored_group(one))
    task = Task(one.prompt, PromptTokens([9, 9], [], []), [], tmp_path)
    assert [t.rollout.prompt_ids for t in restore_group(stored_group(one), task).trajectories] == [[9, 9], [9, 9]]
