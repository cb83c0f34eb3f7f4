"""Kernels for log-probabilities against the portable way in float64."""

import pytest
import torch

from model.logprobs import _BlockedScores, _KernelScores
from tests.gpu.device import DEVICE, MARKS, ON_GPU

pytestmark = MARKS
TOLERANCE = {torch.float32: 2e-5}
if ON_GPU:
    TOLERANCE[torch.bfloat16] = 2**-5  # logits of up to 16 are rounded by up to 2^-5, and shares by as much of them
# vocabulary, width of a block, temperature, barred ids; the last block is short, and a tile is 2,048 logits
CASES = {
    "one block": (300, 300, 1.0, None),
    "blocks of many tiles, a temperature": (9000, 4500, 0.7, [3, 4499, 4500, 8999]),
    "a last block of one, a first one that nobody may draw": (65, 32, 1.3, [*range(32), 64]),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("asked", ["logprobs", "entropy", "both"])
def test_values_and_gradients(case, dtype, asked):
    torch.set_float32_matmul_precision("highest")
    vocabulary, width, temperature, barred = CASES[case]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 24, generator=generator).to(dtype)
    head = (torch.randn(vocabulary, 24, generator=generator) * 0.7).to(dtype)
    drawn = torch.tensor([i for i in range(vocabulary) if barred is None or i not in barred])
    targets = drawn[torch.randint(len(drawn), (5,), generator=generator)]
    targets[0], targets[1] = drawn[0], drawn[-1]
    weights = torch.randn(2, 5, generator=generator)
    found = []
    for scores, precision in ((_BlockedScores, torch.float64), (_KernelScores, dtype)):
        leaves = [x.to(DEVICE, precision).requires_grad_() for x in (hidden, head)]
        barred_ids = None if barred is None else torch.tensor(barred, device=DEVICE)
        logprobs, entropy = scores.apply(*leaves, targets.to(DEVICE), temperature, barred_ids, width)
        wanted = {"logprobs": [logprobs], "entropy": [entropy], "both": [logprobs, entropy]}[asked]
        loss = sum((x * w.to(x)).sum() for x, w in zip(wanted, weights, strict=False))
        found.append([logprobs.detach(), entropy.detach(), *torch.autograd.grad(loss, leaves)])
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_a_target_that_is_barred_has_no_probability():
    hidden, head = torch.ones(1, 8, device=DEVICE), torch.eye(40, 8, device=DEVICE)
    barred = torch.tensor([2], device=DEVICE)
    logprobs, entropy = _KernelScores.apply(hidden, head, torch.tensor([2], device=DEVICE), 1.0, barred, 16)
    assert logprobs.item() < -1e29 and 0 < entropy.item() < 4
