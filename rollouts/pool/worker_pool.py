"""Many samplers as one that outlives them: a worker that dies, hangs or answers garbage is replaced, its groups are
sampled again elsewhere. How workers are started and spoken to is a launcher's business."""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from rollouts.config import RolloutConfig
from rollouts.pool.session import Message
from rollouts.probe import Probe
from rollouts.rollout import FinishReason, Rollout, RolloutRequest
from rollouts.weights.senders import WeightSender


class PoolFailed(RuntimeError):
    """A worker failed again and again; the message says which and why."""

    exit_code = 8


class MemberFailed(Exception):
    """A worker is of no use any more; the message is the cause."""


class Member(Protocol):
    """A worker as its pool sees it. It is busy from its start until it is `ready`, and again from each `call`."""

    @property
    def name(self) -> str: ...

    def call(self, messages: list[Message]) -> None:
        """Hand it messages for `Session.answer`. `MemberFailed` if it is gone."""
        ...

    def answers(self) -> list[Message]:
        """Once it is ready: what it answered; nothing after its start. `MemberFailed` if it ended instead."""
        ...

    def check(self) -> None:
        """`MemberFailed` if it is known to be gone, though nobody waits for an answer."""
        ...

    def kill(self) -> None:
        """End it, whatever state it is in."""
        ...

    def dismiss(self) -> None:
        """Tell it that nothing more will come."""
        ...


M = TypeVar("M", bound=Member)

_GROUPS_PER_PATIENCE = 16
"""Groups whose prompts may take a worker as long again before its next answer."""

_ANSWERED = {"update": ("updated", "missed"), "probe": ("probed",)}
"""Messages that are answered by one of these kinds."""


class WorkerLauncher(Protocol[M]):
    """Starts workers."""

    def start(self, number: int) -> M:
        """Begin to start worker `number`, which has no weights yet. Returns at once."""
        ...

    def wait(self, members: Sequence[M], seconds: float) -> list[M]:
        """Those that are ready, after at most `seconds`."""
        ...

    def close(self) -> None: ...


@dataclass
class _Slot:
    """A place for a worker, and who fills it."""

    number: int
    member: Any
    seconds_left: float  # to answer the present call; only those count in which it was waited for
    seconds_given: float = 0.0  # for the present call
    limit: str = "start_s"  # of rollouts.pool, that the present call has
    is_started: bool = False
    is_called: bool = True  # and has not answered yet
    is_proven: bool = False  # has completed a group: it is past what only a first call takes
    failures: int = 0  # since it last completed a group
    outbox: list[Message] = field(default_factory=list)
    open: dict[int, RolloutRequest] = field(default_factory=dict)
    proof: dict[str, int] | None = None  # checksums of the present weights, as it holds them
    probe: Probe | None = None  # its last one
    owed: set[str] = field(default_factory=set)  # messages of the present call that must be answered
    joint_seconds: float = 0.0  # of the present call, for others: its weights come to several workers at once


