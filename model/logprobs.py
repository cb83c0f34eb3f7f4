"""Log-probabilities of chosen tokens straight from hidden states, forward and backward.

A matrix of logits of all tokens never exists: it would be larger than the model (2,048 tokens of the released
vocabulary are 1.2 GB in fp32). The vocabulary goes by in blocks, with a running softmax, and the backward computes the
blocks anew. Blocks of the vocabulary and not of tokens: each then owns its rows of the head's gradient, and one that
fits the cache costs no memory traffic.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.autograd import FunctionContext
from model.kernels.available import has_triton
from model.moe import Routing


class TokenScores(NamedTuple):
    """A model's log-probabilities and entropies at N given tokens."""

    logprobs: Tensor  # [N] ln p(token | what precedes it)
    entropy: Tensor  # [N] nats, of the distribution each token was drawn from
    routing: Routing | None = None  # where an MoE decoder sent its tokens; None for a dense one


_BARRED = -1e30  # finite, so that p * ln p of a barred token is 0 and not NaN
_BLOCK_LOGITS = {"cpu": 2**21, "cuda": 2**27}  # on CPU what a cache holds
_WHOLE_LOGITS = 2**24  # 64 MiB; up to here they are one block, whose ln p is kept where kernels do not make it anew
_MIN_BLOCK = 1024  # below, products are too narrow to be fast
_STEP = 128  # a block's width is a multiple of it, because products of other widths are slow on a GPU


