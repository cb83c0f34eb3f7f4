"""Load balance of the routers, against definitions written out token by token. float64: only the order of a few hundred
additions differs, 1e-12 relative."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.config import AttentionKernel, Flavour, MoeLanguageConfig, flavour_config
from model.kernels.attention import packed_attention
from model.moe import MoeMLP, Routing, activation_entropy, balance_loss
from model.sail_vl2 import SailVL2

PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16
EXPERTS, TOP_K = 8, 2


@pytest.fixture(scope="module")
def model() -> SailVL2:
    model = SailVL2(flavour_config(Flavour.tiny_moe)).double()
    model.initialise(5)
    return model


@pytest.fixture
def mlp() -> MoeMLP:
    config = flavour_config(Flavour.tiny_moe).language
    assert isinstance(config, MoeLanguageConfig)
    mlp = MoeMLP(config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.normal_(0.0, 0.1, generator=generator)
    return mlp


def tokens(seed: int, count: int) -> Tensor:
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(*routings: Routing) -> Routing:
    return Routing.of_layers(routings)


def brute_balance(mlps: list[MoeMLP], x: Tensor, weights: list[float]) -> float:
    """E * sum_e f_e P_e, mean over layers; f_e the share of (token, slot) pairs, P_e the mean router probability."""
    total = 0.0
    for mlp in mlps:
        pairs, mass = [0.0] * EXPERTS, [0.0] * EXPERTS
        for token, weight in zip(x, weights, strict=True):
            p = (mlp.gate.weight @ token).softmax(-1).tolist()
            for e in sorted(range(EXPERTS), key=lambda e: -p[e])[:TOP_K]:
                pairs[e] += weight
            mass = [m + weight * q for m, q in zip(mass, p, strict=True)]
        total += EXPERTS * sum(c / sum(pairs) * m / sum(weights) for c, m in zip(pairs, mass, strict=True))
    return total / len(mlps)


def test_balance_loss_is_its_definition(mlp):
    other = MoeMLP(flavour_config(Flavour.tiny_moe).language).double()
    with torch.no_grad():
        other.load_state_dict(mlp.state_dict())
        other.gate.weight.add_(0.3 * torch.sin(torch.arange(EXPERTS * 128.0)).view(EXPERTS, 128))
    x, weights = tokens(1, 40), [0.0, 1.0, 3.0, 1.0] * 10
    weigh = torch.tensor(weights)
    routing = layers(mlp(x, weigh)[1], other(x, weigh)[1])
    ours = (balance_loss(routing, routing.counts) / sum(weights)).item()
    assert ours == pytest.approx(brute_balance([mlp, other], x, weights), rel=1e-12)
    assert abs(ours - brute_balance([mlp, other], x, [1.0] * 40)) > 1e-3  # the weights matter


def test_micro_batches_with_global_counts_equal_one_batch(mlp):
    x, weights = tokens(2, 30), torch.tensor([1.0, 2.0, 0.0] * 10)
    gradients, values = [], []
    for cuts in ([30], [4, 11, 1, 14]):
        mlp.zero_grad()
        parts = [layers(mlp(a, w)[1]) for a, w in zip(x.split(cuts), weights.split(cuts), strict=True)]
        counts = torch.stack([part.counts for part in parts]).sum(0)
        loss = torch.stack([balance_loss(part, counts) for part in parts]).sum() / weights.sum()
        loss.backward()
        values.append(loss.item())
        gradients.append(mlp.gate.weight.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-14)
    own_counts = sum(balance_loss(part, part.counts).item() for part in parts) / weights.sum().item()
    assert abs(own_counts - values[0]) > 1e-3  # which counts matters


def test_balanced_is_one_and_collapsed_is_the_number_of_experts():
    even = torch.full((EXPERTS, EXPERTS), 1 / EXPERTS, dtype=torch.float64)
    chosen = torch.stack((torch.arange(EXPERTS), (torch.arange(EXPERTS) + 1) % EXPERTS), 1)
    balanced = layers(Routing.of_layer(even, chosen, None))
    assert (balance_loss(balanced, balanced.counts) / EXPERTS).item() == pytest.approx(1.0, rel=1e-12)
    assert activation_entropy(balanced.counts).item() == pytest.approx(math.log(EXPERTS), rel=1e-12)
    one = torch.zeros_like(even)
    one[:, 3] = 1.0
    collapsed = layers(Routing.of_layer(one, torch.full((EXPERTS, 1), 3), None))
    assert (balance_loss(collapsed, collapsed.counts) / EXPERTS).item() == pytest.approx(EXPERTS, rel=1e-12)
    assert activation_entropy(collapsed.counts).item() == 0.0


def test_activation_entropy_by_hand():
    counts = torch.tensor([[1.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    # Shares 1/4, 1/4, 1/2: 1.5 ln 2. No tokens at all: 0, not NaN.
    assert activation_entropy(counts).tolist() == pytest.approx([1.5 * math.log(2.0), 0.0])


def test_a_shared_prompt_that_weighs_its_siblings_equals_separate_rows(model):
    """And padding rows that weigh 0 change nothing: the term does not depend on how rows are packed."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 500, (count,), generator=generator).tolist()

    prompt, completions = ids(9), [ids(4), ids(7), ids(2)]
    padding = Row(ids(5), [ids(3)])
    together = pack_rows([Row(prompt, completions), padding], PLACEHOLDER, PIXELS_PER_TOKEN)
    apart = pack_rows([Row(prompt, [completion]) for completion in completions], PLACEHOLDER, PIXELS_PER_TOKEN)
    weights = torch.tensor([3.0] * 9 + [1.0] * 13 + [0.0] * 8)
    results = []
    for inputs, token_weights in ((together, weights), (apart, None)):
        model.zero_grad()
        routing = model(replace(inputs, routing_weights=token_weights)).routing
        loss = balance_loss(routing, routing.counts) / (3 * 9 + 13)
        loss.backward()
        results.append((loss.item(), routing.counts, model.language_model.model.embed_tokens.weight.grad.clone()))
    (loss, counts, gradient), (other_loss, other_counts, other_gradient) = results
    assert torch.equal(counts, other_counts)
    assert counts.sum(-1).tolist() == [TOP_K * 40.0] * 4
    assert loss == pytest.approx(other_loss, rel=1e-12)
    assert gradient.abs().max() > 0
    assert torch.allclose(gradient, other_gradient, rtol=1e-9, atol=1e-15)


