"""Kernels for `model.logprobs` on a GPU, in Triton: a block of logits is read once for the running softmax, and turned
into its gradient in place. torch takes some ten passes over fp32 copies of it for either.
"""

# Pyright cannot know that a caller passes a number for a tl.constexpr, and that launches take num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # logits of a row that are worked on at once


@triton.jit
def _cooled_logits(logits_at, barred_at, row, first, width, cost, TILE: tl.constexpr):
    """Logits / temperature of a tile, and whether each is one that the sampler can draw."""
    column = first + tl.arange(0, TILE)
    there = column < width
    allowed = there & (tl.load(barred_at + column, mask=there, other=1) == 0)
    logits = tl.load(logits_at + row * width + column, mask=there, other=0.0).to(tl.float32) * cost
    return column, there, tl.where(allowed, logits, -1e30), allowed


@triton.jit
def _scan(logits_at, barred_at, targets_at, state_at, num_rows, start, width, cost, TILE: tl.constexpr):
    """A block: one row. Its running peak, mass, weighted mass and target's logit take `width` further logits in."""
    row = tl.program_id(0).to(tl.int64)
    peak, mass = tl.load(state_at + row), tl.load(state_at + num_rows + row)
    weighted = tl.load(state_at + 2 * num_rows + row)
    for first in range(0, width, TILE):
        _, _, logits, allowed = _cooled_logits(logits_at, barred_at + start, row, first, width, cost, TILE)
        higher = tl.maximum(peak, tl.max(logits, 0))
        shares = tl.where(allowed, tl.exp(logits - higher), 0.0)
        fade = tl.exp(peak - higher)
        weighted = fade * (weighted + mass * (peak - higher)) + tl.sum(shares * (logits - higher), 0)
        mass = fade * mass + tl.sum(shares, 0)
        peak = higher
    tl.store(state_at + row, peak)
    tl.store(state_at + num_rows + row, mass)
    tl.store(state_at + 2 * num_rows + row, weighted)
    target = tl.load(targets_at + row) - start
    if (target >= 0) & (target < width):
        chosen = tl.load(logits_at + row * width + target).to(tl.float32) * cost
        chosen = tl.where(tl.load(barred_at + start + target) == 0, chosen, -1e30)
        tl.store(state_at + 3 * num_rows + row, chosen)


@triton.jit
def _turn_into_gradient(
    logits_at, barred_at, targets_at, normaliser_at, constant_at, of_entropy_at, of_logprob_at, start, width, cost,
    TILE: tl.constexpr,
):  # fmt: skip
    """A block: one tile of one row."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE
    column, there, logits, allowed = _cooled_logits(logits_at, barred_at + start, row, first, width, cost, TILE)
    log_share = logits - tl.load(normaliser_at + row)
    grad = tl.exp(log_share) * (tl.load(constant_at + row) - tl.load(of_entropy_at + row) * log_share)
    is_target = column + start == tl.load(targets_at + row)
    grad = tl.where(is_target, grad + tl.load(of_logprob_at + row), grad)
    grad = tl.where(allowed, grad * cost, 0.0)
    tl.store(logits_at + row * width + column, grad.to(logits_at.dtype.element_ty), mask=there)


class RunningScores:
    """The softmax of N rows over a vocabulary that comes block by block."""

    def __init__(self, targets: Tensor, barred_ids: Tensor | None, vocab_size: int, temperature: float) -> None:
        self._targets, self._cost = targets, 1.0 / temperature
        self._barred = torch.zeros(vocab_size, dtype=torch.int8, device=targets.device)
        if barred_ids is not None:
            self._barred[barred_ids] = 1
        self._state = torch.zeros(4, len(targets), dtype=torch.float32, device=targets.device)
        self._state[0] = -1e30

    def add(self, logits: Tensor, start: int) -> None:
        """logits [N, width] of the vocabulary's entries from `start` on, contiguous."""
        num_rows, width = logits.shape
        with torch.cuda.device_of(logits):
            _scan[num_rows,](
                logits, self._barred, self._targets, self._state, num_rows, start, width, self._cost, _TILE, num_warps=8
            )

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """After all blocks [N]: ln p of the targets, entropy, ln of the sum of exp(logit / temperature)."""
        peak, mass, weighted, chosen = self._state
        log_mass = mass.log()
        return chosen - peak - log_mass, log_mass - weighted / mass, peak + log_mass

    def gradient_(self, logits: Tensor, start: int, normaliser: Tensor, factors: tuple[Tensor, Tensor, Tensor]) -> None:
        """Overwrite logits as given to `add` with their gradient p (constant - of_entropy ln p), and of_logprob at the
        target; `factors` are these three [N]."""
        num_rows, width = logits.shape
        with torch.cuda.device_of(logits):
            _turn_into_gradient[num_rows, triton.cdiv(width, _TILE)](
                logits, self._barred, self._targets, normaliser, *factors, start, width, self._cost, _TILE, num_warps=8
            )
