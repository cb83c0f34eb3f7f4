"""The messages between a pool and its scorer processes: typed here, one line of JSON each on the wire.

A request is `{"id": ..., "seconds": ..., "memory_mb": ..., "task": {...}}`. A process sends `{"ready": true}` once. It
then answers each request with one reply, `{"id": ..., "value": ...}` or `{"id": ..., "kind": ..., "reason": ...,
"traceback": ...}`; a request that needs a user's file is first answered with `{"id": ..., "started": true}` when the
file is loaded. `"retire": true` in a reply asks for a fresh process. No other module knows this form.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

from rewards.result import CallResult, CallStyle, Claim, Options, RewardInput, SiblingResults

VERIFIERS, FUNCTIONS = "verifiers", "functions"
"""Lanes: the kind of scorer process that a task runs in. Verifiers and user code never share a process."""

MAX_REPLY_BYTES = 4 << 20
MAX_REASON = 2_000  # characters
FAILURE_KINDS = ("memory", "error", "load", "refused")
"""How a scorer process may say that a task failed; other failures are noticed from outside."""

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Task(ABC, Generic[T_co]):
    """One piece of work for a scorer process; its value is a `T_co`."""

    lane: ClassVar[str]
    kind: ClassVar[str]

    timeout_seconds: float | None = field(default=None, kw_only=True)  # deadline of the task; None: that of the pool
    memory_mb: float | None = field(default=None, kw_only=True)  # memory limit, 0: no limit; None: that of the pool

    @cached_property
    def encoded(self) -> bytes:
        """Return the work as JSON, without its limits. It is made once, so that what is hashed is what is sent.

        Raises TypeError, ValueError or RecursionError where the work is not plain JSON data.
        """
        return json.dumps({"kind": self.kind, **self._fields()}).encode()

    @abstractmethod
    def _fields(self) -> dict[str, object]:
        """Return the work as plain data."""

    @abstractmethod
    def read_value(self, value: object) -> T_co | None:
        """Return the value that a process sent, as its type. `ValueError` for a value that this task cannot have."""


@dataclass(frozen=True)
class Verify(Task[float]):
    """Judge a claim by a verifier. The value is the verdict, None where the verifier does not apply."""

    lane, kind = VERIFIERS, "verify"

    verifier: str
    claim: Claim
    options: Options = field(default_factory=dict)

    def _fields(self) -> dict[str, object]:
        claim = {**vars(self.claim), "columns": dict(self.claim.columns)}
        return {"verifier": self.verifier, "claim": claim, "options": dict(self.options)}

    def read_value(self, value: object) -> float | None:
        return None if value is None else _number(value)


@dataclass(frozen=True)
class Load(Task[CallStyle]):
    """Import a user's function and check `options` against its parameters. The value says how to call it."""

    lane, kind = FUNCTIONS, "load"

    function: str  # FILE.py:NAME, package.module:NAME or the name of an entry point
    options: Options = field(default_factory=dict)

    def _fields(self) -> dict[str, object]:
        return {"function": self.function, "options": dict(self.options)}

    def read_value(self, value: object) -> CallStyle:
        fields = _object(value, "one_by_one", "timeout_seconds", "memory_mb")
        single, *limits = fields.values()
        if not isinstance(single, bool):
            raise ValueError(f"expected true or false, found {_shown(single)}")
        return CallStyle(single, *(None if limit is None else _number(limit) for limit in limits))


@dataclass(frozen=True)
class CallOne(Task[float]):
    """Call a user's function on one completion. The value is the number that it returns, None where it does not
    apply."""

    lane, kind = FUNCTIONS, "call"

    function: str
    input: RewardInput
    options: Options = field(default_factory=dict)
    index: int = 0  # names the completion where its value is refused

    def _fields(self) -> dict[str, object]:
        fields = {"function": self.function, "input": vars(self.input), "options": dict(self.options)}
        return {**fields, "index": self.index}

    def read_value(self, value: object) -> float | None:
        return None if value is None else _number(value)


@dataclass(frozen=True)
class CallSiblings(Task[SiblingResults]):
    """Call a user's function on all completions of one prompt. The value has one result for each."""

    lane, kind = FUNCTIONS, "call_siblings"

    function: str
    inputs: Sequence[RewardInput]
    options: Options = field(default_factory=dict)
    step: int = 0  # the trainer's step, for functions that ask for it
    max_steps: int = 0

    def _fields(self) -> dict[str, object]:
        fields = {"function": self.function, "inputs": [vars(item) for item in self.inputs]}
        return {**fields, "options": dict(self.options), "step": self.step, "max_steps": self.max_steps}

    def read_value(self, value: object) -> SiblingResults:
        fields = _object(value, "results", "metrics")
        results = [_call_result(result) for result in _list(fields["results"])]
        if len(results) != len(self.inputs):
            raise ValueError(f"expected {len(self.inputs)} results, found {len(results)}")
        metrics = _object(fields["metrics"])
        return SiblingResults(results, {name: [*map(_number, _list(metrics[name]))] for name in metrics})


