"""Attention of a short row on CPU: a root with all its branches as one masked product.

It computes pairs of tokens that do not see each other, and is still faster than many small calls of a better kernel
(benchmarks/RESULTS.md).
"""

import torch
from torch import Tensor

LONGEST = 320  # tokens of a row; beyond, the flash kernel's calls win


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """q [L, H, K], k and v [L, Hkv, K], bias [L, L] of 0 where a query (row) sees a key, else -inf.

    Returns the output [L, H, K] (scale 1/sqrt(K)) and the weights [Hkv, H / Hkv * L, L] for `gradients`.
    """
    share = q.shape[1] // k.shape[1]
    scores = _queries(q, share) @ (_keys(k) * q.shape[-1] ** -0.5).mT
    scores.unflatten(1, (share, -1)).add_(bias)
    weights = scores.softmax(-1)
    return _packed(weights @ _keys(v), share), weights


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of q [L, H, K], k and v [L, Hkv, K], from the output's `grad` [L, H, K]."""
    share = q.shape[1] // k.shape[1]
    grad = _queries(grad, share)
    of_weights = grad @ _keys(v).mT
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(q.shape[-1] ** -0.5)
    of_k, of_v = of_scores.mT @ _queries(q, share), weights.mT @ grad
    return _packed(of_scores @ _keys(k), share), _keys(of_k), _keys(of_v)


def _queries(x: Tensor, share: int) -> Tensor:
    """[L, H, K] -> [Hkv, share * L, K]: heads that share keys stand one behind the other."""
    return x.unflatten(1, (-1, share)).permute(1, 2, 0, 3).flatten(1, 2)


def _packed(x: Tensor, share: int) -> Tensor:
    """[Hkv, share * L, K] -> [L, H, K]."""
    return x.unflatten(1, (share, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _keys(x: Tensor) -> Tensor:
    """[L, Hkv, K] -> [Hkv, L, K], and back."""
    return x.transpose(0, 1)