def test_counts_carry_no_gradient_and_probabilities_do(mlp):
    routing = mlp(tokens(3, 5))[1]
    assert not routing.counts.requires_grad and routing.probability_sums.requires_grad


@pytest.mark.parametrize("shape", [(0, 128), (1, 128), (2, 3, 128)])
def test_few_tokens_leave_experts_idle(mlp, shape):
    """Idle experts get a zero gradient, not none, and no token at all is no error."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    mlp.zero_grad()
    out, routing = mlp(x)
    assert out.shape == x.shape and routing.counts.sum() == TOP_K * (x.numel() // 128)
    (out.sum() + routing.probability_sums.sum()).backward()
    used = routing.counts > 0
    for weight in mlp.experts.parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert ((gradient.abs().amax((1, 2)) > 0) == used).all()


def by_hand(mlp: MoeMLP, x: Tensor, routes: list[list[int]]) -> Tensor:
    """Every token through the experts of its route, weighed by the router's probabilities of these alone."""
    rows = []
    for token, experts in zip(x, routes, strict=True):
        p = (mlp.gate.weight @ token).softmax(-1)[torch.tensor(experts)]
        outputs = []
        for expert in experts:
            gate, up = (mlp.experts.gate_up_proj[expert] @ token).chunk(2)
            outputs.append(mlp.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
        rows.append(((p / p.sum()).unsqueeze(-1) * torch.stack(outputs)).sum(0))
    return torch.stack(rows)


def test_replayed_experts_are_taken_and_the_router_weighs_them(mlp):
    """The output and every gradient, the router's too, are those of the given choice, whatever the router prefers."""
    x, generator = tokens(5, 12), torch.Generator().manual_seed(6)
    routes = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(12)])
    found = []
    for way in (lambda: mlp(x, None, routes.to(torch.int16))[0], lambda: by_hand(mlp, x, routes.tolist())):
        mlp.zero_grad()
        out = way()
        (out * tokens(7, 12)).sum().backward()
        found.append((out.detach(), *(weight.grad.clone() for weight in mlp.parameters())))
    for ours, expected in zip(*found, strict=True):
        assert expected.abs().max() > 0
        assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-14)
    own = mlp(x)[1]
    replayed = mlp(x, None, routes)[1]
    assert torch.equal(replayed.counts, torch.bincount(routes.flatten(), minlength=EXPERTS).double())
    assert not torch.equal(own.counts, replayed.counts)  # load balance counts what was taken
    assert torch.equal(own.probability_sums, replayed.probability_sums)


