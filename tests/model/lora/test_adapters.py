"""Adapters of our own: they act and train everywhere, merge exactly, and are off when they are switched off."""

import pytest
import torch
from torch import nn

from model.batch import Row, pack_rows
from model.checkpoint import sorted_tensors
from model.config import AttentionKernel, Flavour, Tower, flavour_config
from model.decoding.decoder import PromptDecoder
from model.layers import joint_linear, side_by_side
from model.lora.adapters import (
    KeptAdapters,
    adapters_of,
    add_adapters,
    targeted_layers,
    train_adapters_alone,
    without_adapters,
)
from model.lora.config import LoraConfig
from model.lora.linear import LoraLinear
from model.lora.merge import merged_tensors
from model.sail_vl2 import SailVL2

EVERYWHERE = {
    Flavour.tiny: ["language_model", "mlp1", "vision_model"],
    Flavour.tiny_moe: ["language_model", "mlp1", "vision_model", "experts"],
    Flavour.tiny_anyres: ["language_model", "mlp1", "vision_model"],
}
FLAVOURS = pytest.mark.parametrize("flavour", EVERYWHERE, ids=lambda flavour: flavour.value)


def build(flavour: Flavour, dtype: torch.dtype = torch.float64) -> SailVL2:
    model = SailVL2(flavour_config(flavour)).to(dtype)
    model.initialise(3)
    return model


def adapted(flavour: Flavour, dtype: torch.dtype = torch.float64, trained: bool = True) -> SailVL2:
    """A model with adapters on all layers; `trained`: they change the model as much as training may."""
    model = build(flavour, dtype)
    add_adapters(model, targeted_layers(model, EVERYWHERE[flavour]), rank=4, alpha=8, seed=0)
    train_adapters_alone(model, [])
    if trained:
        shake(model, 5)
    return model


@torch.no_grad()
def shake(model: SailVL2, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters_of(model):
        drawn = torch.randn(adapter.b.shape, generator=generator, dtype=torch.float64)
        adapter.b.copy_(0.05 * drawn)


def inputs_of(longest: int = 20):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 500, (longest,), generator=generator).tolist()
    return pack_rows([Row([*[519] * 4, 7], [ids, [4, 5]], [image]), Row([5, 6], [[8, 9]])], 519, 16)


@FLAVOURS
def test_fresh_adapters_leave_the_model_as_it_is_to_the_bit(flavour):
    inputs = inputs_of()
    with torch.no_grad():
        plain = build(flavour, torch.float32)(inputs).logprobs
        assert torch.equal(adapted(flavour, torch.float32, trained=False)(inputs).logprobs, plain)


@pytest.mark.parametrize("kernel", [AttentionKernel.sdpa, AttentionKernel.split], ids=lambda kernel: kernel.value)
@pytest.mark.parametrize("laid", [False, True], ids=["apart", "side by side"])
@FLAVOURS
def test_every_adapter_gets_a_gradient_and_nothing_else_does(flavour, kernel, laid):
    model, inputs = adapted(flavour), inputs_of(60)  # so many tokens that every expert gets some
    if laid:
        model.lay_side_by_side()
    model(inputs, attention=kernel).logprobs.sum().backward()
    own = {id(matrix) for adapter in adapters_of(model) for matrix in (adapter.a, adapter.b)}
    assert len(own) >= 60
    for name, parameter in model.named_parameters():
        moves = parameter.grad is not None and bool(parameter.grad.any())
        assert moves == (id(parameter) in own), name


