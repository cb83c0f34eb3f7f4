"""Weights and AdamW's moments of a transformers model in the checkpoints of a run, as `LocalEngine` keeps its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.engine.shards import MOMENTS, STATE, WEIGHTS, Shard, StoredShards, copied, whole_shards, write_shards
from model.engine.updates import UpdateCount
from model.json_values import read_json_object
from model.run.durable import write_stream
from model.run.manifest import Digests
from model.run.saving import ThreadWriting, Writing
from model.run.state import State


class PolicySaves:
    """`Saves` of a policy that an optimizer of torch trains. `updates` counts what was done."""

    def __init__(self, policy: Any, optimizer: torch.optim.AdamW, updates: UpdateCount) -> None:
        """Moments that the optimizer has not made yet are made here, as zeros, which is what it begins with."""
        self.updates = updates
        self._policy, self._optimizer = policy, optimizer
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
                }

    def save(self, folder: Path) -> Digests:
        return _write(folder, *self._shards(), self.updates.state())

    def save_in_background(self, folder: Path) -> Writing:
        weights, moments = (copied(shards) for shards in self._shards())
        state = self.updates.state()
        return ThreadWriting(lambda: _write(folder, weights, moments, state))

    def load(self, folder: Path) -> None:
        state = read_json_object(folder / STATE)
        self.updates.check(state, str(folder / STATE))
        files = list(zip((StoredShards(folder, kind) for kind in (WEIGHTS, MOMENTS)), self._shards(), strict=True))
        for stored, targets in files:
            stored.check(targets)
        for stored, targets in files:
            stored.fill(targets)
        self.updates.restore(state)

    def _shards(self) -> tuple[dict[str, Shard], dict[str, Shard]]:
        """Weights, and moments under the names of `LocalEngine`."""
        return whole_shards(self._policy.named_parameters()), whole_shards(self._moments())

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._policy.named_parameters():
            if parameter.requires_grad:
                for kind in ("exp_avg", "exp_avg_sq", "step"):
                    yield f"{name}/{kind}", self._optimizer.state[parameter][kind]


def _write(folder: Path, weights: dict[str, Shard], moments: dict[str, Shard], state: State) -> Digests:
    return {
        **write_shards(folder, WEIGHTS, weights),
        **write_shards(folder, MOMENTS, moments),
        STATE: write_stream(folder / STATE, [json.dumps(state).encode()]),
    }