class WorkerPool:
    """`RolloutWorker` over `config.pool.workers` members of a launcher. Each group goes where the fewest are open."""

    def __init__(
        self,
        launcher: WorkerLauncher[Any],
        sender: WeightSender,
        config: RolloutConfig,
        allowed_ids: Iterable[int],
        manifest: dict[str, int],
    ) -> None:
        """`allowed_ids` are those that a policy may sample; an answer with another one is garbage. `manifest` has the
        checksums of the weights that the sender was made with, policy version 0."""
        self.config = config
        self.num_replaced = 0  # workers
        self.num_repeated = 0  # groups that were handed out again
        self._launcher, self._sender = launcher, sender
        self._allowed = frozenset(allowed_ids)
        self._waiting: dict[int, RolloutRequest] = {}
        self._done: list[tuple[int, list[Rollout]]] = []
        self._losses: dict[int, int] = {}  # of a group: workers that failed while they had it
        self._next_handle = 0
        self._version = 0
        self._manifest = dict(manifest)  # of the present weights
        self._pending: dict[str, int] = {}  # of the announced one
        self._received: set[str] = set()
        self._is_updating = False
        self._longest_update = 0.0  # seconds that a worker took for new weights
        self._failure: PoolFailed | None = None
        self._slots: list[_Slot] = []
        try:
            for number in range(config.pool.workers):
                self._slots.append(_Slot(number, launcher.start(number), config.pool.start_s))
        except BaseException:
            self.close()
            raise

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._done or any(slot.open for slot in self._slots))

    def submit(self, request: RolloutRequest) -> int:
        self.config.check_length(request.prompt_id, len(request.prompt_ids))
        self.config.check_images(request.prompt_id, len(request.images))
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._waiting[handle] = request
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        """Returns after a second at the latest, with nothing if nothing is complete. `PoolFailed` ends the run."""
        end = time.monotonic() + 1.0
        while not self._done and not self.is_idle and time.monotonic() < end:
            self._deal()
            self._exchange(end - time.monotonic())
        done, self._done = self._done, []
        return done

    def abort(self, handle: int) -> None:
        self._waiting.pop(handle, None)
        self._losses.pop(handle, None)
        self._done = [item for item in self._done if item[0] != handle]
        for slot in self._slots:
            if slot.open.pop(handle, None):
                slot.outbox.append(("abort", handle))

    def begin_update(self, version: int, manifest: dict[str, int]) -> None:
        """Waits for newcomers that still read the present weights: they may be written over from here on."""
        while any(slot.is_started and slot.proof is None for slot in self._slots):
            self._exchange(1.0)
        self._pending, self._received = manifest, set()

    def load(self, name: str, tensor: Tensor) -> None:
        self._sender.put(name, tensor)
        self._received.add(name)

    def finish_update(self, version: int) -> dict[str, int]:
        """The checksums that every worker found; where one found another, that one. A worker that is being replaced
        proves the same before it gets work."""
        missing = self._pending.keys() - self._received
        if missing:
            raise RuntimeError(f"weight sync to version {version}: tensors never arrived: {sorted(missing)}")
        self._version, self._manifest = version, dict(self._pending)
        self._remove_dead_workers()
        self._sender.publish([slot.member for slot in self._slots if slot.is_started])
        for slot in self._slots:
            slot.proof = None
            if slot.is_started:
                slot.outbox.append(self._update_for(slot))
        self._is_updating = True
        try:
            while any(slot.proof is None for slot in self._slots if slot.is_started or not slot.failures):
                self._exchange(1.0)
        finally:
            self._is_updating = False
            self._sender.settle()
        found = dict(self._manifest)
        for slot in self._slots:
            if slot.proof is not None:
                found |= {name: slot.proof.get(name, -1) for name in found if slot.proof.get(name) != found[name]}
        return found

    def probe(self, request: RolloutRequest) -> list[tuple[str, Probe]]:
        asked = [(slot, slot.member) for slot in self._slots if slot.is_started]
        for slot, _ in asked:
            slot.probe = None
            slot.outbox.append(("probe", request))
        while any(slot.probe is None and slot.member is member for slot, member in asked):
            self._exchange(1.0)
        return [(member.name, slot.probe) for slot, member in asked if slot.member is member and slot.probe is not None]

    def close(self) -> None:
        for slot in self._slots:
            slot.member.dismiss()
        for slot in self._slots:
            slot.member.kill()
        self._slots = []
        self._sender.close()
        self._launcher.close()

    def _deal(self) -> None:
        """Hand out what waits, the oldest first, to workers that have proven the present weights. All that were not
        replaced are waited for, so that the first to be up does not get everything."""
        ready = [slot for slot in self._slots if slot.proof is not None]
        if not ready or any(slot.proof is None and not slot.failures for slot in self._slots):
            return
        batches: dict[int, list[tuple[int, RolloutRequest]]] = {}
        for handle in sorted(self._waiting):
            slot = min(ready, key=lambda slot: len(slot.open))
            slot.open[handle] = self._waiting[handle]
            batches.setdefault(slot.number, []).append((handle, self._waiting[handle]))
        self._waiting = {}
        for number, batch in batches.items():
            self._slots[number].outbox.append(("submit", batch))

    def _exchange(self, seconds: float) -> None:
        """Call every worker that is free and has something to do, and take the answers of those that are ready."""
        if self._failure is not None:
            raise self._failure
        for slot in self._slots:
            if not slot.is_called and (slot.outbox or slot.open):
                self._call(slot)
        called = [slot for slot in self._slots if slot.is_called]
        nearest = min((slot.seconds_left for slot in called), default=math.inf)
        begin, most = time.monotonic(), max(0.05, min(seconds, nearest))
        ready = self._launcher.wait([slot.member for slot in called], most)
        waited = min(most, time.monotonic() - begin)  # less than what passed if the whole job was suspended
        for slot in called:
            slot.seconds_left -= waited
            if slot.member in ready:
                self._take(slot)
            elif slot.seconds_left <= 0:
                self._replace(slot, f"no answer within rollouts.pool.{slot.limit}")

    def _remove_dead_workers(self) -> None:
        """Replace who ended while it had nothing to do: others would wait for it."""
        for slot in self._slots:
            if slot.is_started and not slot.is_called:
                try:
                    slot.member.check()
                except MemberFailed as failure:
                    self._replace(slot, str(failure))

    def _call(self, slot: _Slot) -> None:
        messages, slot.outbox = slot.outbox, []
        pool = self.config.pool
        slot.owed = {message[0] for message in messages} & _ANSWERED.keys()
        # New weights, and the first work of all, may take much longer than what follows.
        knows = slot.is_proven and (not slot.owed or self._longest_update)
        slot.limit = "patience_s" if knows else "start_s"
        num_groups = sum(len(rest[0]) for kind, *rest in messages if kind == "submit")
        slot.seconds_left = getattr(pool, slot.limit) * (1 + num_groups / _GROUPS_PER_PATIENCE)
        slot.seconds_left += 10 * self._longest_update if slot.owed else 0.0
        slot.joint_seconds = sum(message[3].seconds for message in messages if message[0] == "update")
        slot.seconds_left += slot.joint_seconds
        slot.seconds_given = slot.seconds_left
        slot.is_called = True
        try:
            slot.member.call(messages)
        except MemberFailed as failure:
            self._replace(slot, str(failure))

    def _take(self, slot: _Slot) -> None:
        needs_weights = not slot.is_started  # it is up: it takes the present weights before any work
        try:
            answers = slot.member.answers()
            slot.is_called = False
            for answer in answers:
                self._read(slot, answer)
            kinds = {one[0] for one in answers}
            slot.owed -= {asked for asked, answered in _ANSWERED.items() if kinds.intersection(answered)}
            if "updated" in kinds and not slot.joint_seconds:
                self._longest_update = max(self._longest_update, slot.seconds_given - slot.seconds_left)
            if slot.owed:
                raise MemberFailed(f"did not answer {sorted(slot.owed)}")
            needs_weights |= ("missed", self._version) in answers
        except MemberFailed as failure:
            return self._replace(slot, str(failure))
        except PoolFailed:
            raise
        except Exception as error:  # nothing that another process says is to be trusted
            return self._replace(slot, f"answered garbage: {error!r:.200}")
        slot.is_started = True
        if needs_weights:
            slot.outbox.append(self._update_for(slot))

    def _update_for(self, slot: _Slot) -> Message:
        return ("update", self._version, self._manifest, self._sender.tensor_handle(slot.member))

    def _read(self, slot: _Slot, answer: Message) -> None:
        match answer:
            case ("done", list(groups), int(num_open)):
                self._miss_nothing(slot, {handle for handle, _ in groups}, num_open)
                for handle, rollouts in groups:
                    if request := slot.open.get(handle):  # else it was aborted meanwhile
                        self._check(request, rollouts)
                        del slot.open[handle]
                        self._losses.pop(handle, None)
                        slot.failures, slot.is_proven = 0, True
                        self._done.append((handle, rollouts))
            case ("updated", int(version), dict(checksums)):
                if version != self._version:
                    raise MemberFailed(f"took weights of version {version}, not {self._version}")
                self._believe(slot, checksums)
            case ("missed", int(version)) if slot.joint_seconds and version == self._version:
                pass  # it is sent them alone
            case ("probed", dict(probe)):
                slot.probe = probe
            case _:
                raise MemberFailed(f"answered garbage: {answer!r:.200}")

    def _miss_nothing(self, slot: _Slot, done: set[int], num_open: int) -> None:
        """`MemberFailed` if it neither gives nor works on something that it was handed."""
        waiting = {handle for kind, *rest in slot.outbox if kind == "submit" for handle, _ in rest[0]}
        missing = len(slot.open.keys() - waiting - done) - num_open
        if missing > 0:
            raise MemberFailed(f"lost {missing} groups")

    def _believe(self, slot: _Slot, checksums: dict[str, int]) -> None:
        """Of an update to all the caller judges; a newcomer that holds other weights is of no use."""
        wrong = sorted(name for name, value in self._manifest.items() if checksums.get(name) != value)
        if wrong and not self._is_updating:
            raise MemberFailed(f"holds other bytes of {wrong} than were sent")
        slot.proof = checksums

    def _check(self, request: RolloutRequest, rollouts: Any) -> None:
        """`MemberFailed` unless these can be the completions that were asked for."""
        problem = _problem(request, rollouts, self.config.max_completion_tokens, self._allowed, self._version)
        if problem:
            raise MemberFailed(f"answered garbage for prompt {request.prompt_id}, draw {request.draw}: {problem}")

    def _replace(self, slot: _Slot, cause: str) -> None:
        """Start another worker in its place and hand its groups out again. `PoolFailed` if that did not help before."""
        name, slot.failures = slot.member.name, slot.failures + 1
        slot.member.kill()
        lost, slot.open, slot.outbox, slot.owed = slot.open, {}, [], set()
        for handle in lost:
            self._losses[handle] = self._losses.get(handle, 0) + 1
        limit = self.config.pool.max_failures
        again = [lost[handle].prompt_id for handle in lost if self._losses[handle] > 2 * limit]
        if slot.failures > limit or again:
            what = f"{name} failed {slot.failures} times without completing a group"
            if slot.failures <= limit:
                what = f"{name} failed, as {2 * limit} workers before it, with the groups of prompts {again}"
            self._failure = PoolFailed(
                f"{what} (rollouts.pool.max_failures = {limit}); the run continues from its last checkpoint when "
                f"started again. The last cause: {cause}"
            )
            raise self._failure
        print(f"{name} is replaced, {len(lost)} groups are sampled again: {cause}", file=sys.stderr)
        self.num_replaced += 1
        self.num_repeated += len(lost)
        self._waiting |= lost
        slot.is_started, slot.is_called, slot.is_proven, slot.proof = False, True, False, None
        slot.limit, slot.seconds_left = "start_s", self.config.pool.start_s
        try:
            slot.member = self._launcher.start(slot.number)
        except OSError as error:
            self._failure = PoolFailed(f"{name} failed ({cause}), and no other can be started: {error}")
            raise self._failure from error


