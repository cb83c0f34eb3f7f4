"""Weights with their adapters added, under released names, one by one: a second whole model never exists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.lora.adapters import Adapter, adapters_of

Gather = Callable[[nn.Parameter], Tensor]
"""A parameter -> the whole tensor that it stands for: itself on one device, the gathered shards of a sharded engine."""


def whole(parameter: nn.Parameter) -> Tensor:
    """`Gather` where nothing is sharded."""
    return parameter.detach()


@dataclass(frozen=True)
class ReleasedTensor:
    """A tensor of the released format: a whole parameter, or one matrix of a stack of experts."""

    parameter: nn.Parameter
    adapter: Adapter | None
    expert: int | None = None
    rows: slice | None = None  # rows of the expert's matrix; None: all

    @property
    def _rows(self) -> slice:
        return self.rows or slice(None)

    def of(self, stored: Tensor) -> Tensor:
        """Return the part of the whole parameter that this tensor is."""
        return stored if self.expert is None else stored[self.expert, self._rows]

    def merged(self, weight: Tensor, gather: Gather) -> Tensor:
        """`weight`, which is this tensor, with its adapter added in at least float32."""
        if self.adapter is None:
            return weight
        a, b = gather(self.adapter.a), gather(self.adapter.b)
        if self.expert is not None:
            a, b = a[self.expert], b[self.expert, self._rows]
        wide = torch.promote_types(weight.dtype, torch.float32)
        return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=self.adapter.scale)


def released_parts(model: nn.Module) -> dict[str, ReleasedTensor]:
    """Released name -> where its tensor comes from, sorted by name."""
    adapters = adapters_of(model)
    by_weight = {id(adapter.weight): adapter for adapter in adapters}
    own = {id(matrix) for adapter in adapters for matrix in (adapter.a, adapter.b)}
    found: dict[str, ReleasedTensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        adapter = by_weight.get(id(parameter))
        stem, _, leaf = name.rpartition(".")
        if id(parameter) in own:
            continue
        if not stem.endswith(".experts"):
            found[name] = ReleasedTensor(parameter, adapter)
            continue
        inner = parameter.shape[1] // 2
        halves = {"gate_proj": slice(inner), "up_proj": slice(inner, None)}
        for matrix, rows in (halves if leaf == "gate_up_proj" else {leaf: None}).items():
            for expert in range(parameter.shape[0]):
                found[f"{stem}.{expert}.{matrix}.weight"] = ReleasedTensor(parameter, adapter, expert, rows)
    return dict(sorted(found.items()))


@torch.no_grad()
def merged_tensors(model: nn.Module, dtype: torch.dtype, gather: Gather = whole) -> Iterator[tuple[str, Tensor]]:
    """(released name, whole tensor) sorted by name: the weights with their adapters, added in float32, as `dtype`.

    Every process of a sharded engine walks the same names and gathers the same parameters in the same order; each is
    gathered once. Beside one tensor, the stacks of experts of one layer are held.
    """
    held: dict[int, Tensor] = {}
    layer = ""

    def gathered(parameter: nn.Parameter) -> Tensor:
        if id(parameter) not in held:
            held[id(parameter)] = gather(parameter)
        return held[id(parameter)]

    for name, part in released_parts(model).items():
        here = name.partition(".experts.")[0]
        if here != layer:  # a tied head and the embedding follow each other
            held = {key: tensor for key, tensor in held.items() if key == id(part.parameter)}
            layer = here
        yield name, part.merged(part.of(gathered(part.parameter)), gathered).to(dtype)
