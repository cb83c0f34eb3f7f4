"""The low-rank adapters of a model: which layers get them, how they start, when they act, and that they alone train."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import Tower
from model.lora.experts import STACKS, LoraExperts
from model.lora.linear import LoraLinear
from model.moe import Experts
from model.sail_vl2 import SailVL2

_HEAD = "lm_head"


@dataclass(frozen=True)
class Adapter:
    """One low-rank adapter: `weight` + scale * b @ a. A stack of experts has one more dimension in front."""

    name: str  # name of the adapted layer, or of a stack of experts: `...mlp.experts.down_proj`
    weight: Tensor
    a: nn.Parameter
    b: nn.Parameter
    scale: float


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, LoraLinear | LoraExperts]]:
    """(name, layer) of every layer that has an adapter."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraExperts):
            yield name, module


def adapters_of(model: nn.Module) -> list[Adapter]:
    """Every adapter of the model, in the order of its layers."""
    found = []
    for name, module in adapted_modules(model):
        if isinstance(module, LoraLinear):
            found.append(Adapter(name, module.weight, module.lora_a, module.lora_b, module.scale))
            continue
        for stack in STACKS:
            weight, a, b = (getattr(module, f"{stack}{end}") for end in ("", "_lora_a", "_lora_b"))
            found.append(Adapter(f"{name}.{stack}", weight, a, b, module.scale))
    return found


def is_adapted(model: nn.Module) -> bool:
    return next(adapted_modules(model), None) is not None


def targeted_layers(model: SailVL2, targets: Sequence[str]) -> list[str]:
    """Names of the layers that the targets mean, in the order of the model. `ValueError` for one that means none."""
    layers = [name for name, module in model.named_modules() if _takes_adapter(name, module)]
    chosen: set[str] = set()
    for target in targets:
        met = {name for name in layers if means(target, name)}
        if not met:
            kinds = sorted({kind for name in layers for kind in (name.partition(".")[0], name.rpartition(".")[2])})
            there = ", ".join(kind for kind in kinds if not kind.isdigit())
            raise ValueError(f"adapter.targets: expected parts of the names of layers, such as {there}, found {target}")
        chosen |= met
    return [name for name in layers if name in chosen]


def _takes_adapter(name: str, module: nn.Module) -> bool:
    return type(module) is Experts or (type(module) is nn.Linear and name.rpartition(".")[2] != _HEAD)


def means(target: str, name: str) -> bool:
    """Tell whether a target is a part of the name. A stack of experts has to be named."""
    is_part = f".{target}." in f".{name}."
    return is_part and (name.rpartition(".")[2] != "experts" or "experts" in target.split("."))


@torch.no_grad()
def add_adapters(
    model: SailVL2, names: Sequence[str], rank: int, alpha: float, seed: int, device: torch.device | None = None
) -> None:
    """Give the named layers fresh adapters that change nothing at first: `b` is 0, `a` uniform in ±1 / sqrt(in).

    Each starts from numbers of its own name and the seed, whatever other layers have adapters. They lie on `device`,
    or where their weights are; on the meta device they have no numbers.
    """
    for name in names:
        parent, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        kind = LoraExperts if isinstance(layer, Experts) else LoraLinear
        setattr(model.get_submodule(parent), own, kind(layer, rank, alpha / rank, device))  # pyright: ignore
    for adapter in adapters_of(model):
        if adapter.a.is_meta:
            continue
        key = hashlib.sha256(f"{seed} {adapter.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        drawn = torch.rand(adapter.a.shape, generator=generator, dtype=torch.float32)
        adapter.a.copy_((2 * drawn - 1) * adapter.a.shape[-1] ** -0.5)
        adapter.b.zero_()


def train_adapters_alone(model: SailVL2, frozen: Collection[Tower]) -> None:
    """Freeze all but the adapters. `ValueError` where a tower that is meant to be frozen has some."""
    model.requires_grad_(False)
    for adapter in adapters_of(model):
        for tower in frozen:
            if adapter.name.startswith(f"{tower.value}."):
                raise ValueError(
                    f"engine.freeze: {tower.name} ({tower.value}) is to stay as it is, but adapter.targets puts an "
                    f"adapter on {adapter.name}; leave one of both out"
                )
        adapter.a.requires_grad_()
        adapter.b.requires_grad_()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Compute by the weights alone inside. For passes without gradient, because a backward pass may come later."""
    modules = [module for _, module in adapted_modules(model)]
    for module in modules:
        module.is_on = False
    try:
        yield
    finally:
        for module in modules:
            module.is_on = True


class KeptAdapters:
    """A copy of the present adapters, small beside the model, by which the same model can compute later."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        if any(bool(adapter.b.any()) for adapter in adapters_of(model)):  # else they change nothing
            for adapter in adapters_of(model):
                self._kept += [(own, own.detach().clone()) for own in (adapter.a, adapter.b)]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute by the kept adapters inside. For passes without gradient."""
        if not self._kept:
            with without_adapters(self._model):
                yield
            return
        present = [(own, own.data) for own, _ in self._kept]
        for own, kept in self._kept:
            own.data = kept
        try:
            yield
        finally:
            for own, data in present:
                own.data = data
