"""Log-probabilities of chosen tokens straight from hidden states."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenScores(NamedTuple):
    """What a model says about N given tokens."""

    logprobs: Tensor  # [N] ln p(token | what precedes it), with gradient when enabled
    entropy: Tensor  # [N] nats, of the distribution each token was drawn from; no gradient


_BARRED = -1e30  # finite, so that p * ln p of a barred token is 0 and not NaN


def score_tokens(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    barred_ids: Tensor | None = None,
    chunk: int = 2048,
) -> TokenScores:
    """hidden [N, D] that predict targets [N], head [V, D]; softmax in at least fp32 of logits / temperature.

    `barred_ids` are tokens the sampler never draws: the distribution is over the others. Works on `chunk` tokens at a
    time so that entropy needs no [N, V] matrix of its own.
    """
    bias = None
    if barred_ids is not None:
        bias = torch.zeros(head.shape[0], dtype=head.dtype, device=head.device).index_fill(0, barred_ids, _BARRED)
    logprobs, entropies = [], []
    for start in range(0, max(1, targets.shape[0]), chunk):
        logits = F.linear(hidden[start : start + chunk], head, bias)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if temperature != 1.0:
            logits = logits / temperature
        log_all = logits.log_softmax(-1)
        logprobs.append(log_all.gather(-1, targets[start : start + chunk, None]).squeeze(-1))
        with torch.no_grad():
            entropies.append(-(log_all.exp() * log_all).sum(-1))
    return TokenScores(torch.cat(logprobs), torch.cat(entropies))
