"""Groups that wait for a later step, as JSON data in a checkpoint. Prompt ids and pixels come from the prompt set."""

from typing import Any

from rewards.result import RewardResult, Status
from rlhf.prompts import Task
from rlhf.trajectory import Group, Trajectory
from rollouts.rollout import FinishReason, Rollout


def stored_group(group: Group) -> dict[str, Any]:
    """Floats go through JSON unchanged to the bit."""
    return {
        "draw": group.group_index,
        "prompt_id": group.prompt.id,
        "trajectories": [_stored(trajectory) for trajectory in group.trajectories],
    }


def restore_group(record: dict[str, Any], task: Task) -> Group:
    """The group that `stored_group` was given."""
    trajectories = tuple(_restored(item, record["draw"], task) for item in record["trajectories"])
    return Group(record["draw"], task.prompt, task.images, trajectories)


def _stored(trajectory: Trajectory) -> dict[str, Any]:
    rollout, reward = trajectory.rollout, trajectory.reward
    return {
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
        "shaped_reward": trajectory.shaped_reward,
    }


def _restored(record: dict[str, Any], group_index: int, task: Task) -> Trajectory:
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
    )
    reward = RewardResult(record["reward"], record["parts"], Status(record["status"]), record["reason"])
    return Trajectory(rollout, reward, record["shaped_reward"])
