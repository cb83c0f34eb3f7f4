"""Log-probs and entropies straight from hidden states equal the dense formula, values and gradients.

float64: the two sides differ in the order of additions over V = 97 entries, some 1e-14 relative; 1e-10 is the bar.
"""

import pytest
import torch
from torch import Tensor

from model.logprobs import score_tokens

N, WIDTH, VOCAB = 23, 16, 97
BAR = 1e-10


def problem(dtype: torch.dtype = torch.float64, num_tokens: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, head, torch.randint(8, VOCAB, (num_tokens,), generator=generator)


def dense(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, barred: list[int]):
    """By deleting the barred columns, instead of lowering their logits."""
    kept = torch.tensor([v for v in range(VOCAB) if v not in barred])
    distribution = (hidden @ head[kept].T / temperature).softmax(-1)
    where = (kept == targets[:, None]).int().argmax(-1)
    logprobs = distribution.gather(-1, where[:, None]).squeeze(-1).log()
    return logprobs, -(distribution * distribution.log()).sum(-1)


def gradients(logprobs: Tensor, entropy: Tensor, use: str, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Of a weighted sum of what `use` names, weights of both signs."""
    weights = torch.linspace(-1.0, 2.0, logprobs.shape[0], dtype=logprobs.dtype)
    terms = {"logprobs": logprobs @ weights, "entropy": entropy @ weights.flip(0)}
    return torch.autograd.grad(sum(terms[name] for name in use.split("+")), leaves)


@pytest.mark.parametrize("use", ["logprobs", "entropy", "logprobs+entropy"])
@pytest.mark.parametrize("barred", [[], [0, 3, 7]], ids=["all", "barred"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("block", [1, 8, 96, 97, 200, None])
def test_values_and_gradients_equal_the_dense_formula(block, temperature, barred, use):
    hidden, head, targets = problem()
    barred_ids = torch.tensor(barred) if barred else None
    ours = score_tokens(hidden, head, targets, temperature, barred_ids, block)
    theirs = dense(hidden, head, targets, temperature, barred)
    for a, b in zip((ours.logprobs, ours.entropy), theirs, strict=True):
        assert (a - b).abs().max() <= BAR * b.abs().max()
    for a, b in zip(
        gradients(ours.logprobs, ours.entropy, use, hidden, head), gradients(*theirs, use, hidden, head), strict=True
    ):
        assert (a - b).abs().max() <= BAR * b.abs().max()


@pytest.mark.parametrize("trained", ["hidden", "head"])
def test_a_frozen_side_gets_no_gradient(trained):
    hidden, head, targets = problem()
    frozen = head if trained == "hidden" else hidden
    frozen.requires_grad_(False)
    scores = score_tokens(hidden, head, targets, block=50)
    scores.logprobs.sum().backward()
    assert frozen.grad is None
    leaf = hidden if trained == "hidden" else head
    (expected,) = torch.autograd.grad(dense(hidden, head, targets, 1.0, [])[0].sum(), leaf)
    assert (leaf.grad - expected).abs().max() <= BAR * expected.abs().max()


def test_a_barred_target_moves_the_others_only():
    """It cannot be sampled; should one be scored all the same, no block size may change what happens."""
    hidden, head, targets = problem()
    barred = targets[:1].clone()
    results = []
    for block in (VOCAB, 10):
        scores = score_tokens(hidden, head, targets, 1.0, barred, block)
        assert (scores.logprobs[targets == barred] < -1e20).all()
        results.append(torch.autograd.grad(scores.logprobs[1:].sum() + scores.logprobs[0], (hidden, head)))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= BAR * b.abs().max()


def test_bfloat16_is_near_the_exact_answer():
    """Inputs rounded to bfloat16 on both sides; what differs is the rounding of a logit, 2^-9 of its size (here below
    16): at most 0.03 in a log-prob. Softmax and the sum over blocks run in float32."""
    hidden, head, targets = problem(torch.bfloat16)
    head = (head / 2).detach().requires_grad_()
    ours = score_tokens(hidden, head, targets, block=40)
    assert ours.logprobs.dtype == torch.float32
    exact_leaves = [t.detach().double().requires_grad_() for t in (hidden, head)]
    exact = dense(*exact_leaves, targets, 1.0, [])
    assert (exact_leaves[0] @ exact_leaves[1].T).abs().max() < 16
    for a, b in zip((ours.logprobs, ours.entropy), exact, strict=True):
        assert (a - b).abs().max() <= 0.06  # two roundings: of the logit and of the normaliser
    mine = gradients(ours.logprobs, ours.entropy, "logprobs+entropy", hidden, head)
    best = gradients(*exact, "logprobs+entropy", *exact_leaves)
    for a, b in zip(mine, best, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).abs().max() <= 0.03 * b.abs().max()


@pytest.mark.parametrize("block", [None, 4])
def test_no_tokens(block):
    hidden, head, targets = problem(num_tokens=0)
    scores = score_tokens(hidden, head, targets, block=block)
    assert scores.logprobs.shape == scores.entropy.shape == (0,)
    (scores.logprobs.sum() + scores.entropy.sum()).backward()
    assert hidden.grad.shape == (0, WIDTH)
    assert torch.equal(head.grad, torch.zeros_like(head))


def test_without_gradients_nothing_is_kept():
    hidden, head, targets = problem()
    with torch.no_grad():
        scores = score_tokens(hidden, head, targets, block=40)
    assert not scores.logprobs.requires_grad and not scores.entropy.requires_grad
