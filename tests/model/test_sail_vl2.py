"""The whole model: gradient checkpointing, frozen towers, initial weights."""

import itertools

import pytest
import torch

from model.batch import Row, pack_rows
from model.config import Flavour, Tower, flavour_config
from model.moe import balance_loss
from model.sail_vl2 import SailVL2

PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16


def build(flavour: Flavour) -> SailVL2:
    model = SailVL2(flavour_config(flavour))
    model.initialise(6)
    return model


def batch():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, 32, 32, generator=generator)]
    return pack_rows([Row([PLACEHOLDER] * 4 + [5, 6], [[1, 2, 3], [4, 9]], images)], PLACEHOLDER, PIXELS_PER_TOKEN)


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres])
def test_gradient_checkpointing_changes_nothing(flavour, monkeypatch):
    """Bit for bit: the same operations run again. The routing is what one forward pass saw, not two."""
    model, inputs = build(flavour), batch()
    layer_runs = 0
    forward = type(model.language_model.model.layers[0]).forward

    def counted(*args):
        nonlocal layer_runs
        layer_runs += 1
        return forward(*args)

    monkeypatch.setattr(type(model.language_model.model.layers[0]), "forward", counted)
    results = []
    for enabled in (False, True):
        model.checkpoint_gradients(enabled)
        model.zero_grad()
        layer_runs = 0
        scores = model(inputs)
        loss = scores.logprobs.sum() + 0.1 * scores.entropy.sum()
        if scores.routing is not None:
            assert scores.routing.counts.sum(-1).tolist() == [2.0 * inputs.num_tokens] * 4
            loss = loss + balance_loss(scores.routing, scores.routing.counts)
        loss.backward()
        assert layer_runs == 4 * (1 + enabled)
        results.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (loss, gradients), (other_loss, other_gradients) = results
    assert loss == other_loss
    for name, gradient in gradients.items():
        assert torch.equal(gradient, other_gradients[name]), name
        assert gradient.abs().max() > 0, name


FROZEN = [towers for n in range(3) for towers in itertools.combinations(Tower, n)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", FROZEN, ids=lambda towers: "+".join(t.name for t in towers) or "none")
def test_frozen_towers_get_no_gradient_and_the_others_the_same_one(frozen, checkpointing):
    model, inputs = build(Flavour.tiny), batch()
    model(inputs).logprobs.sum().backward()
    everything = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.freeze(set(Tower))
    model.freeze(frozen)  # the last call decides
    model.checkpoint_gradients(checkpointing)
    model(inputs).logprobs.sum().backward()
    for name, parameter in model.named_parameters():
        if any(name.startswith(f"{tower.value}.") for tower in frozen):
            assert parameter.grad is None, name
        else:
            scale = everything[name].abs().max()
            assert scale > 0, name
            assert (parameter.grad - everything[name]).abs().max() <= 1e-5 * scale, name


def test_a_frozen_vision_tower_keeps_no_graph():
    model = build(Flavour.tiny)
    model.freeze({Tower.vision})
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not model.vision_model([pixels])[0].requires_grad


def test_initial_experts_have_the_spread_of_dense_layers():
    """std 1/sqrt(fan_in) of each expert's matrix, not of the stack; 2,000 or more samples err by 5 % at most."""
    model = build(Flavour.tiny_moe)
    experts = model.language_model.model.layers[0].mlp.experts
    assert experts.gate_up_proj.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert experts.down_proj.std().item() == pytest.approx(192**-0.5 / 8**0.5, rel=0.05)
