"""AdamW over flat parts of groups of parameters, and the rows of a tensor that cover such a part: ZeRO's layout."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from model.config import Tower
from model.engine.config import OptimizerConfig
from model.engine.shards import Shard, StoredShards
from model.sail_vl2 import SailVL2

KINDS = ("exp_avg", "exp_avg_sq")


class GroupedAdamW(torch.optim.Optimizer):
    """AdamW over flat parts of groups of parameters; a group that had no gradient in an update stays as it is.

    A group has all trained matrices, or all trained vectors, of one tower.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> None:
        """`groups` have the keys params, tower and weight_decay."""
        super().__init__(groups, {"lr": 0.0, "is_touched": False})
        self._config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for flat in group["params"] if group["is_touched"] else ():
                state = self.state[flat]
                adamw(
                    [flat],
                    [flat.grad],
                    [state["exp_avg"]],
                    [state["exp_avg_sq"]],
                    [],
                    [state["step"]],
                    fused=True,
                    amsgrad=False,
                    beta1=self._config.beta1,
                    beta2=self._config.beta2,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=1e-8,
                    maximize=False,
                )

    def begin(self, flats: Iterable[Tensor]) -> None:
        """Give every flat part moments of 0."""
        for flat in flats:
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            like = torch.zeros_like(flat, requires_grad=False)
            self.state[flat] = {"exp_avg": like, "exp_avg_sq": torch.zeros_like(like), "step": step}


@dataclass(frozen=True)
class Fragment:
    """The elements of a parameter, as one row of numbers, that this process updates."""

    start: int
    weight: Tensor  # float32, and a part of the flat tensor that the optimizer updates
    moments: dict[str, Tensor]
    step: Tensor  # Adam's count, which all parameters of a group share


def read_rows(stored: StoredShards, name: str, shard: Shard) -> Tensor:
    """Read the rows that a shard names, whose tensor has a shape alone."""
    found = torch.empty(shard.tensor.shape)
    stored.fill({name: Shard(found, shard.start, shard.shape)})
    return found


def copy_part(target: Tensor, start: int, rows: Tensor, shard: Shard) -> None:
    """Copy the elements from `start` on, of the whole tensor, out of the rows of a shard."""
    first = start - shard.start * math.prod(shard.shape[1:])
    target.copy_(rows.reshape(-1)[first : first + len(target)])


def tower_of(name: str) -> Tower:
    return next(tower for tower in Tower if name.startswith(f"{tower.value}."))


def key_of(group: dict[str, Any]) -> tuple[Tower, bool]:
    return group["tower"], group["decays"]


def decay_groups(model: SailVL2, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in groups: matrices, which decay, and vectors, which do not, of each tower."""
    found = []
    for tower in Tower:
        own = [one for one in getattr(model, tower.value).parameters() if one.requires_grad]
        for decays in (True, False):
            chosen = [one for one in own if (one.dim() >= 2) is decays]
            decay = weight_decay if decays else 0.0
            if chosen:
                found.append({"params": chosen, "tower": tower, "decays": decays, "weight_decay": decay})
    return found
