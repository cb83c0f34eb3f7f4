"""How rows are dealt into micro-batches, for one process and for several that work side by side, and packed."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.batch import Row, RowRoutes, pack_rows, split_by_tokens

LENGTHS = st.lists(st.integers(1, 120), min_size=0, max_size=60)


@given(LENGTHS, st.integers(1, 200), st.integers(1, 8))
def test_every_row_is_dealt_once_within_the_budget(lengths, budget, num_parts):
    bins = split_by_tokens(lengths, budget, num_parts)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    for rows in bins:
        assert rows == sorted(rows) and rows
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= budget


@given(LENGTHS, st.integers(1, 200))
def test_one_part_keeps_the_order(lengths, budget):
    bins = split_by_tokens(lengths, budget)
    assert [row for rows in bins for row in rows] == list(range(len(lengths)))
    for rows, following in pairwise(bins):
        assert sum(lengths[row] for row in rows) + lengths[following[0]] > budget


@given(LENGTHS, st.integers(130, 2000), st.integers(2, 8))
def test_the_number_is_a_multiple_of_the_parts_where_there_are_rows_enough(lengths, budget, num_parts):
    bins = split_by_tokens(lengths, budget, num_parts)
    assert len(bins) % num_parts == 0 or len(bins) == len(lengths)


@pytest.mark.parametrize("seed", range(3))
def test_parts_cost_alike(seed):
    """64 groups of long-tailed lengths on 8 processes: the slowest decides each round, and 90 % of the rest is work."""
    rng = random.Random(seed)
    lengths = [int(min(16_000, rng.lognormvariate(7.5, 0.6))) for _ in range(64)]
    bins = split_by_tokens(lengths, 16_384, 8)
    loads = sorted((sum(lengths[row] for row in rows) for rows in bins), reverse=True)
    rounds = [loads[start : start + 8] for start in range(0, len(loads), 8)]
    assert sum(loads) / sum(8 * max(one) for one in rounds) >= 0.9


def test_routes_are_packed_token_by_token_and_what_nobody_knows_is_minus_one():
    """Of a prefix once, whatever number of completions; the last token of a completion was never fed."""
    rng = np.random.default_rng(0)

    def made(count: int) -> np.ndarray:
        return rng.integers(0, 8, (count, 4, 2)).astype(np.uint8)

    prefix, first, second = made(3), made(1), made(2)
    rows = [
        Row([5, 6], [[7]]),
        Row([5, 6, 7], [[8, 9], [10, 11, 12]], routes=RowRoutes(prefix, [first, second])),
    ]
    routes = pack_rows(rows, 519, 16).routes
    assert routes is not None and routes.dtype == torch.int16 and routes.shape == (11, 4, 2)
    unknown = np.full((1, 4, 2), -1)
    expected = np.concatenate((unknown, unknown, unknown, prefix, first, unknown, second, unknown))
    assert np.array_equal(routes.numpy(), expected)
    assert pack_rows(rows[:1], 519, 16).routes is None
    with pytest.raises(ValueError, match="routes: expected at most one for each of 2 tokens, found 3"):
        pack_rows([Row([5, 6], [[7]], routes=RowRoutes(prefix, [first]))], 519, 16)
