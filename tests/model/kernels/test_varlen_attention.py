"""What is built on the flash kernel of a GPU, with the kernel written from its definition: values and gradients. The
kernel itself runs in tests/gpu."""

from itertools import pairwise

import pytest
import torch

from model.config import AttentionKernel
from model.kernels import varlen_attention
from model.kernels.attention import packed_attention
from model.kernels.varlen_attention import Sequences, VarlenPlan
from tests.model.kernels.test_split_attention import ROWS, dense, layout_of


def scores_of(q, k, queries: Sequences, keys: Sequences, is_causal: bool) -> torch.Tensor:
    """[H, Tq, Tk], -inf where the kernel lets nobody see."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("qhk,shk->hqs", q, k) / q.shape[-1] ** 0.5
    hidden = torch.ones(len(q), len(k), dtype=torch.bool)
    for (a, b), (c, d) in zip(pairs(queries), pairs(keys), strict=True):
        assert b - a <= queries.longest and d - c <= keys.longest
        hidden[a:b, c:d] = torch.ones(b - a, d - c).triu(1).bool() if is_causal else False
    return scores.masked_fill(hidden, float("-inf"))


def pairs(sequences: Sequences) -> list[tuple[int, int]]:
    return list(pairwise(sequences.bounds.tolist()))


def forward(q, k, v, queries, keys, is_causal):
    scores = scores_of(q, k, queries, keys, is_causal)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hqs,shk->qhk", scores.softmax(-1), v), scores.logsumexp(-1)


def backward(grad, q, k, v, out, log_mass, queries, keys, is_causal):
    share = q.shape[1] // k.shape[1]
    wide_k, wide_v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    weights = (scores_of(q, k, queries, keys, is_causal) - log_mass[:, :, None]).exp()
    of_weights = torch.einsum("qhk,shk->hqs", grad, wide_v) - (grad * out).sum(-1).t()[:, :, None]
    of_scores = weights * of_weights / q.shape[-1] ** 0.5
    of_k, of_v = torch.einsum("hqs,qhk->shk", of_scores, q), torch.einsum("hqs,qhk->shk", weights, grad)
    return (
        torch.einsum("hqs,shk->qhk", of_scores, wide_k),
        *(x.unflatten(1, (-1, share)).sum(2) for x in (of_k, of_v)),
    )


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_values_and_gradients(rows, monkeypatch):
    monkeypatch.setattr(varlen_attention, "flash_forward", forward)
    monkeypatch.setattr(varlen_attention, "flash_backward", backward)
    layout = layout_of(*rows)
    generator = torch.Generator().manual_seed(0)
    length = layout.spans[-1].end
    q, k, v, weights = (
        torch.randn(length, heads, 16, generator=generator, dtype=torch.float64) for heads in (4, 2, 2, 4)
    )
    found = []
    plan = VarlenPlan(layout)
    for attend in (
        lambda q, k, v: dense(q, k, v, rows),
        lambda q, k, v: varlen_attention.varlen_attention(q, k, v, plan),
    ):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)])
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_it_is_refused_where_there_is_no_such_kernel():
    with pytest.raises(ValueError, match=r"attention_kernel: varlen needs .* found cpu, bfloat16, 128; use auto"):
        packed_attention(AttentionKernel.varlen, layout_of((5, [2])), torch.bfloat16, 128)
