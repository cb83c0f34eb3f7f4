"""The stored form of a rollout: a line of RUN/rollouts/step_*.jsonl, which training writes and other stages read."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from model.json_values import JsonObject, parse_json

FORMAT = 1
"""Version of the stored form. A change that old readers would misread raises it."""

_KEYS = {"group_index": "draw"}
"""Fields whose key in the file has another name."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "group_index": int,
    "sample_index": int,
    "reward": (int, float, type(None)),
    "parts": dict,
    "policy_version": int,
    "completion_ids": list,
}
"""Types of the values in the file; all others are texts."""


_CONTEXT_KINDS: dict[str, type | tuple[type, ...]] = {
    "images": list,
    "answer": (str, type(None)),
    "advantage": (int, float, type(None)),
}


def name_within(folder: Path, file: str) -> str:
    """The name of a file relative to a folder that it lies in, so that both may be moved; else its path."""
    path = Path(file)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file


@dataclass(frozen=True)
class RolloutContext:
    """Everything about a rollout that a person wants to see beside it. Lines of older versions have none of it."""

    question: str = ""  # the text of the user's last message
    images: list[str] = field(default_factory=list)  # paths of the prompt's images and videos
    thinking: str = ""
    answer: str | None = None  # the answer that was judged; None: the answer rules found none
    advantage: float | None = None  # None: the rollout did not train; a mean over tokens where they differ
    prompt_mode: str = "think"  # how the prompt was asked


@dataclass(frozen=True)
class StoredRollout:
    """One sampled completion with its reward. Fields with a default may be absent from a line."""

    prompt_id: str
    completion_ids: list[int]
    finish_reason: str  # value of a `rollouts.rollout.FinishReason`
    parts: dict[str, float | None]  # value of each reward part; None where the part does not apply
    group_index: int = 0
    sample_index: int = 0
    text: str = ""
    reference: str = ""
    reward: float | None = None
    status: str = "ok"  # value of a `rewards.result.Status`
    reason: str = ""  # why the reward is unknown
    dropped: str = ""  # why the group did not train; empty if it did
    policy_version: int = 0  # the version that drew the first token
    context: RolloutContext = RolloutContext()
    format: int = field(default=FORMAT, kw_only=True)

    def to_json(self) -> dict[str, object]:
        """Return the line as JSON data."""
        return {
            "format": self.format,
            "draw": self.group_index,
            "prompt_id": self.prompt_id,
            "sample_index": self.sample_index,
            "text": self.text,
            "reference": self.reference,
            "reward": self.reward,
            "parts": self.parts,
            "status": self.status,
            "reason": self.reason,
            "dropped": self.dropped,
            "finish_reason": self.finish_reason,
            "policy_version": self.policy_version,
            **vars(self.context),
            "completion_ids": self.completion_ids,
        }

    @classmethod
    def from_json(cls, line: str, where: str) -> "StoredRollout":
        """Read a line. `ValueError` says where it stands, what was expected and what was found.

        Lines without a format were written before there was one, and are read as format 1. Unknown keys are passed
        over.
        """
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: expected a JSON object, found: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, found {line:.80}")
        version = record.get("format", 1)
        if not isinstance(version, int) or not 1 <= version <= FORMAT:
            raise ValueError(
                f"{where}: format: expected 1 to {FORMAT}, found {version!r}; a newer version of this toolkit wrote it"
            )
        values = _values(cls, record, _KINDS, where)
        context = RolloutContext(**_values(RolloutContext, record, _CONTEXT_KINDS, where))
        return cls(**values, context=context, format=version)


def _values(kept: type, record: JsonObject, kinds: Mapping[str, type | tuple[type, ...]], where: str) -> JsonObject:
    """Return the fields of a dataclass that a line has. `ValueError` for one that is missing or of another type."""
    values: JsonObject = {}
    for one in fields(kept):
        key, kind = _KEYS.get(one.name, one.name), kinds.get(one.name, str)
        may_lack = one.default is not MISSING or one.default_factory is not MISSING
        if one.name in ("format", "context") or (key not in record and may_lack):
            continue
        if not isinstance(record.get(key), kind) or key not in record:
            found = repr(record[key])[:80] if key in record else "none"
            names = [part.__name__ for part in (kind if isinstance(kind, tuple) else (kind,))]
            raise ValueError(f"{where}: {key}: expected {' or '.join(names)}, found {found}")
        values[one.name] = record[key]
    return values


def read_rollouts(file: Path) -> Iterator[StoredRollout]:
    """Yield the rollouts of a step_*.jsonl file. A last line without an end was cut off, and is passed over."""
    lines = file.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: line {number}: expected UTF-8, found: {error.reason}") from None
        yield StoredRollout.from_json(text, f"{file}: line {number}")