@FLAVOURS
def test_the_gradients_are_those_of_the_chain_rule_through_the_merged_weight(flavour):
    """d/dA = scale B^T dW and d/dB = scale dW A^T; float64, so 1e-12 relative covers another order of sums."""
    model, inputs = adapted(flavour), inputs_of()
    model(inputs).logprobs.sum().backward()
    merged = merged_model(model, flavour)
    merged(inputs).logprobs.sum().backward()
    weights = dict(merged.named_parameters())
    for adapter in adapters_of(model):
        name = adapter.name if adapter.name in weights else f"{adapter.name}.weight"
        of_weight = weights[name].grad
        assert of_weight is not None and adapter.a.grad is not None and adapter.b.grad is not None
        of_a = adapter.scale * adapter.b.mT @ of_weight
        of_b = adapter.scale * of_weight @ adapter.a.mT
        assert (adapter.a.grad - of_a).norm() <= 1e-12 * of_a.norm(), adapter.name
        assert (adapter.b.grad - of_b).norm() <= 1e-12 * of_b.norm(), adapter.name


def merged_model(model: SailVL2, flavour: Flavour) -> SailVL2:
    from model.checkpoint import fill

    plain = build(flavour, next(model.parameters()).dtype)
    fill(plain, merged_tensors(model, plain.dtype))
    return plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@FLAVOURS
def test_merged_weights_compute_what_the_adapters_compute(flavour, dtype, tolerance):
    """Log-probabilities of about 6 nats: 1e-5 is some ten roundings of them in float32."""
    model, inputs = adapted(flavour, dtype), inputs_of()
    with torch.no_grad():
        own, merged = model(inputs).logprobs, merged_model(model, flavour)(inputs).logprobs
        assert (own - build(flavour, dtype)(inputs).logprobs).abs().max() > 1e-3
    assert (own - merged).abs().max() <= tolerance


@FLAVOURS
def test_a_decoder_samples_by_the_adapters_as_by_merged_weights(flavour):
    """Sampling lays weights together and skips gradients; float64, so only the order of sums differs."""
    model = adapted(flavour)
    inputs = pack_rows([Row([5, 6, 7, 8], []), Row([9, 10], [])], 519, 16)
    first, second = (
        PromptDecoder(one).prefill(inputs, group_size=2, room=8)[0] for one in (model, merged_model(model, flavour))
    )
    plain = PromptDecoder(build(flavour)).prefill(inputs, group_size=2, room=8)[0]
    assert (first - second).abs().max() <= 1e-12 and (first - plain).abs().max() > 1e-4


@FLAVOURS
def test_the_merged_tensors_are_the_released_ones_and_each_parameter_is_gathered_once(flavour):
    model, gathered = adapted(flavour), []

    def gather(parameter: nn.Parameter) -> torch.Tensor:
        gathered.append(id(parameter))
        return parameter.detach()

    names = [name for name, _ in merged_tensors(model, torch.float32, gather)]
    assert names == [name for name, _ in sorted_tensors(build(flavour))]
    assert sorted(gathered) == sorted(id(parameter) for parameter in model.parameters())


@FLAVOURS
def test_switched_off_it_is_the_model_below_to_the_bit(flavour):
    model, inputs = adapted(flavour, torch.float32), inputs_of()
    with torch.no_grad():
        own = model(inputs).logprobs
        with without_adapters(model):
            assert torch.equal(model(inputs).logprobs, build(flavour, torch.float32)(inputs).logprobs)
        assert torch.equal(model(inputs).logprobs, own)


