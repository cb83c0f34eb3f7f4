"""Log-probabilities of chosen tokens straight from hidden states, forward and backward.

A matrix of logits of all tokens never exists: it would be larger than the model (2,048 tokens of the released
vocabulary are 1.2 GB in fp32). Tokens go through the head in chunks, and the backward computes the chunks anew.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.moe import Routing


class TokenScores(NamedTuple):
    """What a model says about N given tokens."""

    logprobs: Tensor  # [N] ln p(token | what precedes it)
    entropy: Tensor  # [N] nats, of the distribution each token was drawn from
    routing: Routing | None = None  # of an MoE decoder


_BARRED = -1e30  # finite, so that p * ln p of a barred token is 0 and not NaN
_CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**27}


def score_tokens(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    barred_ids: Tensor | None = None,
    chunk: int | None = None,
) -> TokenScores:
    """hidden [N, D] that predict targets [N], head [V, D]; softmax in at least fp32 of logits / temperature.

    `barred_ids` are tokens the sampler never draws: the distribution is over the others. `chunk` tokens are worked on
    at a time; by default as many as keep a chunk's logits small. Both results carry gradients to hidden and head.
    """
    if chunk is None:
        chunk = max(1, _CHUNK_LOGITS.get(hidden.device.type, 2**24) // head.shape[0])
    return TokenScores(*_ChunkedScores.apply(hidden, head, targets, temperature, barred_ids, chunk))


def _logits(hidden: Tensor, head: Tensor, temperature: float, barred_ids: Tensor | None) -> Tensor:
    """[n, V] in at least fp32, fresh memory."""
    logits = F.linear(hidden, head)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if barred_ids is not None:
        logits = logits.index_fill(-1, barred_ids, _BARRED)
    return logits if temperature == 1.0 else logits / temperature


class _ChunkedScores(torch.autograd.Function):
    """With p the softmax of z / T: d ln p_t / dz = (1_t - p) / T and dH / dz = -p (ln p + H) / T.

    A single chunk keeps its ln p for the backward pass; of several, each is computed anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperature: float,
        barred_ids: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        num_tokens, log_all = hidden.shape[0], None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, normaliser = (hidden.new_empty(num_tokens, dtype=wide) for _ in range(3))
        for start in range(0, num_tokens, chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], head, temperature, barred_ids)
            normaliser[part] = logits.logsumexp(-1)
            log_all = logits.sub_(normaliser[part, None])
            logprobs[part] = log_all.gather(-1, targets[part, None]).squeeze(-1)
            entropy[part] = -torch.linalg.vecdot(log_all.exp(), log_all)
        ctx.save_for_backward(hidden, head, targets, normaliser, entropy, log_all if num_tokens <= chunk else None)
        ctx.barred_ids, ctx.temperature, ctx.chunk = barred_ids, temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, head, targets, normaliser, entropy, kept = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        # dL/dz = p * (constant + slope * ln p), and at the target what its log-prob asks for.
        constant = torch.zeros_like(normaliser)
        if grad_logprobs is not None:
            constant = constant - grad_logprobs
        if grad_entropy is not None:
            constant = constant - grad_entropy * entropy
        want_hidden, want_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # Many chunks are added up: in less than fp32 the sum would lose the small ones.
        grad_head = torch.zeros_like(head, dtype=normaliser.dtype) if want_head else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            if kept is None:
                log_all = _logits(hidden[part], head, ctx.temperature, ctx.barred_ids).sub_(normaliser[part, None])
            else:
                log_all = kept
            grad = log_all.exp()
            if grad_entropy is None:
                grad.mul_(constant[part, None])
            else:
                # What is kept belongs to the graph, which may be asked again; what is not may be overwritten.
                factor = torch.mul(log_all, -grad_entropy[part, None], out=None if log_all is kept else log_all)
                grad.mul_(factor.add_(constant[part, None]))
            if grad_logprobs is not None:
                grad.scatter_add_(-1, targets[part, None], grad_logprobs[part, None])
            if ctx.barred_ids is not None:
                grad.index_fill_(-1, ctx.barred_ids, 0.0)
            if ctx.temperature != 1.0:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, head, out=grad_hidden[part])
            if grad_head is not None:
                grad_head.addmm_(grad.t().to(grad_head.dtype), hidden[part].to(grad_head.dtype))
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None, None
