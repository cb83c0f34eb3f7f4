"""An adapter on any projection acts and trains, whatever kernel the model takes: no weight is read behind its back."""

import pytest
import torch
from torch import Tensor, nn

from model.batch import Row, pack_rows
from model.config import AttentionKernel, Flavour, flavour_config
from model.layers import RMSNorm
from model.sail_vl2 import SailVL2

PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16
KERNELS = [AttentionKernel.auto, AttentionKernel.sdpa, AttentionKernel.split]


class Adapter(nn.Module):
    """A layer that wraps another one, as libraries for low-rank adapters do it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.shift = nn.Parameter(torch.zeros(base.weight.shape[0], dtype=base.weight.dtype))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + (self.shift[:, None, None] if isinstance(self.base, nn.Conv2d) else self.shift)


class Subclass(nn.Linear):
    """A layer that is a Linear by type, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


def batch(longest: int) -> object:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float64)
    return pack_rows(
        [Row([*[PLACEHOLDER] * 4, 7], [[1, 2, 3] * longest, [4, 5]], [image]), Row([5, 6], [[8]])],
        PLACEHOLDER,
        PIXELS_PER_TOKEN,
    )


def projections(model: SailVL2) -> list[str]:
    kinds = nn.Linear | nn.Conv2d
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and "lm_head" not in name]


def build(flavour: Flavour) -> SailVL2:
    model = SailVL2(flavour_config(flavour)).double()
    model.initialise(3)
    return model


def replace_layer(model: SailVL2, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.value)
@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres], ids=lambda f: f.value)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained base", "frozen base"])
def test_every_wrapped_projection_gets_a_gradient_and_changes_the_output(flavour, kernel, frozen):
    model, inputs = build(flavour), batch(40)
    before = model(inputs, attention=kernel).logprobs.detach()
    if frozen:
        model.requires_grad_(False)
    adapters = {}
    for name in projections(model):
        adapters[name] = Adapter(model.get_submodule(name))
        replace_layer(model, name, adapters[name])
    assert len(adapters) >= 15
    unchanged = model(inputs, attention=kernel).logprobs
    assert torch.allclose(unchanged, before, rtol=0, atol=1e-12)
    unchanged.sum().backward()
    for name, adapter in adapters.items():
        assert adapter.shift.grad is not None and adapter.shift.grad.abs().max() > 0, name
    # With everything else at zero, one adapter alone moves the log-probabilities.
    for name, adapter in adapters.items():
        with torch.no_grad():
            adapter.shift.copy_(torch.linspace(-1.0, 1.0, adapter.shift.numel()))
            assert (model(inputs, attention=kernel).logprobs - before).abs().max() > 1e-9, name
            adapter.shift.zero_()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.value)
def test_hooks_and_subclasses_of_linear_are_called(kernel):
    model, inputs = build(Flavour.tiny), batch(40)
    called: set[str] = set()
    names = [name for name in projections(model) if isinstance(model.get_submodule(name), nn.Linear)]
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name))
    model(inputs, attention=kernel)
    assert called == set(names)
    model = build(Flavour.tiny)
    layer = model.language_model.model.layers[0].self_attn.k_proj
    layer.__class__, layer.shift = Subclass, nn.Parameter(torch.zeros(layer.weight.shape[0], dtype=torch.float64))
    model(inputs, attention=kernel).logprobs.sum().backward()
    assert layer.shift.grad.abs().max() > 0


def test_an_adapter_on_the_head_is_refused_by_name():
    model = build(Flavour.tiny)
    model.language_model.lm_head = Adapter(model.language_model.lm_head)
    with pytest.raises(ValueError, match=r"lm_head: expected torch\.nn\.Linear without bias or hooks, found Adapter"):
        model(batch(1))


def test_hooks_on_every_norm_are_called():
    model, inputs = build(Flavour.tiny), batch(40)
    called: set[str] = set()
    names = [name for name, module in model.named_modules() if isinstance(module, RMSNorm)]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
    model(inputs)
    assert called == set(names) and any("q_norm" in name for name in names)


def test_wrapped_layers_compute_in_the_models_dtype():
    model = build(Flavour.tiny).bfloat16()
    inputs = batch(4)
    before = model(inputs).logprobs
    for name in projections(model):
        replace_layer(model, name, Adapter(model.get_submodule(name)))
    assert (
        model(inputs).logprobs - before
    ).abs().max() <= 0.1 * before.abs().max()  # joint and single products round apart


def test_a_replaced_forward_and_a_bias_act():
    """Instance-wide replacements, as accelerate's hooks make them, and layers that have more than a weight."""
    for name in projections(build(Flavour.tiny)):
        model, inputs = build(Flavour.tiny), batch(40)
        before, layer = model(inputs).logprobs.detach(), model.get_submodule(name)
        forward = layer.forward
        layer.forward = lambda x, forward=forward: 0.5 * forward(x)
        assert (model(inputs).logprobs - before).abs().max() > 1e-9, name
        del layer.forward
        if isinstance(layer, nn.Linear) and layer.bias is None:
            other = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
            with torch.no_grad():
                other.weight.copy_(layer.weight)
            replace_layer(model, name, other)
            model(inputs).logprobs.sum().backward()
            assert other.bias.grad is not None and other.bias.grad.abs().max() > 0, name
