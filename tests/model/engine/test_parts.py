"""Dealing micro-batches over processes: alike at the same time, each once, never over the budget."""

import random
from dataclasses import replace

import pytest
import torch

from model.batch import Row, pack_rows, split_by_tokens
from model.checkpoint import build_flavour
from model.config import Flavour, flavour_config
from model.engine.parts import Costs, Fillers, deal, efficiency


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_every_micro_batch_is_dealt_once_and_every_rank_has_as_many(num_ranks, count):
    costs = [random.Random(count).random() for _ in range(count)]
    dealt = deal(costs, num_ranks)
    assert len({len(own) for own in dealt}) == 1 and len(dealt) == num_ranks
    assert sorted(number for own in dealt for number in own if number is not None) == list(range(count))
    if num_ranks == 1:
        assert dealt == [list(range(count))]


def test_micro_batches_that_cost_alike_are_worked_on_together():
    """Two dear ones on one rank would make the others wait twice."""
    assert deal([1.0, 9.0, 1.0, 9.0], 2) == [[1, 0], [3, 2]]
    assert efficiency([1.0, 9.0, 1.0, 9.0], 2) == 1.0
    assert efficiency([9.0], 2) == 0.5


@pytest.mark.parametrize("budget", [16384, 41984])
def test_bins_of_costs_keep_eight_ranks_busy(budget):
    """64 groups of the 8B model with ragged completions and 1 to 12 tiles, five seeds."""
    config = flavour_config(Flavour.sailvl2_8b)
    costs = Costs.of(config)
    for seed in range(5):
        draw, lengths, prices = random.Random(seed), [], []
        for _ in range(64):
            tiles = draw.randrange(1, 13)
            prefix = tiles * config.num_image_tokens + draw.randrange(50, 400)
            completions = [min(4096, 1 + int(draw.expovariate(1 / 1000))) for _ in range(8)]
            lengths.append(prefix + sum(completions))
            prices.append(costs.row(prefix, completions, [(tiles, config.num_image_tokens)]))
        bins = split_by_tokens(lengths, budget, 8, prices)
        assert sorted(row for own in bins for row in own) == list(range(64))
        assert all(len(own) == 1 or sum(lengths[row] for row in own) <= budget for own in bins)
        assert efficiency([sum(prices[row] for row in own) for own in bins], 8) >= 0.9


def test_costs_are_the_products_of_a_forward_pass():
    """Against torch's own count; attention and element-wise work are no part of that, so there are no pairs here."""
    from torch.utils.flop_counter import FlopCounterMode

    model, processor = build_flavour(Flavour.tiny, 0)
    costs = replace(Costs.of(model.config), pair=0.0, patch_pair=0.0)
    row = Row([processor.placeholder_id] * 4 + [1, 2], [[3, 4, 5]], (torch.zeros(1, 3, 32, 32),))
    inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    counts = counter.get_flop_counts()["Global"]
    products = sum(value for name, value in counts.items() if "attention" not in str(name) and "bmm" not in str(name))
    assert costs.of_inputs(inputs) == pytest.approx(products, rel=0.02)
    assert costs.of_row(row) == pytest.approx(costs.of_inputs(inputs))


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres])
def test_fillers_reach_every_weight_and_change_nothing(flavour):
    """A tile beside text leaves the scores as they are to the bit; a whole filler gives gradients that are all 0."""
    model, processor = build_flavour(flavour, 0)
    fillers = Fillers(model.config)
    text = pack_rows([Row([1, 2], [[3, 4]])], processor.placeholder_id, model.config.pixels_per_token)
    with_tile = fillers.with_tile(text)
    assert with_tile.num_tiles == 1 and fillers.with_tile(with_tile) is with_tile
    assert torch.equal(model(text).logprobs, model(with_tile).logprobs)
    for tile in (True, False):
        model.zero_grad()
        model(fillers.inputs(tile)).logprobs.sum().backward()
        for name, parameter in model.named_parameters():
            reached = tile or name.startswith("language_model.")
            assert (parameter.grad is not None) == reached, name
            assert parameter.grad is None or not parameter.grad.any(), name
