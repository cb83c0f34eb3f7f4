"""A sampler that writes what a hash says and takes as long as it is told: for what is measured around samplers."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from rollouts.randomness import sample_seed, uniforms
from rollouts.rollout import MOMENT, FinishReason, Proof, Rollout, RolloutRequest


@dataclass
class _Open:
    request: RolloutRequest
    ready_at: float
    runs: list[tuple[int, int]] = field(default_factory=list)


class ScriptedSampler:
    """`RolloutWorker`: each request is complete `seconds` after it was submitted, all side by side. Completions depend
    on group index and sample alone; an update in flight marks the rest of them with the new version."""

    def __init__(self, allowed_ids: Sequence[int], end_id: int, length: int, seconds: float, run_seed: int = 0) -> None:
        self.seconds, self.version = seconds, 0
        self.num_updates = 0
        self.versions_seen: list[tuple[int, int]] = []  # (group index, version at its start)
        self._allowed, self._end_id, self._length, self._seed = sorted(allowed_ids), end_id, length, run_seed
        self._open: dict[int, _Open] = {}
        self._next = 0

    @property
    def is_idle(self) -> bool:
        return not self._open

    def submit(self, request: RolloutRequest) -> int:
        handle, self._next = self._next, self._next + 1
        self._open[handle] = _Open(request, time.monotonic() + self.seconds, [(0, self.version)])
        self.versions_seen.append((request.group_index, self.version))
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        if not self._open:
            return []
        first = min(one.ready_at for one in self._open.values())
        time.sleep(min(MOMENT / 10, max(0.0, first - time.monotonic())))
        now = time.monotonic()
        ready = [handle for handle, one in self._open.items() if one.ready_at <= now]
        return [(handle, self._write(self._open.pop(handle))) for handle in ready]

    def abort(self, handle: int) -> None:
        self._open.pop(handle, None)

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        for _ in tensors:
            pass
        self.version = version
        self.num_updates += 1
        for one in self._open.values():
            share = 1.0 - (one.ready_at - time.monotonic()) / max(self.seconds, 1e-9)
            written = min(self._length - 1, max(one.runs[-1][0] + 1, round(share * self._length)))
            one.runs.append((written, version))
        return Proof(version, {}, {})

    def probe(self, request: RolloutRequest) -> list[tuple[str, dict[str, Tensor]]]:
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._open.clear()

    def _write(self, one: _Open) -> list[Rollout]:
        request = one.request
        rollouts = []
        for sample in range(request.group_size):
            seed = np.array([sample_seed(self._seed, request.group_index, sample)], np.uint64)
            places = [int(uniforms(seed, position)[0] * len(self._allowed)) for position in range(self._length - 1)]
            ids = [*(self._allowed[place] for place in places), self._end_id]
            rollouts.append(
                Rollout(
                    group_index=request.group_index,
                    prompt_id=request.prompt_id,
                    sample_index=sample,
                    prompt_ids=request.prompt_ids,
                    completion_ids=ids,
                    completion_mask=[1] * len(ids),
                    rollout_logprobs=[-1.0] * len(ids),
                    policy_versions=tuple(one.runs),
                    finish_reason=FinishReason.stop,
                )
            )
        return rollouts
