"""Groups that wait for a later step go through a checkpoint unchanged."""

import json
import math
from dataclasses import replace

import numpy as np

from model.processing.processor import PromptTokens
from rlhf.drawing.kept import restore_group, stored_group
from rlhf.prompts import Task
from rollouts.routes import Routes
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


def test_the_experts_of_every_token_come_back_and_those_of_the_prompt_are_stored_once(tmp_path):
    one, rng = group(3, 1.0, None, 0.0), np.random.default_rng(0)
    prompt = rng.integers(0, 8, (3, 4, 2)).astype(np.uint8)
    trajectories = [
        replace(t, rollout=replace(t.rollout, routes=Routes(prompt, rng.integers(0, 8, (1, 4, 2)).astype(np.uint8))))
        for t in one.trajectories
    ]
    failed = replace(trajectories[1], rollout=replace(trajectories[1].rollout, routes=None))
    one = one.with_trajectories([trajectories[0], failed, trajectories[2]])
    record = json.loads(json.dumps(stored_group(one)))
    assert list(record).count("prompt_routes") == 1 and "prompt_routes" not in record["trajectories"][0]
    again = restore_group(record, Task(one.prompt, PromptTokens([5, 6, 7], [], []), one.images, tmp_path))
    assert again.trajectories == one.trajectories
    first, _, last = (t.rollout.routes for t in again.trajectories)
    assert first and last and first.prompt is last.prompt