@dataclass(frozen=True)
class Request:
    """A task as it arrives in a scorer process."""

    id: int
    seconds: float  # deadline
    task: Task[object]


@dataclass(frozen=True)
class Ready:
    """The process has started and waits for its first request."""


@dataclass(frozen=True)
class Started:
    """The user's file is loaded; the time of the task itself begins."""

    id: int


@dataclass(frozen=True)
class Scored:
    id: int
    value: object
    retire: bool = False  # the process asks to be replaced


@dataclass(frozen=True)
class Failed:
    id: int
    kind: str  # one of FAILURE_KINDS
    reason: str
    traceback: str = ""
    retire: bool = False  # the process asks to be replaced


@dataclass(frozen=True)
class Unknown:
    """A JSON object that is none of the replies: user code wrote it."""


Reply = Ready | Started | Scored | Failed | Unknown


def encode_request(number: int, seconds: float, task: Task[object]) -> bytes:
    """Encode a task with its limits as one line. Raises what `Task.encoded` raises."""
    head = json.dumps({"id": number, "seconds": seconds, "memory_mb": task.memory_mb})
    return b"".join((head[:-1].encode(), b', "task": ', task.encoded, b"}\n"))


def decode_request(line: bytes) -> Request:
    """Decode a line that `encode_request` made."""
    found = json.loads(line)
    work, memory_mb = found["task"], found["memory_mb"]
    match work.pop("kind"):
        case Verify.kind:
            task = Verify(work["verifier"], Claim(**work["claim"]), work["options"], memory_mb=memory_mb)
        case Load.kind:
            task = Load(**work, memory_mb=memory_mb)
        case CallOne.kind:
            task = CallOne(**{**work, "input": RewardInput(**work["input"])}, memory_mb=memory_mb)
        case CallSiblings.kind:
            inputs = [RewardInput(**item) for item in work["inputs"]]
            task = CallSiblings(**{**work, "inputs": inputs}, memory_mb=memory_mb)
        case kind:
            raise ValueError(f"expected a known kind of task, found {kind!r}")
    return Request(found["id"], found["seconds"], task)


def encode_reply(reply: Ready | Started | Scored | Failed) -> bytes:
    """Encode a reply as one line. A value that is not plain JSON data, or too long, becomes a failure that says so."""
    fields: dict[str, object]
    match reply:
        case Ready():
            fields = {"ready": True}
        case Started(number):
            fields = {"id": number, "started": True}
        case Scored(number, value):
            plain = asdict(value) if isinstance(value, CallStyle | SiblingResults) else value
            fields = {"id": number, "value": plain}
        case Failed(number, kind, reason, trace):
            fields = {"id": number, "kind": kind, "reason": reason, "traceback": trace}
    if isinstance(reply, Scored | Failed) and reply.retire:
        fields["retire"] = True
    try:
        line = json.dumps(fields, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        return _encode_fault(reply, f"the value is not plain JSON data: {error}")
    if len(line) > MAX_REPLY_BYTES:
        return _encode_fault(reply, f"a reply has at most {MAX_REPLY_BYTES} bytes, found {len(line)}")
    return line


def _encode_fault(reply: Ready | Started | Scored | Failed, reason: str) -> bytes:
    assert isinstance(reply, Scored | Failed)  # the others hold nothing that can be at fault
    return encode_reply(Failed(reply.id, "error", reason[:MAX_REASON], retire=reply.retire))


def decode_reply(line: bytes) -> Reply:
    """Decode a line, which may hold anything that user code wrote to the connection.

    `ValueError` for a line that is no JSON object, `Unknown` for an object that is none of the replies.
    """
    try:
        found = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"sent what is no reply: {line[:60]!r}")
    if found.get("ready") is True:
        return Ready()
    number, retire = found.get("id"), bool(found.get("retire"))
    if not isinstance(number, int):
        return Unknown()
    if "started" in found:
        return Started(number)
    kind, reason, trace = found.get("kind"), found.get("reason"), found.get("traceback") or ""
    failed = kind in FAILURE_KINDS
    if "value" in found and not failed:
        return Scored(number, found["value"], retire)
    if failed and "value" not in found and isinstance(reason, str) and isinstance(trace, str):
        return Failed(number, str(kind), reason, trace, retire)
    return Unknown()


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number as value, found {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite value, found {value}")
    return value


def _object(value: object, *names: str) -> dict[str, object]:
    """Return a JSON object. With `names` it must have exactly these fields, which come back in this order."""
    if not isinstance(value, dict) or (names and set(value) != set(names)):
        expected = f"with {', '.join(names)} " if names else ""
        raise ValueError(f"expected an object {expected}as value, found {_shown(value)}")
    return {name: value[name] for name in names or value}


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list in the value, found {_shown(value)}")
    return value


def _call_result(found: object) -> CallResult:
    value, reason, trace = _object(found, "value", "reason", "traceback").values()
    if not isinstance(reason, str) or not isinstance(trace, str):
        raise ValueError(f"expected texts in a result, found {_shown(found)}")
    return CallResult(None if value is None else _number(value), reason, trace)


def _shown(value: object) -> str:
    return repr(value)[:60]
