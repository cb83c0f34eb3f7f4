"""Sampling of tokens on a GPU, in Triton.

It takes two launches and reads the logits once. Torch takes twenty launches, and one block per row sums up the whole
vocabulary.
"""

# A tl.constexpr of a kernel is a number to its caller, and launches take num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # a block works on this many logits of a row at once


@triton.jit
def _drawable_logits(logits_at, barred_at, row, first, vocabulary, stride, temperature, TILE: tl.constexpr):
    """Return a tile of logits / temperature, with -inf for barred ids and beyond the vocabulary."""
    column = first + tl.arange(0, TILE)
    there = column < vocabulary
    allowed = there & (tl.load(barred_at + column, mask=there, other=1) == 0)
    logits = tl.load(logits_at + row * stride + column, mask=there, other=0.0).to(tl.float32)
    return tl.where(allowed, logits / temperature, float("-inf"))


@triton.jit
def _shares(logits, top):
    """Return exp(logits - top), and 0 for -inf whatever `top` is."""
    return tl.where(logits == float("-inf"), 0.0, tl.exp(logits - top))


@triton.jit
def _weigh_tiles(
    logits_at, barred_at, top_at, mass_at, vocabulary, stride, temperature, num_tiles, TILE: tl.constexpr
):  # fmt: skip
    """Store the largest logit of a tile and the sum of exp(logit - largest). Each block takes one tile of one row."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    logits = _drawable_logits(logits_at, barred_at, row, tile * TILE, vocabulary, stride, temperature, TILE)
    top = tl.max(logits, 0)
    tl.store(top_at + row * num_tiles + tile, top)
    tl.store(mass_at + row * num_tiles + tile, tl.sum(_shares(logits, top), 0))


@triton.jit
def _find(weights, share, number):
    """Return the first index whose running sum of weights exceeds `share` of their sum, and the sum before it.

    Sums in another order may differ in the last bit, so an index of weight 0 is replaced by the heaviest one.
    """
    running = tl.cumsum(weights, 0)
    beyond = share * tl.max(running, 0)
    found = tl.sum((running <= beyond).to(tl.int32), 0)
    own = tl.sum(tl.where(number == found, weights, 0.0), 0)
    found = tl.where(own > 0.0, found, tl.argmax(weights, 0))
    before = tl.sum(tl.where(number < found, weights, 0.0), 0)
    return found, before, beyond


@triton.jit
def _choose(
    logits_at, barred_at, top_at, mass_at, points_at, chosen_at, logprob_at, vocabulary, stride, temperature, end_id,
    num_tiles, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Choose the token of a row and store its log-probability. Each block takes one row. TILES is a power of two, at
    least num_tiles."""
    row, number = tl.program_id(0).to(tl.int64), tl.arange(0, TILES)
    at = row * num_tiles + number
    tops = tl.load(top_at + at, mask=number < num_tiles, other=float("-inf"))
    masses = tl.load(mass_at + at, mask=number < num_tiles, other=0.0)
    top = tl.max(tops, 0)
    weights = masses.to(tl.float64) * _shares(tops, top).to(tl.float64)
    mass, point = tl.sum(weights, 0), tl.load(points_at + row)
    tile, before, beyond = _find(weights, point, number)
    inside, column = (beyond - before) / tl.sum(tl.where(number == tile, weights, 0.0), 0), tl.arange(0, TILE)
    if point < 0.0:
        tile = tl.argmax(tops, 0)
    logits = _drawable_logits(logits_at, barred_at, row, tile * TILE, vocabulary, stride, temperature, TILE)
    place, _, _ = _find(_shares(logits, tl.max(logits, 0)).to(tl.float64), inside, column)
    if point < 0.0:
        place = tl.argmax(logits, 0)
    own = tl.sum(tl.where(column == place, logits, 0.0), 0)
    logprob = (own - top).to(tl.float64) - tl.log(mass)
    finite = (mass > 0.0) & (mass < float("inf"))
    tl.store(chosen_at + row, tl.where(finite, (tile * TILE + place).to(tl.int64), end_id))
    tl.store(logprob_at + row, tl.where(finite, logprob, float("nan")))


def sample_tokens(
    logits: Tensor, points: Tensor, barred: Tensor, temperature: float, end_id: int
) -> tuple[Tensor, Tensor]:
    """Do what `rollouts.sampling.TokenSampler` does; barred [V] booleans."""
    num_rows, vocabulary = logits.shape
    num_tiles = triton.cdiv(vocabulary, _TILE)
    top, mass = torch.empty(2, num_rows, num_tiles, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(num_rows, dtype=torch.float64, device=logits.device)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    barred, size = barred.view(torch.int8), (vocabulary, logits.stride(0), temperature)
    with torch.cuda.device_of(logits):
        _weigh_tiles[num_rows, num_tiles](logits, barred, top, mass, *size, num_tiles, _TILE)
        _choose[num_rows,](
            logits, barred, top, mass, points, chosen, logprobs, *size, end_id, num_tiles, _TILE,
            triton.next_power_of_2(num_tiles), num_warps=8,
        )  # fmt: skip
    return chosen, logprobs
