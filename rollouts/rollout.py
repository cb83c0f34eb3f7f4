"""What samplers take and give, as plain data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from torch import Tensor


class FinishReason(Enum):
    stop = "stop"  # the policy ended its turn
    length = "length"  # overlong: the token limit came first
    error = "error"  # the sampler's numbers were not finite; the completion is worth nothing
    deadline = "deadline"  # the sampler was not done in time; the completion is worth nothing

    @property
    def is_failure(self) -> bool:
        """The sampler's, not the policy's: such a completion is unscorable."""
        return self in (FinishReason.error, FinishReason.deadline)


@dataclass(frozen=True)
class Prompt:
    """Messages, images and the reference answer of one data row."""

    id: str
    messages: list[dict[str, Any]]
    reference: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutRequest:
    """G completions of one prompt. `draw` is the ordinal that, with the run seed, keys all randomness."""

    draw: int
    prompt_id: str
    prompt_ids: Sequence[int]  # expanded form
    placeholder_ids: Sequence[int]  # one placeholder per image or frame, for samplers that expand themselves
    images: Sequence[Tensor]  # pixels of the prompt, each [tiles, 3, height, width]
    group_size: int
    greedy: bool = False


@dataclass(frozen=True)
class Rollout:
    """One completion as sampled. The ids are the only truth: text is decoded from them, never encoded back."""

    draw: int
    prompt_id: str
    sample_index: int
    prompt_ids: Sequence[int]
    completion_ids: list[int]  # includes the end of turn when finish_reason is stop
    completion_mask: list[int]  # 1 where the policy wrote
    rollout_logprobs: list[float]  # of each completion token, at the sampling temperature
    policy_versions: tuple[tuple[int, int], ...]  # (first token, policy version) runs
    finish_reason: FinishReason


MOMENT = 0.2
"""Seconds that `poll` works at most, give or take a step: how soon a sampler takes new work and new weights."""


class RolloutWorker(Protocol):
    """Samples completions. `finish_update` proves which weights it holds before sampling goes on."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or being worked on."""
        ...

    def submit(self, request: RolloutRequest) -> int:
        """Queue a request; returns its handle."""
        ...

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        """Work for a moment; return the requests that were completed, as soon as there is one."""
        ...

    def abort(self, handle: int) -> None:
        """Forget a queued request."""
        ...

    def begin_update(self, version: int, manifest: dict[str, int]) -> None:
        """Announce weights: tensor name -> checksum."""
        ...

    def load(self, name: str, tensor: Tensor) -> None:
        """Receive one announced tensor."""
        ...

    def finish_update(self, version: int) -> dict[str, int]:
        """Switch to the new weights; returns the checksums of what is now held."""
        ...

    def probe(self, request: RolloutRequest) -> list[tuple[str, dict[str, Tensor]]]:
        """(name, `rollouts.probe.Probe`) of every sampler: what it makes of the prompt, stage by stage."""
        ...

    def close(self) -> None: ...


def generate(
    worker: RolloutWorker, requests: Sequence[RolloutRequest], check: Callable[[], None] = lambda: None
) -> list[list[Rollout]]:
    """Rollouts of every request, in request order. `check` is called between polls and may raise to give up."""
    return [group for piece in generate_in_pieces(worker, requests, check) for group in piece]


def generate_in_pieces(
    worker: RolloutWorker, requests: Sequence[RolloutRequest], check: Callable[[], None] = lambda: None
) -> Iterator[list[list[Rollout]]]:
    """As `generate`, each time with the next requests, once they and all before them are complete."""
    order = {worker.submit(request): position for position, request in enumerate(requests)}
    done: dict[int, list[Rollout]] = {}
    given = 0
    try:
        while order:
            check()
            done |= {order.pop(handle): rollouts for handle, rollouts in worker.poll()}
            first = given
            while given in done:
                given += 1
            if given > first:
                yield [done.pop(position) for position in range(first, given)]
    finally:
        for handle in order:  # none, unless the caller gave up
            worker.abort(handle)
