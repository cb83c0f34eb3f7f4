"""Kernels that draw tokens against the portable way."""

import pytest
import torch

from rollouts.sampling import GREEDY, TokenSampler
from tests.gpu.device import DEVICE, MARKS, ON_GPU

pytestmark = MARKS
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
NUM_ROWS = 2048 if ON_GPU else 16  # of which the interpreter does one after the other
END = 7


def draw_both_ways(logits: torch.Tensor, points: torch.Tensor, barred: list[int], temperature: float):
    from rollouts.sampling_kernels import sample_tokens

    reference = TokenSampler(barred, logits.shape[1], temperature, END, torch.device("cpu"))
    mask = torch.zeros(logits.shape[1], dtype=torch.bool, device=DEVICE)
    mask[barred] = True
    found = sample_tokens(logits.to(DEVICE), points.to(DEVICE), mask, temperature, END)
    return reference(logits, points), tuple(x.cpu() for x in found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "temperature"), [(5, 1.0), (2048, 0.6), (2049, 0.6), (9000, 1.0)])
def test_tokens_and_log_probs(vocabulary, temperature, dtype):
    """Both add fp32 shares up in float64: points that fall between two tokens by less than 1e-6 may go either way."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(NUM_ROWS, vocabulary, generator=generator) * 3).to(dtype)
    points = torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64)
    points[0], points[1], points[2::7] = 0.0, 1 - 2.0**-53, GREEDY
    barred = [0, vocabulary - 1]
    expected, found = draw_both_ways(logits, points, barred, temperature)
    same = expected[0] == found[0]
    assert same.sum() >= 0.99 * NUM_ROWS
    assert (expected[1] - found[1])[same].abs().max() <= 1e-5
    assert not set(found[0].tolist()) & set(barred)


def test_each_token_is_drawn_as_often_as_its_probability_says():
    """A grid of points is the inverse CDF's exact test: each token gets its share of them, give or take one."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) * 4
    points = (torch.arange(NUM_ROWS, dtype=torch.float64) + 0.5) / NUM_ROWS
    _, (chosen, _) = draw_both_ways(logits.expand(NUM_ROWS, -1), points, [], 1.0)
    counts = torch.bincount(chosen, minlength=5000)
    assert (counts - NUM_ROWS * logits[0].softmax(-1)).abs().max() <= 1.001
    assert bool((chosen.diff() >= 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_the_turn(bad):
    logits = torch.zeros(3, 4200)
    logits[1, 4100] = bad
    (_, expected), (chosen, logprobs) = draw_both_ways(logits, torch.full((3,), 0.3, dtype=torch.float64), [1], 1.0)
    assert expected.isnan().tolist() == logprobs.isnan().tolist() == [False, True, False]
    assert chosen[1] == END


def test_what_has_no_probability_is_not_drawn():
    logits = torch.full((5, 6000), float("-inf"))
    logits[:, 3000] = -50.0
    points = torch.tensor([0.0, 0.5, 1 - 2.0**-53, GREEDY, 2.0**-60], dtype=torch.float64)
    _, (chosen, logprobs) = draw_both_ways(logits, points, [], 1.0)
    assert chosen.tolist() == [3000] * 5 and logprobs.abs().max() == 0.0