@FLAVOURS
def test_kept_adapters_act_after_the_present_ones_have_moved(flavour):
    model, inputs = adapted(flavour, torch.float32), inputs_of()
    with torch.no_grad():
        before, kept = model(inputs).logprobs, KeptAdapters(model)
        shake(model, 6)
        after = model(inputs).logprobs
        assert not torch.equal(before, after)
        with kept.in_place():
            assert torch.equal(model(inputs).logprobs, before)
        assert torch.equal(model(inputs).logprobs, after)


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "side by side"])
def test_layers_side_by_side_may_have_adapters_or_none(shared):
    """Outputs and gradients of the joint product against each layer called alone, float64."""
    torch.manual_seed(0)
    layers: list[nn.Linear] = [nn.Linear(6, rows, bias=False, dtype=torch.float64) for rows in (4, 2, 3)]
    for index in (0, 2):
        layers[index] = LoraLinear(layers[index], 2, 0.5)
        for matrix in (layers[index].lora_a, layers[index].lora_b):  # pyright: ignore
            nn.init.normal_(matrix)  # pyright: ignore
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p for layer in layers for p in layer.parameters())]
    apart = [layer(x) for layer in layers]
    sums = [part.square().sum() for part in apart]
    alone = torch.autograd.grad(sum(sums, torch.zeros((), dtype=torch.float64)), leaves)
    joint = side_by_side(x, *layers) if shared else joint_linear(x, *layers).split([4, 2, 3], dim=-1)
    for one, other in zip(joint, apart, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-13)
    sums = [part.square().sum() for part in joint]
    together = torch.autograd.grad(sum(sums, torch.zeros((), dtype=torch.float64)), leaves)
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_layer_with_a_bias_passes_the_numerical_check_of_gradients():
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(5, 3, dtype=torch.float64), 2, 0.5)
    nn.init.normal_(layer.lora_a)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def product(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(product, (x, *layer.parameters()))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_recomputing_blocks_changes_no_gradient(checkpointed):
    model, inputs = adapted(Flavour.tiny_moe, torch.float32), inputs_of()
    other = adapted(Flavour.tiny_moe, torch.float32)
    other.checkpoint_gradients(checkpointed)
    for one in (model, other):
        one(inputs).logprobs.sum().backward()
    for ours, theirs in zip(adapters_of(model), adapters_of(other), strict=True):
        assert torch.equal(ours.a.grad, theirs.a.grad) and torch.equal(ours.b.grad, theirs.b.grad)


def test_names_choose_the_layers():
    model = build(Flavour.tiny_moe)
    default = targeted_layers(model, LoraConfig().targets)
    assert all(name.startswith(("language_model.", "mlp1.")) for name in default)
    assert not any("experts" in name or "lm_head" in name for name in default) and "mlp1.3" in default
    depth = model.config.language.num_hidden_layers
    assert len(targeted_layers(model, ["q_proj", "v_proj"])) == 2 * depth
    assert targeted_layers(model, ["layers.1.self_attn.o_proj"]) == ["language_model.model.layers.1.self_attn.o_proj"]
    assert targeted_layers(model, ["layers.1.mlp.experts"]) == ["language_model.model.layers.1.mlp.experts"]
    with pytest.raises(ValueError, match=r"adapter\.targets: .* such as experts, .*q_proj.*, found c_attn"):
        targeted_layers(model, ["q_proj", "c_attn"])
    with pytest.raises(ValueError, match=r"adapter\.targets: .* found experts"):
        targeted_layers(build(Flavour.tiny), ["experts"])


def test_the_head_is_refused_by_name():
    for name in ("lm_head", "language_model.lm_head"):
        with pytest.raises(ValueError, match=rf"adapter\.targets: .* found {name}; .* leave lm_head out"):
            LoraConfig(targets=["q_proj", name])


def test_an_adapter_starts_alike_whatever_others_there_are():
    few, many = build(Flavour.tiny, torch.float32), build(Flavour.tiny, torch.float32)
    add_adapters(few, targeted_layers(few, ["k_proj"]), 4, 8, seed=7)
    add_adapters(many, targeted_layers(many, ["language_model"]), 4, 8, seed=7)
    found = {adapter.name: adapter for adapter in adapters_of(many)}
    for adapter in adapters_of(few):
        assert torch.equal(adapter.a, found[adapter.name].a) and not adapter.b.any()
        assert 0.5 < adapter.a.abs().max() * adapter.a.shape[1] ** 0.5 <= 1
    assert not torch.equal(adapters_of(few)[0].a, adapters_of(few)[1].a)


def test_a_tower_is_not_both_frozen_and_adapted():
    model = adapted(Flavour.tiny)
    with pytest.raises(
        ValueError, match=r"engine\.freeze: vision \(vision_model\) .* puts an adapter on vision_model\."
    ):
        train_adapters_alone(model, [Tower.vision])