def score_tokens(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    barred_ids: Tensor | None = None,
    block: int | None = None,
) -> TokenScores:
    """hidden [N, D] that predict targets [N], head [V, D]; softmax in at least fp32 of logits / temperature.

    `barred_ids` are tokens the sampler never draws: the distribution is over the others. `block` vocabulary entries are
    worked on at a time; by default as many as keep a block's logits small. Both results carry gradients to hidden and
    head.
    """
    if block is None:
        num_tokens, block = hidden.shape[0], head.shape[0]
        if num_tokens * block > _WHOLE_LOGITS:
            block = max(_MIN_BLOCK, _BLOCK_LOGITS.get(hidden.device.type, 2**21) // num_tokens // _STEP * _STEP)
    with_kernels = hidden.is_cuda and hidden.dtype != torch.float64 and has_triton(hidden.device)
    scores = _KernelScores if with_kernels else _BlockedScores
    return TokenScores(*scores.apply(hidden, head, targets, temperature, barred_ids, block))


class _Block(NamedTuple):
    """Entries start..stop of the vocabulary."""

    part: slice
    inside: Tensor  # [N] the token's target is one of them
    column: Tensor  # [N, 1] which one; 0 where it is not
    barred: Tensor | None  # columns

    @classmethod
    def of(cls, targets: Tensor, barred_ids: Tensor | None, num_entries: int, width: int) -> Iterator["_Block"]:
        for start in range(0, num_entries, width):
            stop = min(start + width, num_entries)
            inside = (targets >= start) & (targets < stop)
            barred = None
            if barred_ids is not None:
                barred = barred_ids[(barred_ids >= start) & (barred_ids < stop)] - start
            yield cls(slice(start, stop), inside, torch.where(inside, targets - start, 0)[:, None], barred)

    def logits(self, hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
        """[N, stop - start] in at least fp32, fresh memory."""
        logits = F.linear(hidden, head[self.part])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.barred is not None:
            logits.index_fill_(-1, self.barred, _BARRED)
        return logits if temperature == 1.0 else logits.div_(temperature)


class _BlockedScores(torch.autograd.Function):
    """With p the softmax of z / T: d ln p_t / dz = (1_t - p) / T and dH / dz = -p (ln p + H) / T.

    A single block keeps its ln p for the backward pass; of several, each is computed anew.
    """

    @staticmethod
    def forward(
        ctx: FunctionContext,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperature: float,
        barred_ids: Tensor | None,
        width: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        peak = hidden.new_full(hidden.shape[:1], _BARRED, dtype=wide)  # largest z so far
        # Sums over the entries so far: of exp(z - peak), and of (z - peak) exp(z - peak).
        mass, weighted, chosen = (torch.zeros_like(peak) for _ in range(3))
        centred = None
        for block in _Block.of(targets, barred_ids, head.shape[0], width):
            logits = block.logits(hidden, head, temperature)
            chosen = torch.where(block.inside, logits.gather(-1, block.column).squeeze(-1), chosen)
            higher = torch.maximum(peak, logits.amax(-1))
            rescale = (peak - higher).exp()
            weighted = rescale * (weighted + mass * (peak - higher))
            centred = logits.sub_(higher[:, None])
            shares = centred.exp()
            mass = rescale * mass + shares.sum(-1)
            weighted = weighted + torch.linalg.vecdot(shares, centred)
            peak = higher
        log_mass = mass.log()
        normaliser, entropy = peak + log_mass, log_mass - weighted / mass
        kept = None if centred is None or width < head.shape[0] else centred.sub_(log_mass[:, None])
        ctx.save_for_backward(hidden, head, targets, barred_ids, normaliser, entropy, kept)
        ctx.temperature, ctx.width = temperature, width
        ctx.set_materialize_grads(False)
        return chosen - normaliser, entropy

    @staticmethod
    def backward(
        ctx: FunctionContext, *grads: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, head, targets, barred_ids, normaliser, entropy, kept = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        constant = _constant(entropy, grad_logprobs, grad_entropy)
        # Blocks are added up: in less than fp32 the sum would lose the small ones.
        grad_hidden = torch.zeros_like(hidden, dtype=normaliser.dtype) if ctx.needs_input_grad[0] else None
        grad_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        for block in _Block.of(targets, barred_ids, head.shape[0], ctx.width):
            log_all = kept
            if log_all is None:
                log_all = block.logits(hidden, head, ctx.temperature).sub_(normaliser[:, None])
            grad = log_all.exp()
            if grad_entropy is None:
                grad.mul_(constant[:, None])
            else:
                # A tensor that is kept belongs to the graph, which may be asked again; any other may be overwritten.
                factor = torch.mul(log_all, -grad_entropy[:, None], out=log_all if kept is None else None)
                grad.mul_(factor.add_(constant[:, None]))
            if grad_logprobs is not None:
                grad.scatter_add_(-1, block.column, torch.where(block.inside, grad_logprobs, 0.0)[:, None])
            if block.barred is not None:
                grad.index_fill_(-1, block.barred, 0.0)
            if ctx.temperature != 1.0:
                grad.div_(ctx.temperature)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                if hidden.dtype == grad_hidden.dtype:
                    grad_hidden.addmm_(grad, head[block.part])
                else:
                    grad_hidden += grad @ head[block.part]
            if grad_head is not None:
                torch.mm(grad.t(), hidden, out=grad_head[block.part])
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_head, None, None, None, None


class _KernelScores(torch.autograd.Function):
    """The same with kernels for a GPU, where blocks of logits keep the type of the model."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperature: float,
        barred_ids: Tensor | None,
        width: int,
    ) -> tuple[Tensor, Tensor]:
        from model.kernels.score_kernels import RunningScores  # where there is Triton

        running = RunningScores(targets, barred_ids, head.shape[0], temperature)
        for start in range(0, head.shape[0], width):
            running.add(F.linear(hidden, head[start : start + width]), start)
        logprobs, entropy, normaliser = running.totals()
        ctx.save_for_backward(hidden, head, normaliser, entropy)
        ctx.running, ctx.width = running, width
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: FunctionContext, *grads: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, head, normaliser, entropy = ctx.saved_tensors
        of_logprob, of_entropy = (torch.zeros_like(entropy) if grad is None else grad.contiguous() for grad in grads)
        factors = _constant(entropy, of_logprob, of_entropy), of_entropy, of_logprob
        grad_hidden = torch.zeros_like(hidden, dtype=normaliser.dtype) if ctx.needs_input_grad[0] else None
        grad_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, head.shape[0], ctx.width):
            part = slice(start, start + ctx.width)
            grad = F.linear(hidden, head[part])
            ctx.running.gradient_(grad, start, normaliser, factors)
            if grad_hidden is not None:
                grad_hidden += grad @ head[part]
            if grad_head is not None:
                torch.mm(grad.t(), hidden, out=grad_head[part])
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_head, None, None, None, None


def _constant(entropy: Tensor, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """The constant [N] in dL/dz = p * (constant - grad_entropy * ln p). The caller adds the target's one-hot term."""
    constant = torch.zeros_like(entropy)
    if grad_logprobs is not None:
        constant = constant - grad_logprobs
    return constant if grad_entropy is None else constant - grad_entropy * entropy
