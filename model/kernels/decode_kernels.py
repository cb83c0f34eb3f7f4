"""Kernels for decoding on a GPU, in Triton: one launch each for what torch does in many.

Keys are read in parts that are attended to side by side and then merged by their log-sum-exp, so that one group fills a
GPU. How they are cut depends on the room of a cache alone: a row's arithmetic is the same in any company.
"""

# Pyright cannot know that a caller passes a number for a tl.constexpr, and that launches take num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

_SHORTEST_PART, _MOST_PARTS = 128, 32  # how the keys of a row are cut into parts


@triton.jit
def _attend(q, k_at, v_at, start, stop, end, scale, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Attention of q [ROWS, WIDTH] over keys start..stop that lie before `end`: mean of values, log-sum-exp [ROWS]."""
    column = tl.arange(0, WIDTH)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(start, stop, TILE):
        place = first + tl.arange(0, TILE)
        cell = place[:, None] * WIDTH + column[None, :]
        there = (place < end)[:, None]
        keys = tl.load(k_at + cell, mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((place < end)[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        fade = tl.exp(top - new_top)
        mass = mass * fade + tl.sum(weights, 1)
        values = tl.load(v_at + cell, mask=there, other=0.0)
        out = out * fade[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        top = new_top
    return out / mass[:, None], top + tl.log(mass)


@triton.jit
def _prefix_parts(
    q_at, k_at, v_at, lengths_at, row_of_cell_at, out_at, mass_at, scale, q_stride, room, part_length, num_parts,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIBLINGS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """A block: one part of one prompt's keys of one head, and ROWS queries of its siblings."""
    prompt, head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    part, share = tl.program_id(1), HEADS // KV_HEADS
    number = tl.program_id(2) * ROWS + tl.arange(0, ROWS)  # sibling * share + query head of the group of heads
    cell = prompt * SIBLINGS + number // share
    row = tl.load(row_of_cell_at + cell, mask=number < SIBLINGS * share, other=-1)
    query = head * share + number % share
    at = row.to(tl.int64) * HEADS + query
    column, live = tl.arange(0, WIDTH), row >= 0
    start, end = part * part_length, tl.load(lengths_at + prompt).to(tl.int32)
    if start < end:
        source = row.to(tl.int64) * q_stride + query * WIDTH
        q = tl.load(q_at + source[:, None] + column[None, :], mask=live[:, None], other=0.0)
        keys = (prompt * KV_HEADS + head).to(tl.int64) * room * WIDTH
        stop = tl.minimum(start + part_length, end)
        out, mass = _attend(q, k_at + keys, v_at + keys, start, stop, end, scale, WIDTH, ROWS, TILE)
        place = at * num_parts + part
        tl.store(out_at + place[:, None] * WIDTH + column[None, :], out, mask=live[:, None])
        tl.store(mass_at + place, mass, mask=live)
    else:
        tl.store(mass_at + at * num_parts + part, tl.full([ROWS], float("-inf"), tl.float32), mask=live)


@triton.jit
def _own_parts(
    q_at, new_k_at, new_v_at, k_at, v_at, slot_at, out_at, mass_at, scale, q_stride, k_stride, v_stride, room,
    part_length, first_part, num_parts,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A block: one part of one row's own keys of one head; the part with the new token's slot also stores it there."""
    row, head = (tl.program_id(0) // KV_HEADS).to(tl.int64), tl.program_id(0) % KV_HEADS
    share = HEADS // KV_HEADS
    number, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    live = number < share
    query = head * share + number
    at = row * HEADS + query
    slot = tl.load(slot_at).to(tl.int32)
    start = tl.program_id(1) * part_length
    place = at * num_parts + first_part + tl.program_id(1)
    if start <= slot:
        keys = (row * KV_HEADS + head) * room * WIDTH
        stop = start + part_length
        if slot < stop:
            here = keys + slot * WIDTH + column
            tl.store(k_at + here, tl.load(new_k_at + row * k_stride + head * WIDTH + column))
            tl.store(v_at + here, tl.load(new_v_at + row * v_stride + head * WIDTH + column))
            tl.debug_barrier()  # other threads of this block read them
        source = row * q_stride + query * WIDTH
        q = tl.load(q_at + source[:, None] + column[None, :], mask=live[:, None], other=0.0)
        stop = tl.minimum(stop, slot + 1)
        out, mass = _attend(q, k_at + keys, v_at + keys, start, stop, slot + 1, scale, WIDTH, ROWS, TILE)
        tl.store(out_at + place[:, None] * WIDTH + column[None, :], out, mask=live[:, None])
        tl.store(mass_at + place, mass, mask=live)
    else:
        tl.store(mass_at + place, tl.full([ROWS], float("-inf"), tl.float32), mask=live)


@triton.jit
def _merge_parts(parts_at, mass_at, out_at, num_parts, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """A block: one query. PARTS is a power of two, at least num_parts."""
    query, column, part = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH), tl.arange(0, PARTS)
    mass = tl.load(mass_at + query * num_parts + part, mask=part < num_parts, other=float("-inf"))
    weights = tl.exp(mass - tl.max(mass, 0))
    place = query * num_parts + part
    there = (mass > float("-inf"))[:, None]  # others were not written
    values = tl.load(parts_at + place[:, None] * WIDTH + column[None, :], mask=there, other=0.0)
    out = tl.sum(values * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_at + query * WIDTH + column, out.to(out_at.dtype.element_ty))


@triton.jit
def _norm_and_rotate(
    q_at, k_at, q_weight_at, k_weight_at, cos_at, sin_at, out_at, q_stride, k_stride, eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A block: one head of one row of queries or keys."""
    row, head, column = tl.program_id(0), tl.program_id(1), tl.arange(0, HALF)
    if head < Q_HEADS:
        source, weight = q_at + row * q_stride + head * 2 * HALF, q_weight_at
    else:
        source, weight = k_at + row * k_stride + (head - Q_HEADS) * 2 * HALF, k_weight_at
    first = tl.load(source + column).to(tl.float32)
    second = tl.load(source + HALF + column).to(tl.float32)
    scale = 1.0 / tl.sqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps)
    first = first * scale * tl.load(weight + column).to(tl.float32)
    second = second * scale * tl.load(weight + HALF + column).to(tl.float32)
    cos = tl.load(cos_at + row * HALF + column).to(tl.float32)
    sin = tl.load(sin_at + row * HALF + column).to(tl.float32)
    target = out_at + (row * (Q_HEADS + KV_HEADS) + head) * 2 * HALF + column
    tl.store(target, (first * cos - second * sin).to(out_at.dtype.element_ty))
    tl.store(target + HALF, (second * cos + first * sin).to(out_at.dtype.element_ty))


def norm_and_rotate(
    q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], eps: float, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """RMS norm and rotation of each head: q [R, H, K], k [R, Hkv, K], whose heads lie behind each other -> the same.

    rope: cos and sin [R, 1, K / 2]. Rows are tokens: there is no further dimension.
    """
    (num_rows, num_heads, width), num_kv_heads = q.shape, k.shape[1]
    out = q.new_empty(num_rows, num_heads + num_kv_heads, width)
    cos, sin = (table.view(num_rows, width // 2) for table in rope)
    with torch.cuda.device_of(q):
        _norm_and_rotate[num_rows, num_heads + num_kv_heads](
            q, k, *weights, cos, sin, out, q.stride(0), k.stride(0), eps, num_heads, num_kv_heads, width // 2,
            num_warps=1,
        )  # fmt: skip
    return out[:, :num_heads], out[:, num_heads:]


def decode_attention(
    q: Tensor,
    new: tuple[Tensor, Tensor],
    prefix: tuple[Tensor, Tensor, Tensor],
    own: tuple[Tensor, Tensor, Tensor],
    row_of_cell: Tensor,
) -> Tensor:
    """One new token of R completions of N prompts, which is put into its slot too. Returns [R, H, K].

    q [R, H, K]; new: keys and values [R, Hkv, K]; prefix: keys and values [N, Hkv, P, K] and their number [N]; own:
    keys and values [R, Hkv, C, K] and the slot [1] of the new token; row_of_cell [N * G]: row of each sibling, or -1.
    Those of prefix and own are contiguous; what lies behind their ends is not read.
    """
    (num_rows, num_heads, width), (num_prompts, num_kv_heads, prefix_room, _) = q.shape, prefix[0].shape
    siblings, share, own_room = len(row_of_cell) // num_prompts, num_heads // num_kv_heads, own[0].shape[2]
    (prefix_part, prefix_parts), (own_part, own_parts) = _parts(prefix_room), _parts(own_room)
    num_parts, scale = prefix_parts + own_parts, width**-0.5
    q, new_k, new_v = map(_dense_heads, (q, *new))
    parts = torch.empty(num_rows, num_heads, num_parts, width, dtype=torch.float32, device=q.device)
    mass = torch.empty(num_rows, num_heads, num_parts, dtype=torch.float32, device=q.device)
    tile, most_rows = _block(width * q.element_size())
    rows = min(most_rows, max(16, triton.next_power_of_2(siblings * share)))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with torch.cuda.device_of(q):
        _prefix_parts[num_prompts * num_kv_heads, prefix_parts, triton.cdiv(siblings * share, rows)](
            q, *prefix, row_of_cell, parts, mass, scale, q.stride(0), prefix_room, prefix_part, num_parts,
            num_heads, num_kv_heads, siblings, width, rows, tile,
        )  # fmt: skip
        _own_parts[num_rows * num_kv_heads, own_parts](
            q, new_k, new_v, *own, parts, mass, scale, q.stride(0), new_k.stride(0), new_v.stride(0), own_room,
            own_part, prefix_parts, num_parts, num_heads, num_kv_heads, width,
            max(16, triton.next_power_of_2(share)), tile,
        )  # fmt: skip
        _merge_parts[num_rows * num_heads,](parts, mass, out, num_parts, width, triton.next_power_of_2(num_parts))
    return out


def _block(head_bytes: int) -> tuple[int, int]:
    """Keys that are read at once, and most rows of queries: what fits into the 99 KiB of shared memory of the smallest
    GPUs from Ampere on (compiled for these: at most 98.1 KiB)."""
    return min(64, max(16, 2**14 // head_bytes)), 64 if head_bytes <= 256 else 32


def _parts(room: int) -> tuple[int, int]:
    """Length and number of the parts in which `room` keys are read."""
    length = _SHORTEST_PART * triton.cdiv(room, _SHORTEST_PART * _MOST_PARTS)
    return length, triton.cdiv(room, length)


def _dense_heads(x: Tensor) -> Tensor:
    """[R, H, K] whose heads lie behind each other, whatever lies between rows."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
