"""A reward over siblings: `reward.functions=[examples/agreement_reward.py:agreement]`.

`batch` holds the completions of one prompt.
"""

from collections import Counter


def agreement(batch) -> list[float]:
    """The share of siblings that give the same answer; 0 for a completion without one."""
    counts = Counter(completion.answer for completion in batch)
    return [0.0 if completion.answer is None else counts[completion.answer] / len(batch) for completion in batch]
