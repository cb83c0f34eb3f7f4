"""Kernels between a layer's products against the portable way in float64."""

import pytest
import torch
import torch.nn.functional as F

from model.layers import rms_norm
from tests.gpu.device import DEVICE, MARKS, ON_GPU

pytestmark = MARKS
TOLERANCE = {torch.float32: 1e-6}
if ON_GPU:
    TOLERANCE[torch.bfloat16] = 2**-8


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 3).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 2050), (2, 3, 40), (1, 1024)], ids=str)
@pytest.mark.parametrize("joint", [False, True], ids=["apart", "halves of one tensor"])
def test_gated_product_and_its_gradients(shape, joint, dtype):
    from model.kernels.layer_kernels import Gated

    both = numbers(*shape[:-1], 2 * shape[-1], dtype=dtype)
    weights = numbers(*shape, dtype=dtype)
    found = []
    for way, precision in ((lambda a, b: F.silu(a) * b, torch.float64), (Gated.apply, dtype)):
        leaf = both.to(precision).requires_grad_()
        gate, up = leaf.chunk(2, dim=-1) if joint else (half.contiguous() for half in leaf.chunk(2, dim=-1))
        out = way(gate, up)
        assert out.shape == weights.shape and out.dtype == precision
        found.append((out.detach(), *torch.autograd.grad((out * weights.to(precision)).sum(), leaf)))
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(5, 48), (2, 2, 2048), (1, 1)], ids=str)
def test_norms(shape, dtype):
    from model.kernels.layer_kernels import add_and_norm, norm

    x, delta, weight = (
        numbers(*shape, dtype=dtype),
        numbers(*shape, dtype=dtype).flip(-1),
        numbers(shape[-1], dtype=dtype),
    )
    total, after = add_and_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, x + delta)
    for given, got in ((x, norm(x, weight, 1e-5)), (x + delta, after)):
        expected = rms_norm(given.double(), weight.double(), 1e-5)
        assert got.dtype == dtype
        assert (got - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
