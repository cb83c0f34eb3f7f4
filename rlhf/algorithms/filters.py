"""Which groups and trajectories are worth training on: pure functions of groups."""

from collections.abc import Sequence

from rlhf.algorithms.config import GroupFilter
from rlhf.trajectory import Group


def drop_reason(group: Group, group_filter: GroupFilter, masks_overlong: bool = False) -> str:
    """Empty when the group trains, otherwise why it does not.

    A group needs two scored trajectories and one that trains. `correctness_spread` judges the answer part alone: spread
    in format only teaches a policy to shorten its thinking. A verifier that grades gives spread by any two values, as
    verl's filter has it; a group of one value between right and wrong is `equal_answers`. A group whose answers nobody
    judged, as those of a data set that leaves them out of its reward, goes by its rewards.
    """
    scored = group.scored
    if len(scored) < min(2, len(group.trajectories)):
        return "unscorable"
    if masks_overlong and all(t.is_overlong for t in scored):
        return "overlong"
    if group_filter is GroupFilter.correctness_spread and not any(t.reward.is_judged for t in scored):
        group_filter = GroupFilter.reward_spread
    match group_filter:
        case GroupFilter.none:
            return ""
        case GroupFilter.reward_spread:
            values = [t.shaped_reward for t in scored]
            return "" if max(values) > min(values) else "equal_rewards"
        case GroupFilter.correctness_spread:
            values = [t.reward.answer_value for t in scored]
            if max(values) > min(values):
                return ""
            if scored[0].reward.correct:
                return "all_right"
            return "equal_answers" if values[0] > 0 else "all_wrong"


def with_advantage(groups: Sequence[Group]) -> list[Group]:
    """The groups of an update less trajectories whose advantage is 0, and less those groups that have no other.

    One of them stays where nothing else is left, or nothing with an image: its zero gradient makes the optimizer go
    on (momentum, decay) with the weights that the whole update reaches.
    """
    found = [group.with_trajectories([t for t in group.scored if t.has_advantage]) for group in groups]
    kept = [group for group in found if group.trajectories]
    anchors = sorted((group for group in groups if group.scored), key=lambda group: not group.images)
    if anchors and not any(group.images or not anchors[0].images for group in kept):
        kept.append(anchors[0].with_trajectories(anchors[0].scored[:1]))
    return kept
