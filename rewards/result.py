"""What flows between scoring code: a claim to judge, the outcome of judging it, the reward of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    ok = "ok"
    unscorable = "unscorable"


class Unscorable(ValueError):
    """This completion cannot be judged, whatever it says: a reference that does not parse, a missing column."""


@dataclass(frozen=True)
class Claim:
    """What a verifier judges, as plain JSON data."""

    completion: str  # decoded text, think tags kept, end of turn dropped
    answer: str | None  # what the extraction rule found in it; None: no answer
    reference: Any = ""  # as the data row has it: text, number, list ...
    columns: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns, `options` among them
    num_tokens: int = 0  # length of the completion
    finish_reason: str = "stop"  # stop | length


@dataclass(frozen=True)
class Outcome:
    """`status` ok: `value` is the verdict, None where the verifier does not apply. Else `reason` says what failed."""

    value: Any = None
    status: Status = Status.ok
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0  # of work, waiting for a free worker not counted


@dataclass(frozen=True)
class RewardInput:
    """All that a reward function may look at, as plain data."""

    prompt_id: str
    messages: list[dict[str, Any]]
    images: list[str]  # file paths
    reference: str
    completion: str  # decoded text, think tags kept, end of turn dropped
    thinking: str
    answer: str | None  # by the reward's answer rule; None: no answer
    token_ids: list[int]
    finish_reason: str  # stop | length
    meta: dict[str, Any]  # the data row's other columns
    draw: int = 0  # which draw of the prompt this is: siblings share it


@dataclass(frozen=True)
class RewardResult:
    """`value` is None exactly when `status` is unscorable; then `reason` says why."""

    value: float | None
    parts: dict[str, float | None] = field(default_factory=dict)  # None: not applicable
    status: Status = Status.ok
    reason: str = ""

    @property
    def correct(self) -> bool:
        """Whether the answer part is right; False for an unscorable completion."""
        return (self.parts.get("answer") or 0.0) >= 1.0
