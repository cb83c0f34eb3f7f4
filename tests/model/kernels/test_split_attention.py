"""The CPU kernel on runs of packed tokens equals attention written from the definition: values and gradients."""

import pytest
import torch

from model.batch import Row, pack_rows
from model.config import AttentionKernel
from model.kernels import dense_attention
from model.kernels.attention import fastest, packed_attention
from model.kernels.sdpa_attention import SHORT, SdpaAttention
from model.kernels.split_attention import split_attention
from model.kernels.threads import each_on_one_thread
from model.layout import Layout

# Beyond the kernel's blocks (32 to 512 queries and keys), ragged, and as short as can be.
ROWS = {
    "long": [(300, [530, 1, 77])],
    "several": [(5, [2, 40]), (90, [33]), (1, [1, 1, 600]), (64, [64, 64])],
    "prompts without completions": [(7, []), (130, [])],
    "short": [(40, [20, 31, 1]), (1, [2, 3]), (9, []), (30, [12])],
    "in pieces": [(30, [140, 20, 90, 70, 5]), (1, [70] * 4)],
    "short and long": [(20, [9, 14]), (400, [1]), (255, [60, 70]), (3, [4, 500]), (254, [1, 1])],
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
    length = layout.spans[-1].end
    q, k, v, weights = (torch.randn(length, heads, 16, generator=generator, dtype=dtype) for heads in (4, 2, 2, 4))
    found = []
    for attend in (lambda q, k, v: dense(q, k, v, rows), lambda q, k, v: split_attention(q, k, v, layout)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)])
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_bfloat16_keeps_its_dtype_and_merges_in_fp32():
    layout = pack_rows([Row([1] * 100, [[1] * 90, [1] * 50])], -1, 1).layout
    q, k, v = (torch.randn(240, heads, 32, generator=torch.Generator().manual_seed(1)) for heads in (4, 2, 2))
    exact = split_attention(q, k, v, layout)
    leaves = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    out = split_attention(*leaves, layout)
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == out.dtype == torch.bfloat16 for x in leaves)
    # Inputs, weights and outputs are rounded to 8 bits each.
    assert (out.float() - exact).abs().max() <= 3 * 2**-8 * exact.abs().max()


def layout_of(*rows: tuple[int, list[int]]) -> Layout:
    return pack_rows([Row([1] * prefix, [[1] * n for n in completions]) for prefix, completions in rows], -1, 1).layout


def test_short_sequences_take_plain_products_and_all_else_the_runs():
    cpu, short, long = torch.device("cpu"), layout_of((SHORT - 9, [9]), (5, [])), layout_of((SHORT - 8, [9]))
    assert fastest(cpu, torch.float32, 32, short) is AttentionKernel.sdpa
    assert fastest(cpu, torch.float32, 32, long) is AttentionKernel.split
    assert fastest(cpu, torch.float32, 32, layout_of((5, [2, 3]))) is AttentionKernel.split
    assert isinstance(packed_attention(AttentionKernel.sdpa, long, torch.float32, 32), SdpaAttention)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_change_no_bit_of_rows_that_are_worked_on_side_by_side(num_threads):
    layout = layout_of((20, [9, 14]), (400, [60, 70]), (30, [12]), (10, [500, 20]), (7, [9, 9]), (450, []))
    assert sum(run.longest > dense_attention.LONGEST for run in layout.spans) == 3
    q, k, v = (torch.randn(layout.spans[-1].end, heads, 16) for heads in (4, 2, 2))
    alone = split_attention(q, k, v, layout)
    torch.set_num_threads(num_threads)
    try:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        beside = split_attention(*leaves, layout)
        assert torch.get_num_threads() == num_threads
        with torch.inference_mode():
            assert torch.equal(split_attention(q, k, v, layout), alone)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(beside, alone)
    found = torch.autograd.grad(beside.sum(), leaves)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(split_attention(*leaves, layout).sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_one_thread_raises_reaches_the_caller_and_threads_come_back():
    torch.set_num_threads(2)
    try:
        for bad in (0, 1):
            with pytest.raises(ZeroDivisionError):
                each_on_one_thread(lambda item, bad=bad: 1 // (item - bad), [0, 1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
