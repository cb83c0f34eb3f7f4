"""Kernels for what lies between the products of a layer on a GPU, in Triton: one launch and one reading for what torch
does in two or three."""

# Pyright cannot know that a caller passes a number for a tl.constexpr, and that launches take num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.autograd import FunctionContext

_TILE = 1024  # numbers of a row that are worked on at once


@triton.jit
def _gated(gate_at, up_at, out_at, gate_stride, up_stride, width, TILE: tl.constexpr):
    """A block: one tile of one row of silu(gate) * up."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    there = column < width
    gate = tl.load(gate_at + row * gate_stride + column, mask=there).to(tl.float32)
    up = tl.load(up_at + row * up_stride + column, mask=there).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_at + row * width + column, out.to(out_at.dtype.element_ty), mask=there)


@triton.jit
def _gated_backward(
    grad_at, gate_at, up_at, of_gate_at, of_up_at, gate_stride, up_stride, width, TILE: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    there, here = column < width, row * width + column
    grad = tl.load(grad_at + here, mask=there).to(tl.float32)
    gate = tl.load(gate_at + row * gate_stride + column, mask=there).to(tl.float32)
    up = tl.load(up_at + row * up_stride + column, mask=there).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    of_gate = grad * up * share * (1.0 + gate * (1.0 - share))
    tl.store(of_gate_at + here, of_gate.to(of_gate_at.dtype.element_ty), mask=there)
    tl.store(of_up_at + here, (grad * gate * share).to(of_up_at.dtype.element_ty), mask=there)


@triton.jit
def _norm(
    x_at, delta_at, weight_at, sum_at, out_at, width, eps, ADDS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """A block: one row. WIDTH is a power of two, at least width."""
    column = tl.arange(0, WIDTH)
    there, here = column < width, tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(x_at + here, mask=there, other=0.0)
    if ADDS:
        x = (x.to(tl.float32) + tl.load(delta_at + here, mask=there, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(sum_at + here, x, mask=there)
    x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    out = x * scale * tl.load(weight_at + column, mask=there).to(tl.float32)
    tl.store(out_at + here, out.to(out_at.dtype.element_ty), mask=there)


class Gated(torch.autograd.Function):
    """silu(gate) * up, each [..., width]."""

    @staticmethod
    def forward(ctx: FunctionContext, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        shape, width = gate.shape, gate.shape[-1]
        gate, up = _rows(gate), _rows(up)
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        grid = len(gate), triton.cdiv(width, _TILE)
        with torch.cuda.device_of(gate):
            _gated[grid](gate, up, out, gate.stride(0), up.stride(0), width, _TILE)
        return out.view(shape)

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = map(_rows, ctx.saved_tensors)
        shape, width = grads[0].shape, grads[0].shape[-1]
        of_gate, of_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
        grid = len(gate), triton.cdiv(width, _TILE)
        grad = grads[0].contiguous()
        with torch.cuda.device_of(gate):
            _gated_backward[grid](grad, gate, up, of_gate, of_up, gate.stride(0), up.stride(0), width, _TILE)
        return of_gate.view(shape), of_up.view(shape)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., width] / rms(x) * weight, without a gradient."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    with torch.cuda.device_of(x):
        _norm[x.numel() // width,](x, x, weight, x, out, width, eps, False, triton.next_power_of_2(width))
    return out


def add_and_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, rounded to their type, and `norm` of it; all [..., width]."""
    x, delta = x.contiguous(), delta.contiguous()
    total, out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    width = x.shape[-1]
    with torch.cuda.device_of(x):
        _norm[x.numel() // width,](x, delta, weight, total, out, width, eps, True, triton.next_power_of_2(width))
    return total, out


def _rows(x: Tensor) -> Tensor:
    """[..., width] -> [rows, width] whose rows are dense, whatever lies between them."""
    x = x.flatten(0, -2)
    return x if x.stride(1) == 1 else x.contiguous()
