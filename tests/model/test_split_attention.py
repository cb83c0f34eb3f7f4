"""The CPU kernel on runs of packed tokens equals attention written from the definition: values and gradients."""

import pytest
import torch

from model.attention import SHORT, pick_kernel
from model.batch import Row, pack_rows
from model.config import AttentionKernel
from model.split_attention import split_attention

# Beyond the kernel's blocks (32 to 512 queries and keys), ragged, and as short as can be.
ROWS = {
    "long": [(300, [530, 1, 77])],
    "several": [(5, [2, 40]), (90, [33]), (1, [1, 1, 600]), (64, [64, 64])],
    "prompts without completions": [(7, []), (130, [])],
}


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: list[tuple[int, list[int]]]) -> torch.Tensor:
    """Softmax over the [T, T] plane, with the visibility of each pair of tokens spelled out."""
    owner = []
    for root, (prefix, completions) in enumerate(rows):
        alone = len(completions) == 1
        owner += [(root, -1)] * prefix
        owner += [(root, -1 if alone else n) for n, length in enumerate(completions) for _ in range(length)]
    allowed = torch.tensor(
        [
            [key <= query and a[0] == b[0] and b[1] in (-1, a[1]) for key, b in enumerate(owner)]
            for query, a in enumerate(owner)
        ]
    )
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("qhk,shk->hqs", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqs,shk->qhk", scores.masked_fill(~allowed, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_values_and_gradients(rows, dtype, tolerance):
    """The tolerance is some 100 roundings of sums of up to 830 terms, relative to each tensor's scale."""
    generator = torch.Generator().manual_seed(0)
    layout = pack_rows(
        [Row([1] * prefix, [[1] * n for n in completions]) for prefix, completions in rows], -1, 1
    ).layout
    length = layout.runs[-1].end
    q, k, v, weights = (torch.randn(length, heads, 16, generator=generator, dtype=dtype) for heads in (4, 2, 2, 4))
    found = []
    for attend in (lambda q, k, v: dense(q, k, v, rows), lambda q, k, v: split_attention(q, k, v, layout.runs)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)])
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_bfloat16_keeps_its_dtype_and_merges_in_fp32():
    layout = pack_rows([Row([1] * 100, [[1] * 90, [1] * 50])], -1, 1).layout
    q, k, v = (torch.randn(240, heads, 32, generator=torch.Generator().manual_seed(1)) for heads in (4, 2, 2))
    exact = split_attention(q, k, v, layout.runs)
    leaves = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    out = split_attention(*leaves, layout.runs)
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == out.dtype == torch.bfloat16 for x in leaves)
    # Inputs, weights and outputs are rounded to 8 bits each.
    assert (out.float() - exact).abs().max() <= 3 * 2**-8 * exact.abs().max()


def test_short_rows_take_plain_products_and_long_ones_the_runs():
    cpu = torch.device("cpu")
    assert pick_kernel(AttentionKernel.auto, cpu, 32, SHORT) is AttentionKernel.sdpa
    assert pick_kernel(AttentionKernel.auto, cpu, 32, SHORT + 1) is AttentionKernel.split
    assert pick_kernel(AttentionKernel.sdpa, cpu, 32, 9999) is AttentionKernel.sdpa
