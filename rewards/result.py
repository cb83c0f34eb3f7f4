"""The data that flows between scoring code: a claim to judge, the outcome of judging it, the reward of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)
Options = Mapping[str, object]
"""Settings of a verifier or of a user's function by name, as `reward.options` has them."""


class Status(Enum):
    ok = "ok"
    unscorable = "unscorable"


class NotApplicable:
    """The type of `NOT_APPLICABLE`."""


NOT_APPLICABLE = NotApplicable()
"""A reward function returns it where it has nothing to say about a completion: the part is left out of the reward."""


class Unscorable(ValueError):
    """This completion cannot be judged, whatever it says: a reference that does not parse, a missing column."""


@dataclass(frozen=True)
class Claim:
    """One completion as a verifier judges it: plain JSON data."""

    completion: str  # decoded text; think tags are kept, the end of the turn is dropped
    answer: str | None  # the answer that the extraction rule found in the completion; None: it found none
    reference: object = ""  # the right answer as the data row has it: a text, a number, a list ...
    columns: Mapping[str, object] = field(default_factory=dict)  # the row's other columns, `options` among them
    num_tokens: int = 0  # length of the completion
    finish_reason: str = "stop"  # stop | length
    mode: str = "think"  # how the prompt was asked: think | direct | auto


@dataclass(frozen=True)
class Outcome(Generic[T_co]):
    """The result of one task, or why there is none. With `status` ok, `value` is its result, and None says that a
    verifier does not apply. With `status` unscorable, `reason` says what failed."""

    value: T_co | None = None
    status: Status = Status.ok
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0  # time of work; waiting for a free scorer process is not counted


@dataclass(frozen=True)
class RewardInput:
    """All that a reward function may look at, as plain data."""

    prompt_id: str
    messages: list[dict[str, Any]]  # chat messages: `role`, and `content` as a text or a list of parts
    images: list[str]  # file paths
    reference: str
    completion: str  # decoded text; think tags are kept, the end of the turn is dropped
    thinking: str
    answer: str | None  # the answer by the reward's answer rules; None: there is none
    token_ids: list[int]
    finish_reason: str  # stop | length
    meta: dict[str, Any]  # the data row's columns, those of its images apart
    draw: int = 0  # number of the group among the groups of this prompt; siblings have the same number
    mode: str = "think"  # how the prompt was asked: think | direct | auto


@dataclass(frozen=True)
class CallStyle:
    """How a user's reward function is to be called."""

    one_by_one: bool  # True: one task per completion; False: one task per prompt, with all its completions
    timeout_seconds: float | None = None  # the function's own deadline; None: that of the pool
    memory_mb: float | None = None  # the function's own memory limit, 0 for no limit; None: that of the pool


@dataclass(frozen=True)
class CallResult:
    """The answer of a user's function for one completion. None without a `reason` says that it does not
    apply."""

    value: float | None
    reason: str = ""  # why the value does not count; empty: it counts
    traceback: str = ""


@dataclass(frozen=True)
class SiblingResults:
    """The answers of a user's function for the completions of one prompt, in their order, and the values it logged by
    name."""

    results: list[CallResult]
    metrics: dict[str, list[float]]


@dataclass(frozen=True)
class RewardResult:
    """The reward of one completion. `value` is None exactly when `status` is unscorable; then `reason` says why."""

    value: float | None
    parts: dict[str, float | None] = field(default_factory=dict)  # None: the part does not apply
    status: Status = Status.ok
    reason: str = ""
    answer: str | None = None  # the answer that was judged; None: the answer rules found none

    @property
    def is_judged(self) -> bool:
        """Tell whether a verifier said something about the answer, so that it is right or wrong."""
        return self.value is not None and self.parts.get("answer") is not None

    @property
    def answer_value(self) -> float:
        """The answer part, at most 1; 0 where there is none, as for an unscorable completion."""
        return min(1.0, self.parts.get("answer") or 0.0)

    @property
    def correct(self) -> bool:
        """Tell whether the answer part is right; False for an unscorable completion."""
        return self.answer_value >= 1.0