def test_tokens_without_a_route_go_where_the_router_says_and_agreement_counts_the_others(mlp):
    x = tokens(8, 9)
    own, routing = mlp(x)
    assert routing.replayed is None and routing.agreed is None
    routes = routing.chosen.flip(-1).clone()  # the order of a token's experts does not matter
    routes[2] = -1
    routes[5, 0] = next(e for e in range(EXPERTS) if e not in routes[5])
    out, replayed = mlp(x, None, routes)
    assert (replayed.replayed, replayed.agreed) == (8, 7)
    same = torch.arange(9) != 5
    assert torch.allclose(out[same], own[same], rtol=1e-12, atol=1e-15)
    assert (out[5] - own[5]).abs().max() > 1e-6


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_models_own_routes_replayed_change_nothing(checkpoints):
    """Not a bit of scores and gradients, with recomputed layers too; other routes change both."""
    model = SailVL2(flavour_config(Flavour.tiny_moe))
    model.initialise(5)
    model.checkpoint_gradients(checkpoints)
    inputs = pack_rows([Row(list(range(5, 25)), [[7, 8, 9], [30, 31]])], PLACEHOLDER, PIXELS_PER_TOKEN)
    attend = packed_attention(AttentionKernel.auto, inputs.layout, torch.float32, model.config.language.head_dim)
    with torch.no_grad():
        decoder = model.language_model.model
        routing = decoder(model.embed(inputs), inputs.positions, attend, keeps_routes=True)[1]
    assert routing.chosen.shape == (25, 4, TOP_K)
    found = []
    for routes in (None, routing.chosen, (routing.chosen + 1) % EXPERTS):
        model.zero_grad()
        scores = model(replace(inputs, routes=routes))
        scores.logprobs.sum().backward()
        found.append((scores.logprobs.detach(), decoder.layers[0].mlp.gate.weight.grad.clone(), scores.routing))
    (own, own_grad, _), (same, same_grad, agreed), (other, other_grad, differs) = found
    assert torch.equal(own, same) and torch.equal(own_grad, same_grad)
    assert torch.equal(agreed.agreed, agreed.replayed) and agreed.replayed.tolist() == [25] * 4
    assert (own - other).abs().max() > 1e-3 and (own_grad - other_grad).abs().max() > 1e-6
    assert (differs.agreed < differs.replayed).all()


def test_routes_of_another_model_are_refused(model):
    inputs = pack_rows([Row([5, 6, 7], [[8]])], PLACEHOLDER, PIXELS_PER_TOKEN)
    routes = torch.zeros(4, 3, TOP_K, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"routes: expected \[tokens, layers, .*\] \[4, 4, 2\], found \[4, 3, 2\]"):
        model(replace(inputs, routes=routes))
    with pytest.raises(ValueError, match="routes: expected none, because this decoder has no routers"):
        SailVL2(flavour_config(Flavour.tiny))(replace(inputs, routes=routes))
