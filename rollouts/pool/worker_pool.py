"""Many samplers as one worker that outlives them.

A sampler that dies, hangs or answers garbage is replaced, and its groups are sampled again elsewhere. A launcher knows
how samplers are started and spoken to.
"""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from rollouts.config import RolloutConfig
from rollouts.intake import Intake
from rollouts.pool.messages import (
    Abort,
    Answer,
    Done,
    Generate,
    Message,
    Missed,
    Probed,
    ProbePrompt,
    Update,
    Updated,
)
from rollouts.probe import Probe
from rollouts.rollout import NO_WEIGHTS, FinishReason, Proof, Rollout, RolloutRequest
from rollouts.weights.senders import WeightSender
from rollouts.weights.sync import send


class PoolFailed(RuntimeError):
    """A worker failed again and again; the message says which and why."""

    exit_code = 8


class MemberFailed(Exception):
    """A worker is of no use any more. The message says why."""


class Member(Protocol):
    """A worker as its pool sees it. It is busy from its start until it is ready, and again from each `call`."""

    @property
    def name(self) -> str: ...

    def call(self, messages: list[Message]) -> None:
        """Hand it messages for `Session.answer`. `MemberFailed` if it is gone."""
        ...

    def answers(self) -> list[Answer]:
        """Return the answers of a worker that is ready; none after its start. `MemberFailed` if it ended instead."""
        ...

    def check(self) -> None:
        """Raise `MemberFailed` if it is known to be gone, though nobody waits for an answer."""
        ...

    def kill(self) -> None:
        """End it, whatever state it is in."""
        ...

    def dismiss(self) -> None:
        """Tell it that nothing more will come."""
        ...


M = TypeVar("M", bound=Member)

_GROUPS_PER_PATIENCE = 16
"""Every 16 groups that are handed out at once lengthen the deadline of the next answer by the limit again."""

_ANSWERED: dict[type[Message], tuple[type[Answer], ...]] = {Update: (Updated, Missed), ProbePrompt: (Probed,)}
"""The messages that a worker must answer, and the kinds of answer that count."""


class WorkerLauncher(Protocol[M]):
    """Starts workers."""

    def start(self, number: int) -> M:
        """Begin to start worker `number`, which has no weights yet, and return at once."""
        ...

    def wait(self, members: Sequence[M], seconds: float) -> list[M]:
        """Return the members that are ready, after at most `seconds`."""
        ...

    def close(self) -> None: ...


@dataclass
class _Slot(Generic[M]):
    """A place for a worker, and the worker that fills it."""

    number: int
    member: M
    seconds_left: float  # time to answer the present call; only seconds in which the pool waited for it count
    seconds_given: float = 0.0  # how much time the present call had at its start
    limit: str = "start_s"  # which key of rollouts.pool limits the present call: start_s or patience_s
    is_started: bool = False
    is_called: bool = True  # a call was not answered yet
    is_proven: bool = False  # the worker has completed a group, so it is past what only a first call takes
    failures: int = 0  # how often the workers of this slot failed since one last completed a group
    outbox: list[Message] = field(default_factory=list)
    open: dict[int, RolloutRequest] = field(default_factory=dict)
    proof: dict[str, int] | None = None  # checksums of the present weights as the worker holds them
    probe: Probe | None = None  # the answer to the latest probe
    owed: set[type[Message]] = field(default_factory=set)  # messages of the present call that must be answered
    joint_seconds: float = 0.0  # extra seconds for this call, because a broadcast waits for every sampler


