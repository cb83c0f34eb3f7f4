"""The order of a stream: exact shares, whole passes, and the same rows from any position on."""

import time
from collections import Counter

import numpy as np
import pytest

from model.corpus.mixture import MixedSource, Mixture, Windows
from model.data.order import KeyedPermutation


def rows_of(mixture: Mixture, start: int, stop: int) -> list[tuple[int, int] | None]:
    draws = (mixture.at(position) for position in range(start, stop))
    return [None if draw is None else (draw.source, draw.row) for draw in draws]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000, 4096, 4097])
def test_a_permutation_holds_every_number_once(size):
    numbers = KeyedPermutation(size, 3, 5)(np.arange(size))
    assert sorted(numbers) == list(range(size))
    if size == 4096:
        assert (KeyedPermutation(size, 3, 6)(np.arange(size)) != numbers).mean() > 0.99
        assert abs(np.corrcoef(numbers, np.arange(size))[0, 1]) < 0.05


def test_shares_hold_in_every_window_of_ten_thousand():
    weights = {"a": 3.0, "b": 1.0, "c": 0.5, "d": 0.01}
    mixture = Mixture({name: MixedSource(5000, weight) for name, weight in weights.items()}, seed=1)
    found = [one[0] for one in rows_of(mixture, 0, 60_000) if one]
    total = sum(weights.values())
    for start in range(0, 50_001, 1237):
        counts = Counter(found[start : start + 10_000])
        for number, weight in enumerate(weights.values()):
            assert abs(counts[number] - 10_000 * weight / total) <= 25  # 0.25 % of them
    whole = Counter(found)
    assert all(abs(whole[n] - 60_000 * w / total) <= 2 for n, w in enumerate(weights.values()))


def test_each_pass_holds_every_row_once_in_another_order():
    mixture = Mixture({"a": MixedSource(700), "b": MixedSource(300)}, seed=0)
    own = [one[1] for one in rows_of(mixture, 0, 6000) if one and one[0] == 0]
    passes = [own[start : start + 700] for start in range(0, len(own) - 700, 700)]
    assert len(passes) > 2 and all(sorted(one) == list(range(700)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_position_gives_the_same_row_however_it_is_reached():
    sources = {
        "a": MixedSource(500, 2.0),
        "b": MixedSource(90, 1.0, max_epochs=2.0),
        "c": MixedSource(40, 1.0, row_weights=np.linspace(0.0, 3.0, 40)),
        "d": MixedSource(60, 1.0, blocks=np.array([10, 20, 5, 25])),
        "e": MixedSource(60, 1.0, row_weights=np.linspace(0.0, 2.0, 60), blocks=np.array([10, 20, 5, 25])),
    }
    straight = rows_of(Mixture(sources, 7), 0, 9000)
    for start in (1, 999, 1000, 2500, 8999):
        assert rows_of(Mixture(sources, 7), start, min(start + 300, 9000)) == straight[start : start + 300]
    assert rows_of(Mixture(sources, 8), 0, 9000) != straight


def test_a_source_ends_after_its_passes_and_the_others_share_its_place():
    mixture = Mixture({"a": MixedSource(1000, 1.0), "b": MixedSource(150, 1.0, max_epochs=1.5)}, seed=0)
    found = rows_of(mixture, 0, 5000)
    assert Counter(one[0] for one in found if one)[1] == 225
    assert all(one and one[0] == 0 for one in found[1000:])  # whole blocks behind the one in which it ended
    assert mixture.end is None


def test_a_stream_ends_with_its_last_source():
    mixture = Mixture({"a": MixedSource(2100, 1.0, 1.0), "b": MixedSource(150, 3.0, 2.0)}, seed=0)
    assert mixture.end is not None
    found = [one for one in rows_of(mixture, 0, mixture.end) if one]
    assert Counter(number for number, _ in found) == {0: 2100, 1: 300}
    assert Counter(found) == {**{(0, row): 1 for row in range(2100)}, **{(1, row): 2 for row in range(150)}}
    with pytest.raises(IndexError):
        mixture.at(mixture.end)


def test_rows_come_as_often_as_their_weights_say():
    weights = np.array([0.0, 0.3, 1.0, 2.5])
    mixture = Mixture({"a": MixedSource(4, row_weights=weights)}, seed=0)
    counts = Counter(one[1] for one in rows_of(mixture, 0, 3800) if one)
    for row, weight in enumerate(weights):
        assert abs(counts[row] - 1000 * weight) <= 4


def test_blocks_of_a_window_are_read_together():
    sizes = np.full(40, 25)
    rows = Windows(sizes, (0, 1)).rows(np.arange(1000))
    assert sorted(rows) == list(range(1000))
    for start in range(0, 1000, 100):
        window = rows[start : start + 100]
        assert len({row // 25 for row in window}) == Windows.SIZE
        assert list(window) != sorted(window)


def test_rows_with_weights_are_read_block_by_block_too():
    weights = np.tile([0.0, 0.5, 1.0, 2.5], 250)
    weights[200:300] = 0.0  # four blocks that no pass reads
    source = MixedSource(1000, row_weights=weights, blocks=np.full(40, 25))
    mixture = Mixture({"a": source}, seed=0)
    per_pass = round(weights.sum())
    found = [one[1] for one in rows_of(mixture, 0, 20 * per_pass) if one]
    counts = Counter(found)
    assert all(abs(counts[row] - 20 * weight) <= 1 + 20 * weight * 0.05 for row, weight in enumerate(weights))
    changes, kept = 0, []
    for row in found[:per_pass]:  # a reader that keeps the blocks of a window
        if row // 25 not in kept:
            changes, kept = changes + 1, [*kept, row // 25][-Windows.SIZE :]
    assert changes <= 40
    assert found[:per_pass] != sorted(found[:per_pass])


def test_a_late_position_costs_no_more_than_an_early_one():
    sources = {"a": MixedSource(10**7, 3.0), "b": MixedSource(10**6, 1.0, max_epochs=50.0)}
    begin = time.perf_counter()
    assert Mixture(sources, 0).at(10**7) is not None
    assert time.perf_counter() - begin < 1.0


@pytest.mark.parametrize("sources", [{"a": MixedSource(0)}, {"a": MixedSource(3, 0.0)}])
def test_a_mixture_without_rows_is_refused(sources):
    with pytest.raises(ValueError, match=r"data\.sources"):
        Mixture(sources, 0)
