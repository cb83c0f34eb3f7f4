"""Attention of a short row on CPU: a root and its branches as a few masked products.

They compute pairs of tokens that do not see each other, and are still faster than many small calls of a better kernel
(benchmarks/RESULTS.md).
"""

import torch
from torch import Tensor

LONGEST = 384  # keys that a token of a row sees; beyond, the flash kernel's calls win (with one thread from some 300)
PIECE = 128  # tokens of a product: shorter ones compute fewer pairs in vain, in more calls


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """q [H, L, K], k and v [H, S, K], bias [L, S] of 0 where a query (row) sees a key, else -inf.

    Returns the output [H, L, K] (scale 1/sqrt(K)) and the weights [H, L, S] for `gradients`.
    """
    weights = torch.baddbmm(bias.to(q.dtype), q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)
    return torch.bmm(weights, v), weights


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [H, L, K], k and v [H, S, K], from the output's `grad` [H, L, K]."""
    of_weights = torch.bmm(grad, v.mT)
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(q.shape[-1] ** -0.5)
    return torch.bmm(of_scores, k), torch.bmm(of_scores.mT, q), torch.bmm(weights.mT, grad)
