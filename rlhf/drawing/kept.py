"""Groups that wait for a later step, as JSON data in a checkpoint. Prompt ids and pixels come from the prompt set."""

import numpy as np

from model.run.state import State
from rewards.result import RewardResult, Status
from rlhf.prompts import Task
from rlhf.trajectory import Group, Trajectory
from rollouts.rollout import FinishReason, Rollout
from rollouts.routes import Routes, restored_array, stored_array


def stored_group(group: Group) -> State:
    """Floats go through JSON unchanged to the bit. The experts of the prompt's tokens are stored once."""
    record: State = {
        "draw": group.group_index,
        "prompt_id": group.prompt.id,
        "trajectories": [_stored(trajectory) for trajectory in group.trajectories],
    }
    if routes := next((t.rollout.routes for t in group.trajectories if t.rollout.routes), None):
        record["prompt_routes"] = stored_array(routes.prompt)
    return record


def restore_group(record: State, task: Task) -> Group:
    """The group that `stored_group` was given."""
    prompt = restored_array(record["prompt_routes"]) if "prompt_routes" in record else None
    trajectories = tuple(_restored(item, record["draw"], task, prompt) for item in record["trajectories"])
    return Group(record["draw"], task.prompt, task.images, trajectories, task.paths, task.mode)


def _stored(trajectory: Trajectory) -> State:
    rollout, reward = trajectory.rollout, trajectory.reward
    record: State = {
        "sample_index": rollout.sample_index,
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "rollout_logprobs": rollout.rollout_logprobs,
        "policy_versions": rollout.policy_versions,
        "finish_reason": rollout.finish_reason.value,
        "reward": reward.value,
        "parts": reward.parts,
        "status": reward.status.value,
        "reason": reward.reason,
        "answer": reward.answer,
        "shaped_reward": trajectory.shaped_reward,
    }
    if rollout.routes is not None:
        record["routes"] = stored_array(rollout.routes.completion)
    return record


def _restored(record: State, group_index: int, task: Task, prompt_routes: np.ndarray | None) -> Trajectory:
    routes = None
    if prompt_routes is not None and "routes" in record:
        routes = Routes(prompt_routes, restored_array(record["routes"]))
    rollout = Rollout(
        group_index=group_index,
        prompt_id=task.prompt.id,
        sample_index=record["sample_index"],
        prompt_ids=task.tokens.ids,
        completion_ids=record["completion_ids"],
        completion_mask=record["completion_mask"],
        rollout_logprobs=record["rollout_logprobs"],
        policy_versions=tuple((start, version) for start, version in record["policy_versions"]),
        finish_reason=FinishReason(record["finish_reason"]),
        routes=routes,
    )
    status, answer = Status(record["status"]), record.get("answer")
    reward = RewardResult(record["reward"], record["parts"], status, record["reason"], answer)
    return Trajectory(rollout, reward, record["shaped_reward"])
