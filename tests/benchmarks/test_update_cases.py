"""The update benchmarks compare like with like: FLOPs by hand, the padded rival's gradients, the drawn lengths."""

import pytest
import torch

from benchmarks.parts.flops import (
    Work,
    forward_flops,
    once_per_group,
    packed_work,
    padded_row,
    shared_row,
    tile_flops,
    total,
)
from benchmarks.parts.padded_rows import PaddedUpdate
from benchmarks.parts.update_cases import SharedUpdate, build_group, build_model, prompt_length, ragged
from model.config import Flavour, LanguageConfig, SailVL2Config, VisionConfig, flavour_config

HAND = SailVL2Config(
    VisionConfig(4, 6, num_hidden_layers=2, num_attention_heads=2, patch_size=2, image_size=8),  # 16 patches
    LanguageConfig(8, 10, 3, 4, 2, 2, vocab_size=20, max_position_embeddings=64),
)


def test_flops_by_hand():
    # A token: q and o 8 x 8, k and v 8 x 4, MLP 3 x 8 x 10. A pair: 8 for the score, 8 for the value.
    assert forward_flops(HAND, Work(1, 0, 0, 0)) == 2 * 3 * (2 * 64 + 2 * 32 + 240)
    assert forward_flops(HAND, Work(0, 1, 0, 0)) == 2 * 3 * 16
    assert forward_flops(HAND, Work(0, 0, 1, 0)) == 2 * 8 * 20
    # A tile: patchifier 12 x 4, two blocks of 4 x 4 x 4 + 3 x 4 x 6 and 16 pairs a patch; adapter 16 x 8 + 8 x 8.
    patches = 16 * (12 * 4 + 2 * (64 + 72 + 2 * 16 * 4))
    assert tile_flops(HAND) == forward_flops(HAND, Work(0, 0, 0, 1)) == 2 * (patches + 4 * (128 + 64))


def test_work_by_hand():
    # Prefix of 3: 1 + 2 + 3 pairs. A completion of 2 sees 3 + 1 and 3 + 2 tokens.
    assert shared_row(3, [2, 2], 1) == Work(tokens=7, pairs=6 + 2 * 9, scored=4, tiles=1)
    assert shared_row(3, [2], 1) == padded_row(5, 2, 1) == Work(tokens=5, pairs=15, scored=2, tiles=1)


@pytest.fixture(scope="module")
def model():
    return build_model(flavour_config(Flavour.tiny))


@pytest.fixture(scope="module")
def groups(model):
    return [build_group(model.config, i, [3, 9, 5, 7, 6], num_images=i) for i in (1, 1)]


def shared_update(model, groups, budget: int) -> SharedUpdate:
    return SharedUpdate(model, groups, budget, torch.get_num_threads())


def packed(update: SharedUpdate) -> Work:
    return total(packed_work(batch.inputs) for batch in update.batches())


def test_packed_work_is_what_groups_need_and_counts_repeated_prefixes(model, groups):
    once = once_per_group(groups)
    prompt = prompt_length(model.config)
    assert packed(shared_update(model, groups, 1000)) == once
    assert packed(shared_update(model, groups, prompt + 15)) == total(
        [shared_row(prompt, lengths, 1) for lengths in ([3, 9], [5, 7], [6])] * 2
    )


@pytest.mark.parametrize("budget", [1000, 40])
@pytest.mark.parametrize("one_vision", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_padded_rows_have_our_loss_and_gradients(model, groups, budget, one_vision, rows):
    shared = shared_update(model, groups, budget)
    loss = shared.accumulate()
    expected = {name: gradient.clone() for name, gradient in shared.gradients().items()}
    model.zero_grad()
    padded = PaddedUpdate(shared.engine, groups, rows, one_vision)
    assert padded.accumulate() == pytest.approx(loss, abs=1e-6)
    for name, found in padded.gradients().items():
        # float32 sums in another order: some 1e-6 of the largest entry; a wrong row is far off.
        assert (found - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max()
    model.zero_grad()


def test_padded_work_is_of_the_padded_length(model, groups):
    engine = shared_update(model, groups, 1000).engine
    prompt = prompt_length(model.config)
    alone, together = (PaddedUpdate(engine, groups, rows, one_vision=False).work for rows in (1, 10))
    assert alone == total([padded_row(prompt + c, c, 1) for c in (3, 9, 5, 7, 6)] * 2)
    assert together == total([padded_row(prompt + 9, c, 1) for c in (3, 9, 5, 7, 6)] * 2)


def test_ragged_lengths_keep_their_mean():
    lengths = ragged(100, 8, "key")
    assert lengths == ragged(100, 8, "key") != ragged(100, 8, "other")
    assert sum(lengths) == 800 and 50 <= min(lengths) < max(lengths) <= 150
    assert ragged(100, 1, "key") == [100]
