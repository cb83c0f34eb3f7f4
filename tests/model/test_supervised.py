"""The balance term of an MoE decoder: asked of the whole update, however its rows are split."""

import pytest
import torch

from model.batch import Row
from model.checkpoint import build_flavour
from model.config import Flavour
from model.engine.balance import BalancedLoss
from model.engine.config import EngineConfig, OptimizerConfig, Schedule
from model.engine.local import LocalEngine
from model.moe import activation_entropy
from model.supervised import cross_entropy, make_train_batch

DENOMINATOR = 40.0


@pytest.fixture
def moe():
    model, processor = build_flavour(Flavour.tiny_moe, 2)
    return LocalEngine(
        model,
        EngineConfig(num_threads=1),
        OptimizerConfig(3e-3, 10, Schedule.cosine, 0.1, beta2=0.95, weight_decay=0.05),
        40,
    ), processor


def rows(seed: int) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    return [Row([1, 2], [torch.randint(0, 500, (10,), generator=generator).tolist()]) for _ in range(4)]


def test_balance_does_not_depend_on_the_split_into_micro_batches(moe):
    """The gradient of the balance term alone (fp32 sums in another order: 1e-4 of the largest entry)."""
    engine, processor = moe
    gradients, terms = [], []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        batches = [make_train_batch(rows(1)[part], processor) for part in parts]
        loss = BalancedLoss.over(cross_entropy, engine, [b.inputs for b in batches], 1.0, DENOMINATOR)

        def balance_only(scores, batch, loss=loss):
            total, metrics = loss(scores, batch)
            return total - cross_entropy(scores, batch)[0], metrics

        engine.model.zero_grad()
        terms.append(engine.accumulate(batches, balance_only, DENOMINATOR).total()["balance"])
        gradients.append(engine.model.get_parameter("language_model.model.layers.0.mlp.gate.weight").grad.clone())
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-4 * gradients[0].abs().max()


def test_the_term_spreads_tokens_over_the_experts(moe):
    """Trained on the balance term alone, an unbalanced router comes to use its experts alike."""
    engine, processor = moe
    with torch.no_grad():
        for layer in engine.model.language_model.model.layers:
            layer.mlp.gate.weight[0] += 0.2  # one expert is preferred
    entropies = []
    for step in range(40):
        batch = make_train_batch(rows(step), processor)
        loss = BalancedLoss.over(cross_entropy, engine, [batch.inputs], 100.0, DENOMINATOR)
        metrics = engine.accumulate([batch], lambda s, b, loss=loss: loss(s, b), DENOMINATOR).total()
        entropies.append(metrics["expert_entropy"])
        engine.step()
    assert entropies[-1] > entropies[0]
    assert entropies[-1] > 0.9 * activation_entropy(torch.ones(1, 8)).item()
