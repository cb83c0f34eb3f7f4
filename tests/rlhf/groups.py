"""Groups with given rewards, for tests that need no model."""

from rewards.result import RewardResult, Status
from rlhf.trajectory import Group, Trajectory
from rollouts.rollout import FinishReason, Prompt, Rollout


def trajectory(
    sample: int = 0,
    reward: float | None = 1.0,
    ids: tuple[int, ...] = (11, 12),
    versions: tuple[tuple[int, int], ...] = ((0, 0),),
    group_index: int = 0,
    advantage: float = 0.0,
) -> Trajectory:
    """A completion with a reward, or with none where `reward` is None."""
    rollout = Rollout(
        group_index=group_index,
        prompt_id=f"p{group_index}",
        sample_index=sample,
        prompt_ids=[5, 6, 7],
        completion_ids=list(ids),
        completion_mask=[1] * len(ids),
        rollout_logprobs=[-0.1 * (n + 1) for n in range(len(ids))],
        policy_versions=versions,
        finish_reason=FinishReason.stop,
    )
    if reward is None:
        result = RewardResult(None, {}, Status.unscorable, "no judge")
    else:
        result = RewardResult(reward, {"answer": reward, "format": 1.0})
    return Trajectory(rollout, result, reward or 0.0, advantage)


def group(index: int, *rewards: float | None, **settings) -> Group:
    """A group of one completion for each reward."""
    made = tuple(trajectory(n, reward, group_index=index, **settings) for n, reward in enumerate(rewards))
    prompt = Prompt(f"p{index}", [{"role": "user", "content": "1+1?"}], "2")
    return Group(index, prompt, [], made)
