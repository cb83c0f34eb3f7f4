"""An own reward in five lines: `reward.functions=[examples/brevity_reward.py:brevity]`."""


def brevity(completion) -> float:
    """1 for an empty completion, falling to 0 at 40 tokens."""
    return max(0.0, 1.0 - len(completion.token_ids) / 40)
