"""Plain data that samplers take and give, and the protocol that every sampler follows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

from torch import Tensor

from model.batch import StoredImage
from rollouts.routes import Routes

Json = dict[str, Any]
"""A JSON object that a user wrote."""


class FinishReason(Enum):
    stop = "stop"  # the policy ended its turn
    length = "length"  # the token limit came first, so the completion is overlong
    error = "error"  # the sampler's numbers were not finite, so the completion is worth nothing
    deadline = "deadline"  # the sampler was not done in time, so the completion is worth nothing

    @property
    def is_failure(self) -> bool:
        """Whether the sampler failed and not the policy. Such a completion is unscorable."""
        return self in (FinishReason.error, FinishReason.deadline)


@dataclass(frozen=True)
class Prompt:
    """Messages, images and the reference answer of one data row."""

    id: str
    messages: list[Json]
    reference: str
    meta: Json = field(default_factory=dict)


def question_of(messages: Sequence[Json]) -> str:
    """Return the text of the user's last message."""
    content = next((message["content"] for message in reversed(messages) if message.get("role") == "user"), "")
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in content if part.get("type") == "text")


@dataclass(frozen=True)
class RolloutRequest:
    """Asks for `group_size` completions of one prompt, which form a group."""

    group_index: int  # number of the group within the run; with the run seed it determines all randomness
    prompt_id: str
    prompt_ids: Sequence[int]  # token ids in which every image is expanded to its visual tokens
    placeholder_ids: Sequence[int]  # token ids with one placeholder per image or frame, for samplers that expand them
    images: Sequence[Tensor | StoredImage]  # images of the prompt, pixels of each [tiles, 3, height, width]
    group_size: int
    greedy: bool = False
    returns_routes: bool = False  # whether the rollouts say which experts an MoE took for every token

    @property
    def pixels(self) -> list[Tensor]:
        """The pixels of the images, which are opened here. `MediaError` where one cannot be read."""
        return [image if isinstance(image, Tensor) else image.open() for image in self.images]

    def opened(self) -> "RolloutRequest":
        """The same request with its images open."""
        return self if all(isinstance(image, Tensor) for image in self.images) else replace(self, images=self.pixels)


@dataclass(frozen=True)
class Rollout:
    """One completion as sampled. The ids are the only truth: text is decoded from them and never encoded back."""

    group_index: int
    prompt_id: str
    sample_index: int
    prompt_ids: Sequence[int]
    completion_ids: list[int]  # includes the end of turn when finish_reason is stop
    completion_mask: list[int]  # 1 where the policy wrote the token
    rollout_logprobs: list[float]  # one per completion token, at the sampling temperature
    policy_versions: tuple[tuple[int, int], ...]  # (first token, policy version) of each run of tokens
    finish_reason: FinishReason
    routes: Routes | None = None  # the experts of every token, where the request asked for them


NO_WEIGHTS = -1
"""The policy version of a sampler that holds no weights, or that may hold tensors of two versions."""

MOMENT = 0.2
"""`poll` works for about this many seconds at most, so a sampler takes new work and new weights that soon."""


@dataclass(frozen=True)
class Proof:
    """Says which weights a sampler holds after a transfer. Checksums are CRC-32 by released tensor name."""

    version: int
    sent: Mapping[str, int]  # checksums of the tensors as they were read from the trainer
    held: Mapping[str, int]  # checksums of the tensors as the sampler holds them now

    @property
    def wrong(self) -> list[str]:
        """Names of the tensors that were not sent, or whose bytes at the sampler differ from those that were sent."""
        return sorted(name for name in {**self.sent, **self.held} if self.held.get(name) != self.sent.get(name))

    @classmethod
    def of_all(cls, version: int, sent: Mapping[str, int], held: Iterable[Mapping[str, int]]) -> "Proof":
        """Join the proofs of several processes: a tensor is right only if every process holds it as it was sent."""
        found = dict(sent)
        for one in held:
            found |= {name: one.get(name, -1) for name in sent if one.get(name) != sent[name]}
        return cls(version, sent, found)


class RolloutWorker(Protocol):
    """Samples completions. A worker is built without weights, and `load_weights` must come before the first poll."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or being worked on."""
        ...

    def submit(self, request: RolloutRequest) -> int:
        """Queue a request and return its handle. `RuntimeError` if no weights were loaded yet."""
        ...

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        """Work for a moment and return the completed requests, as soon as there is one."""
        ...

    def abort(self, handle: int) -> None:
        """Forget a queued request."""
        ...

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        """Take all tensors of a policy version, by released name, and prove what is held afterwards.

        Each tensor is read once and may change as soon as the next one is drawn. `RuntimeError` names tensors that
        never came. The caller compares the proof: `rollouts.weights.sync.sync_weights` does both.
        """
        ...

    def probe(self, request: RolloutRequest) -> list[tuple[str, dict[str, Tensor]]]:
        """Return (name, `rollouts.probe.Probe`) of every sampler: how it sees the prompt, stage by stage."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts that a step's metrics report about the samplers; empty if there are none."""
        ...

    def close(self) -> None: ...


def generate(
    worker: RolloutWorker, requests: Sequence[RolloutRequest], check: Callable[[], None] = lambda: None
) -> list[list[Rollout]]:
    """Return the rollouts of every request, in request order. `check` is called between polls and may raise."""
    return [group for piece in generate_in_pieces(worker, requests, check) for group in piece]


def generate_in_pieces(
    worker: RolloutWorker,
    requests: Sequence[RolloutRequest],
    check: Callable[[], None] = lambda: None,
    show: Callable[[int], None] = lambda _: None,
) -> Iterator[list[list[Rollout]]]:
    """Yield what `generate` returns in pieces: the next requests, once they and all before them are complete.

    `show` is told between polls how many completions are there.
    """
    order = {worker.submit(request): position for position, request in enumerate(requests)}
    done: dict[int, list[Rollout]] = {}
    given = num_done = 0
    try:
        while order:
            check()
            found = {order.pop(handle): rollouts for handle, rollouts in worker.poll()}
            num_done += sum(map(len, found.values()))
            show(num_done)
            done |= found
            first = given
            while given in done:
                given += 1
            if given > first:
                yield [done.pop(position) for position in range(first, given)]
    finally:
        for handle in order:  # empty unless the caller gave up
            worker.abort(handle)
