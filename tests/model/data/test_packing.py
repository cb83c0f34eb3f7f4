"""Packing of a stream: limits kept, nothing lost, little waste, visual tokens evened out, exact resume."""

from collections import Counter

import numpy as np
import pytest

from model.data.packing import StreamPacker

CAPACITY = 8192


def corpus(num_rows: int = 60_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(packed tokens, visual tokens) of a third texts, images of 1 to 12 tiles, some videos."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, num_rows, p=[0.35, 0.57, 0.08])
    tiles = rng.integers(1, 13, num_rows)
    visual = np.where(
        kinds == 1, 256 * (tiles + (tiles > 1)), np.where(kinds == 2, 256 * rng.choice([8, 16], num_rows), 0)
    )
    texts = np.clip(rng.lognormal(5.5, 1.0, num_rows), 8, 8000)
    words = np.clip(rng.lognormal(4.5, 0.8, num_rows), 8, 1500)
    return np.minimum(np.where(kinds == 0, texts, visual + words).astype(int), CAPACITY), visual


def packer(tokens, visual, num_bins=32, candidates=32, max_wait=64) -> StreamPacker:
    def length(position: int):
        if position >= len(tokens):
            raise IndexError(position)
        return None if position % 97 == 0 else (int(tokens[position]), int(visual[position]))

    return StreamPacker(length, num_bins, CAPACITY, candidates * num_bins, max_wait)


def test_bins_keep_to_their_limit_and_rows_come_once():
    tokens, visual = corpus()
    one = packer(tokens, visual)
    seen = Counter()
    for _ in range(40):
        step = one.next()
        assert len(step.bins) == 32
        for rows in step.bins:
            assert sum(tokens[row] for row in rows) <= CAPACITY
            seen.update(rows)
    assert set(seen.values()) == {1} and not any(row % 97 == 0 for row in seen)


def test_waste_is_small_and_visual_tokens_are_even():
    tokens, visual = corpus()
    one = packer(tokens, visual)
    steps = [one.next().metrics for _ in range(60)]
    assert np.mean([step["pack/waste"] for step in steps]) < 0.02
    assert np.mean([step["pack/visual_tokens_max_over_mean"] for step in steps]) < 1.1
    # Bins that are filled in the order of the rows differ by far more.
    sums = [sum(visual[start : start + 5]) for start in range(0, 160, 5)]
    assert max(sums) / np.mean(sums) > 1.5


def test_no_row_waits_for_ever():
    tokens, visual = corpus()
    one = packer(tokens, visual, num_bins=8, candidates=16, max_wait=12)
    came_in, waited = {}, []
    for step in range(150):
        for row in (row for rows in one.next().bins for row in rows):
            waited.append(step - came_in.setdefault(row, step))
        for position, _ in one.state()["waiting"]:
            came_in.setdefault(position, step)
    assert max(waited) <= 12 + 3  # a few forced rows may not fit beside each other


def test_all_rows_of_a_stream_that_ends_are_used():
    tokens, visual = corpus(500)
    one = packer(tokens, visual, num_bins=4)
    seen = []
    with pytest.raises(IndexError):
        while True:
            seen += [row for rows in one.next().bins for row in rows]
    assert sorted(seen) == [row for row in range(500) if row % 97]


def test_a_restored_packer_goes_on_with_the_same_rows():
    tokens, visual = corpus()
    straight = packer(tokens, visual, num_bins=8)
    steps = [straight.next() for _ in range(12)]
    again = packer(tokens, visual, num_bins=8)
    for _ in range(5):
        again.next()
    state = again.state()
    assert set(state) == {"position", "step", "waiting"}
    resumed = packer(tokens, visual, num_bins=8)
    resumed.restore(state)
    assert [resumed.next() for _ in range(7)] == steps[5:]


def test_the_rows_of_a_step_do_not_depend_on_how_many_processes_share_its_bins():
    """Bins are made before they are dealt out: another number of processes takes other bins of the same ones."""
    tokens, visual = corpus()
    assert packer(tokens, visual).next() == packer(tokens, visual).next()


def test_only_texts_are_packed_too():
    tokens, _ = corpus()
    one = packer(np.minimum(tokens, 700), np.zeros_like(tokens), num_bins=4)
    steps = [one.next().metrics for _ in range(10)]
    assert np.mean([step["pack/waste"] for step in steps]) < 0.005
    assert all(step["pack/visual_tokens_max_over_mean"] == 1.0 for step in steps)