class WorkerPool(Generic[M]):
    """`RolloutWorker` over `config.pool.workers` members of a launcher. Each group goes where the fewest are open."""

    def __init__(
        self,
        launcher: WorkerLauncher[M],
        sender: WeightSender,
        config: RolloutConfig,
        allowed_ids: Iterable[int],
    ) -> None:
        """`allowed_ids` are the ids that a policy may sample. An answer with any other id is garbage."""
        self.config = config
        self.num_replaced = 0  # workers that were replaced
        self.num_repeated = 0  # groups that were handed out again
        self._launcher, self._sender = launcher, sender
        self._allowed = frozenset(allowed_ids)
        self._intake = Intake(config)
        self._waiting: dict[int, RolloutRequest] = {}
        self._done: list[tuple[int, list[Rollout]]] = []
        self._losses: dict[int, int] = {}  # handle of a group -> how many workers failed while they had it
        self._version = NO_WEIGHTS
        self._manifest: dict[str, int] = {}  # checksums of the present weights
        self._is_updating = False
        self._longest_update = 0.0  # most seconds that a worker took for new weights
        self._failure: PoolFailed | None = None
        self._slots: list[_Slot[M]] = []
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
        handle = self._intake.accept(request, self._version)
        self._waiting[handle] = request.opened()  # samplers may be on hosts that do not see the files
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        """Return after a second at the latest, with nothing if nothing is complete. `PoolFailed` ends the run."""
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
                slot.outbox.append(Abort(handle))

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        """Send weights to every worker. A worker that is being replaced proves the same before it gets work.

        The present weights may be written over, so newcomers that still read them are waited for.
        """
        while any(slot.proof is None for slot in self._slots if slot.is_started and self._version != NO_WEIGHTS):
            self._exchange(1.0)
        manifest = send(self._sender, version, tensors)
        self._version, self._manifest = version, manifest
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
        return Proof.of_all(version, manifest, [slot.proof for slot in self._slots if slot.proof is not None])

    def probe(self, request: RolloutRequest) -> list[tuple[str, Probe]]:
        asked = [(slot, slot.member) for slot in self._slots if slot.is_started]
        for slot, _ in asked:
            slot.probe = None
            slot.outbox.append(ProbePrompt(request))
        while any(slot.probe is None and slot.member is member for slot, member in asked):
            self._exchange(1.0)
        return [(member.name, slot.probe) for slot, member in asked if slot.member is member and slot.probe is not None]

    def metrics(self) -> dict[str, float]:
        return {"pool/replaced": float(self.num_replaced), "pool/repeated": float(self.num_repeated)}

    def close(self) -> None:
        for slot in self._slots:
            slot.member.dismiss()
        for slot in self._slots:
            slot.member.kill()
        self._slots = []
        self._sender.close()
        self._launcher.close()

    def _deal(self) -> None:
        """Hand waiting groups out, the oldest first, to workers that have proven the present weights.

        All workers that were not replaced are waited for, so that the first to be up does not get every group.
        """
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
            self._slots[number].outbox.append(Generate(batch))

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
        """Replace workers that ended while they had nothing to do. Otherwise the others would wait for them."""
        for slot in self._slots:
            if slot.is_started and not slot.is_called:
                try:
                    slot.member.check()
                except MemberFailed as failure:
                    self._replace(slot, str(failure))

    def _call(self, slot: _Slot[M]) -> None:
        messages, slot.outbox = slot.outbox, []
        pool = self.config.pool
        slot.owed = {type(message) for message in messages} & _ANSWERED.keys()
        # New weights, and the first work of all, may take much longer than what follows.
        knows = slot.is_proven and (not slot.owed or self._longest_update)
        slot.limit = "patience_s" if knows else "start_s"
        num_groups = sum(len(message.requests) for message in messages if isinstance(message, Generate))
        slot.seconds_left = getattr(pool, slot.limit) * (1 + num_groups / _GROUPS_PER_PATIENCE)
        slot.seconds_left += 10 * self._longest_update if slot.owed else 0.0
        slot.joint_seconds = sum(one.tensor_handle.seconds for one in messages if isinstance(one, Update))
        slot.seconds_left += slot.joint_seconds
        slot.seconds_given = slot.seconds_left
        slot.is_called = True
        try:
            slot.member.call(messages)
        except MemberFailed as failure:
            self._replace(slot, str(failure))

    def _take(self, slot: _Slot[M]) -> None:
        needs_weights = not slot.is_started  # a worker that has just started takes the present weights first
        try:
            answers = slot.member.answers()
            slot.is_called = False
            for answer in answers:
                self._read(slot, answer)
            kinds = {type(one) for one in answers}
            slot.owed -= {asked for asked, answered in _ANSWERED.items() if kinds.intersection(answered)}
            if Updated in kinds and not slot.joint_seconds:
                self._longest_update = max(self._longest_update, slot.seconds_given - slot.seconds_left)
            if slot.owed:
                raise MemberFailed(f"did not answer {sorted(kind.__name__ for kind in slot.owed)}")
            needs_weights |= Missed(self._version) in answers
        except MemberFailed as failure:
            return self._replace(slot, str(failure))
        except PoolFailed:
            raise
        except Exception as error:  # nothing that another process says is to be trusted
            return self._replace(slot, f"answered garbage: {error!r:.200}")
        slot.is_started = True
        if needs_weights and self._version != NO_WEIGHTS:
            slot.outbox.append(self._update_for(slot))

    def _update_for(self, slot: _Slot[M]) -> Update:
        return Update(self._version, self._manifest, self._sender.tensor_handle(slot.member))

    def _read(self, slot: _Slot[M], answer: Answer) -> None:
        match answer:
            case Done(list(groups), int(num_open)):
                self._miss_nothing(slot, {handle for handle, _ in groups}, num_open)
                for handle, rollouts in groups:
                    if request := slot.open.get(handle):  # otherwise it was aborted meanwhile
                        self._check(request, rollouts)
                        del slot.open[handle]
                        self._losses.pop(handle, None)
                        slot.failures, slot.is_proven = 0, True
                        self._done.append((handle, rollouts))
            case Updated(int(version), dict(checksums)):
                if version != self._version:
                    raise MemberFailed(f"took weights of version {version}, not {self._version}")
                self._believe(slot, checksums)
            case Missed(int(version)) if slot.joint_seconds and version == self._version:
                pass  # the worker is sent the weights alone
            case Probed(dict(probe)):
                slot.probe = probe
            case _:
                raise MemberFailed(f"answered garbage: {answer!r:.200}")

    def _miss_nothing(self, slot: _Slot[M], done: set[int], num_open: int) -> None:
        """Raise `MemberFailed` if the worker neither returns nor works on a group that it was handed."""
        waiting = {handle for one in slot.outbox if isinstance(one, Generate) for handle, _ in one.requests}
        missing = len(slot.open.keys() - waiting - done) - num_open
        if missing > 0:
            raise MemberFailed(f"lost {missing} groups")

    def _believe(self, slot: _Slot[M], checksums: dict[str, int]) -> None:
        """Note what a worker holds. `MemberFailed` for a newcomer with other weights than were sent.

        The caller of `load_weights` judges an update to all workers.
        """
        wrong = Proof(self._version, self._manifest, checksums).wrong
        if wrong and not self._is_updating:
            raise MemberFailed(f"holds other bytes of {wrong} than were sent")
        slot.proof = checksums

    def _check(self, request: RolloutRequest, rollouts: object) -> None:
        """Raise `MemberFailed` unless these can be the completions that were asked for."""
        problem = _problem(request, rollouts, self.config.max_completion_tokens, self._allowed, self._version)
        if problem:
            raise MemberFailed(
                f"answered garbage for prompt {request.prompt_id}, draw {request.group_index}: {problem}"
            )

    def _replace(self, slot: _Slot[M], cause: str) -> None:
        """Start another worker in this slot and hand its groups out again. `PoolFailed` if that did not help before."""
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


