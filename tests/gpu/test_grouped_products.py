"""The grouped product of experts on a GPU against the loop in float64. It is PyTorch's own kernel, without Triton."""

import pytest
import torch

from model.kernels.grouped_products import expert_products, fits_grouped, looped_products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="needs a CUDA device of compute capability 9 or newer",
    ),
]
TOLERANCE = 2**-8
"""Sums are kept in float32 and rounded once to bfloat16."""


@pytest.mark.parametrize("experts", [8, 128])
@pytest.mark.parametrize(("width", "inner"), [(2048, 1536), (768, 2048), (128, 64)])
def test_products_and_gradients(experts, width, inner):
    """Numbers of rows are odd, so that no group starts where memory is aligned; every seventh expert is idle."""
    generator = torch.Generator().manual_seed(width)
    counts = torch.randint(1, 90, (experts,), generator=generator) * 2 - 1
    counts[::7] = 0
    ends = counts.cumsum(0).cuda()
    x = torch.randn(int(counts.sum()), width, generator=generator).cuda().to(torch.bfloat16)
    weights = (torch.randn(experts, inner, width, generator=generator) * width**-0.5).cuda().to(torch.bfloat16)
    weigh = torch.randn(len(x), inner, generator=generator).cuda().to(torch.bfloat16)
    assert fits_grouped(x, weights)
    found = []
    for way, dtype in ((expert_products, torch.bfloat16), (looped_products, torch.float64)):
        leaves = x.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()
        out = way(*leaves, ends)
        found.append((out.detach(), *torch.autograd.grad((out * weigh.to(dtype)).sum(), leaves)))
    for ours, expected in zip(*found, strict=True):
        assert ours.shape == expected.shape and ours.dtype == torch.bfloat16
        assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_the_host_is_never_asked_for_the_counts():
    """So that a layer is launched without waiting for the one before it."""
    x = torch.randn(64, 128, device="cuda").to(torch.bfloat16)
    weights = torch.randn(4, 64, 128, device="cuda").to(torch.bfloat16)
    ends = torch.tensor([10, 10, 50, 64], device="cuda")
    expert_products(x, weights, ends)  # the first call loads the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        expert_products(x, weights, ends)
    finally:
        torch.cuda.set_sync_debug_mode("default")
