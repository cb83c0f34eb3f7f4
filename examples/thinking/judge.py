"""A judge of thoughts that knows what the images show: it stands in for a vision-language model as the judge.

Its three checks are those of SAIL-RL (arXiv 2511.02280): the steps are logical, the reading is what the image shows,
and the answer is what the thought ends with. `reward.functions=[examples.thinking.judge:thought]` makes it a part of
the reward.
"""

from examples.thinking.task import Family, answer_of, reading_of, steps_of
from rewards.result import RewardInput


def checks(completion: RewardInput) -> tuple[bool, bool, bool]:
    """(the thought works the answer out, step by step; it reads what the image shows; the answer is its last value)."""
    family, shown = Family(completion.meta["family"]), [str(one) for one in completion.meta["shown"]]
    asked = str(completion.meta["asked"])
    reading, colon, steps = (completion.thinking or "").partition(":")
    said = _split(family, reading)
    if said and family is Family.reading and asked and not all(part.rpartition(" ")[2].isdecimal() for part in said):
        said = None
    is_logical = bool(colon) and said is not None and steps == steps_of(family, said, asked)
    is_consistent = said is not None and completion.answer == answer_of(family, said, asked)
    return is_logical, reading == reading_of(family, shown), is_consistent


def thought(completion: RewardInput) -> float:
    """Return the mean of the three checks, 0 to 1."""
    return sum(checks(completion)) / 3


def _split(family: Family, reading: str) -> list[str] | None:
    """The pieces that a reading says are shown; None where it cannot be read as one of the family."""
    parts = list(reading) if family in (Family.digits, Family.words) else reading.split(", ")
    heights = [part.rpartition(" ")[2] for part in parts]
    match family:
        case Family.digits | Family.charts:
            is_one = all(height.isascii() and height.isdigit() for height in heights)
        case _:
            is_one = all(parts)
    return parts if parts and is_one else None