def _problem(request: RolloutRequest, rollouts: object, limit: int, allowed: frozenset[int], version: int) -> str:
    """Say what is wrong with a group; empty if nothing is."""
    if not isinstance(rollouts, list) or not all(isinstance(rollout, Rollout) for rollout in rollouts):
        return f"expected a list of rollouts, found {rollouts!r:.80}"
    if [rollout.sample_index for rollout in rollouts] != list(range(request.group_size)):
        found = [rollout.sample_index for rollout in rollouts]
        return f"expected samples 0 to {request.group_size - 1}, found {found}"
    for rollout in rollouts:
        ids, logprobs = rollout.completion_ids, rollout.rollout_logprobs
        if (rollout.group_index, rollout.prompt_id) != (request.group_index, request.prompt_id):
            return f"it belongs to prompt {rollout.prompt_id}, draw {rollout.group_index}"
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
        if (rollout.routes is not None) != request.returns_routes:
            return f"expected {'routes' if request.returns_routes else 'no routes'}, found the opposite"
        if rollout.routes and (problem := rollout.routes.problem(len(request.prompt_ids), len(ids))):
            return problem
        starts = [start for start, _ in rollout.policy_versions]
        if starts[:1] != [0] or starts != sorted(starts) or max(starts) > len(ids):
            return f"expected runs of policy versions from token 0 on, found {rollout.policy_versions}"
        if not all(0 <= found <= version for _, found in rollout.policy_versions):
            return f"expected policy versions up to {version}, found {rollout.policy_versions}"
    return ""