def _problem(request: RolloutRequest, rollouts: Any, limit: int, allowed: frozenset[int], version: int) -> str:
    """What is wrong with a group; empty if nothing is."""
    if not isinstance(rollouts, list) or not all(isinstance(rollout, Rollout) for rollout in rollouts):
        return f"expected a list of rollouts, found {rollouts!r:.80}"
    if [rollout.sample_index for rollout in rollouts] != list(range(request.group_size)):
        found = [rollout.sample_index for rollout in rollouts]
        return f"expected samples 0 to {request.group_size - 1}, found {found}"
    for rollout in rollouts:
        ids, logprobs = rollout.completion_ids, rollout.rollout_logprobs
        if (rollout.draw, rollout.prompt_id) != (request.draw, request.prompt_id):
            return f"it belongs to prompt {rollout.prompt_id}, draw {rollout.draw}"
        if list(rollout.prompt_ids) != list(request.prompt_ids):
            return "its prompt has other ids"
        if not len(ids) == len(logprobs) == len(rollout.completion_mask) <= limit:
            return f"expected at most {limit} ids with as many log-probabilities, found {len(ids)} and {len(logprobs)}"
        if rollout.finish_reason.is_failure:
            continue
        if not allowed.issuperset(ids):
            return f"ids that no policy samples: {sorted(set(ids) - allowed)[:5]}"
        if not ids or not all(-math.inf < value <= 1e-3 for value in logprobs):
            return "expected finite log-probabilities of at least one token"
        if rollout.finish_reason is FinishReason.length and len(ids) < limit:
            return f"expected {limit} tokens of a completion that reached the limit, found {len(ids)}"
        starts = [start for start, _ in rollout.policy_versions]
        if starts[:1] != [0] or starts != sorted(starts) or max(starts) > len(ids):
            return f"expected runs of policy versions from token 0 on, found {rollout.policy_versions}"
        if not all(0 <= found <= version for _, found in rollout.policy_versions):
            return f"expected policy versions up to {version}, found {rollout.policy_versions}"
    return ""
