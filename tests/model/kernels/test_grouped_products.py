"""The products of all experts in one call against the loop over experts, which is the reference."""

import pytest
import torch

from model.kernels.grouped_products import expert_products, fits_grouped, grouped_products, looped_products

ENDS = {"uneven": [3, 3, 14, 20], "first idle": [0, 9, 19, 20], "one has all": [0, 0, 20, 20]}


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((20, 32), (4, 48, 32))
    )


def with_gradients(way, dtype: torch.dtype, ends: list[int]) -> list[torch.Tensor]:
    x, weights = operands(dtype)
    out = way(x, weights, torch.tensor(ends))
    weigh = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [out.detach(), *torch.autograd.grad((out * weigh).sum(), (x, weights))]


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_the_loop_multiplies_each_row_by_its_experts_matrix(ends):
    def one_by_one(x, weights, ends):
        return torch.einsum("nd,nfd->nf", x, weights[torch.searchsorted(ends, torch.arange(20), right=True)])

    for found, expected in zip(
        with_gradients(looped_products, torch.float64, ends),
        with_gradients(one_by_one, torch.float64, ends),
        strict=True,
    ):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_one_call_gives_what_the_loop_gives(ends):
    """PyTorch has the grouped product on CPU too. Sums of at most 48 products in another order, then one rounding to
    bfloat16: at most one step of 2**-8 of the largest value."""
    pairs = zip(
        with_gradients(grouped_products, torch.bfloat16, ends),
        with_gradients(looped_products, torch.bfloat16, ends),
        strict=True,
    )
    for found, expected in pairs:
        assert found.dtype == torch.bfloat16 and found.shape == expected.shape
        assert (found - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_cpu_and_other_dtypes_take_the_loop():
    x, weights = operands(torch.bfloat16)
    assert not fits_grouped(x, weights)
    ends = torch.tensor(ENDS["uneven"])
    assert torch.equal(expert_products(x, weights, ends), looped_products(x, weights, ends))


def test_no_row_at_all_is_no_error():
    x, weights = operands(torch.float32)
    assert looped_products(x[:0], weights, torch.zeros(4, dtype=torch.long)).shape == (0, 48)
