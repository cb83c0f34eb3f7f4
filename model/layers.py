"""Small layers shared by the towers.

RMSNorm, RoPE and SwiGLU have hand-written backwards: on CPU the composed ones cost about twice the memory traffic.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.autograd import FunctionContext
from model.kernels.available import WIDE, fits_decode_kernels, for_sampling, has_triton
from model.lora.linear import LoraLinear, adapted_product, low_ranks


class RMSNorm(nn.Module):
    """x / rms(x) in at least fp32, cast back, times the weight (AIMv2 and Qwen3 share this order)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape and dtype."""
        if x.dtype in WIDE:
            return rms_norm(x, self.weight, self.eps)
        if for_sampling(x.device):
            from model.kernels.layer_kernels import norm  # where there is Triton

            return norm(x, self.weight, self.eps)  # half the time of torch's on few rows
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)  # one kernel, fp32 inside
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


def add_and_norm(x: Tensor, delta: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """x + delta and the norm of that; all [..., width]."""
    if x.dtype not in WIDE and for_sampling(x.device):
        from model.kernels import layer_kernels  # where there is Triton

        return layer_kernels.add_and_norm(x, delta, norm.weight, norm.eps)
    x = x + delta
    return x, norm(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., width] of a dtype in WIDE / rms(x), times the weight [width] or [heads, width]."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    if weight.dim() == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, weight.shape[-1:], None, eps).mul_(weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionContext, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        normed, scale, weight = ctx.saved_tensors
        product = grad * normed
        mean = product @ weight if weight.dim() == 1 else torch.linalg.vecdot(product, weight)
        mean = mean.unsqueeze(-1) / -weight.shape[-1]
        grad_x = torch.addcmul(grad * weight, normed, mean).mul_(scale)
        return grad_x, product.flatten(0, -weight.dim() - 1).sum(0), None


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the layer is exactly a `kind` that nobody wrapped, hooked or gave another `forward`.

    Its weight may then be read instead of the layer being called. Adapters, quantised layers and engines that gather
    weights in hooks are not.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is kind and not any(hooks) and "forward" not in layer.__dict__


def side_by_side(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Outputs of several bias-free layers on the same input.

    As one matrix product after `lay_side_by_side`, and always on CPU: narrow ones leave cores idle, and joining the
    weights costs one small copy. A GPU would copy its weights again for every token.
    """
    if not _can_join(layers) or (x.is_cuda and not _are_joint(layers)):
        return tuple(layer(x) for layer in layers)
    return joint_linear(x, *layers).split([layer.weight.shape[0] for layer in layers], dim=-1)


def joint_linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """[..., rows of all]: the outputs of several bias-free layers one behind the other.

    In one matrix product, unless a layer is more than its weight (`is_plain`) and an adapter of ours.
    """
    if not _can_join(layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    return adapted_product(x, _joint_weight(layers), None, low_ranks(layers, x.dtype))


def _can_join(layers: Sequence[nn.Linear]) -> bool:
    kinds = (nn.Linear, LoraLinear)
    return all(any(is_plain(layer, kind) for kind in kinds) and layer.bias is None for layer in layers)


def swiglu(x: Tensor, gate: nn.Linear, up: nn.Linear) -> Tensor:
    """silu(gate(x)) * up(x), of bias-free layers."""
    if not x.is_cuda:
        return silu_product(joint_linear(x, gate, up))
    gated, linear = side_by_side(x, gate, up)
    if x.dtype == torch.float64 or torch.compiler.is_compiling() or not has_triton(x.device):
        return F.silu(gated) * linear  # a compiler joins these itself
    from model.kernels.layer_kernels import Gated  # where there is Triton

    return Gated.apply(gated, linear)


def project_heads(
    x: Tensor, projections: Sequence[nn.Linear], norms: Sequence[RMSNorm], rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., D] through the projections of queries, keys and values; queries and keys are normed and rotated.

    Returns q [..., H, K], k and v [..., Hkv, K]. `norms` are those of queries and of keys.
    """
    q_norm, k_norm = norms
    head_dim = q_norm.weight.shape[0]
    norms_are_plain = is_plain(q_norm, RMSNorm) and is_plain(k_norm, RMSNorm)
    if x.device.type != "cpu" or x.dtype not in WIDE or not norms_are_plain:
        q, k, v = (heads.unflatten(-1, (-1, head_dim)) for heads in side_by_side(x, *projections))
        if norms_are_plain and for_sampling(x.device) and fits_decode_kernels(x.dtype, head_dim):
            from model.kernels.decode_kernels import norm_and_rotate  # where there is Triton

            q, k = norm_and_rotate(q, k, (q_norm.weight, k_norm.weight), q_norm.eps, rope)
            return q, k, v
        q, k = q_norm(q), k_norm(k)
        if torch.is_grad_enabled():  # many rows: one more copy of them costs more than the calls
            return apply_rope(q, rope), apply_rope(k, rope), v
        rotated_q, rotated_k = apply_rope(torch.cat((q, k), dim=-2), rope).tensor_split((q.shape[-2],), dim=-2)
        return rotated_q, rotated_k, v
    # Queries and keys in one go: with a sampler's few rows every call costs more than its arithmetic.
    num_heads, num_kv_heads = (layer.weight.shape[0] // head_dim for layer in projections[:2])
    heads = joint_linear(x, *projections).unflatten(-1, (-1, head_dim))
    qk, v = heads.tensor_split((num_heads + num_kv_heads,), dim=-2)
    weights = (q_norm.weight.expand(num_heads, -1), k_norm.weight.expand(num_kv_heads, -1))
    qk = apply_rope(rms_norm(qk, torch.cat(weights), q_norm.eps), rope)
    q, k = qk.tensor_split((num_heads,), dim=-2)
    return q, k, v


def silu_product(joint: Tensor) -> Tensor:
    """silu of the first half of the last dimension, times the second half."""
    if torch.is_grad_enabled():
        return _SiluProduct.apply(joint)
    gate, up = joint.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _SiluProduct(torch.autograd.Function):
    """Its backward writes both halves in place: autograd would make them apart and copy them together."""

    @staticmethod
    def forward(ctx: FunctionContext, joint: Tensor) -> Tensor:
        gate, up = joint.chunk(2, dim=-1)
        activation = F.silu(gate)
        ctx.save_for_backward(joint, activation)
        return activation * up

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> Tensor:
        (grad,) = grads
        joint, activation = ctx.saved_tensors
        gate, up = joint.chunk(2, dim=-1)
        grad_joint = torch.empty_like(joint)
        grad_gate, grad_up = grad_joint.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.mul(grad, activation, out=grad_up)
        return grad_joint


def lay_side_by_side(*layers: nn.Linear) -> None:
    """Move the frozen weights of layers that `side_by_side` takes into one piece of memory, in this order."""
    joint = torch.cat([layer.weight for layer in layers])
    for layer, rows in zip(layers, joint.split([layer.weight.shape[0] for layer in layers]), strict=True):
        layer.weight.data = rows


def _joint_weight(layers: Sequence[nn.Linear]) -> Tensor:
    """[rows of all, width]; a view where frozen weights lie one behind the other."""
    weights = [layer.weight for layer in layers]
    if not _are_joint(layers):
        return torch.cat(weights)
    return weights[0].as_strided((sum(map(len, weights)), weights[0].shape[1]), weights[0].stride())


def _are_joint(layers: Sequence[nn.Linear]) -> bool:
    """Whether `lay_side_by_side` put them where they are."""
    weights = [layer.weight for layer in layers]
    if weights[0].requires_grad:
        return False
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    memory = weights[0].untyped_storage().data_ptr()
    return all(
        weight.data_ptr() == end and weight.untyped_storage().data_ptr() == memory
        for weight, end in zip(weights[1:], ends, strict=False)
    )


def maybe_checkpoint(owner: nn.Module, block: nn.Module, *inputs: Any) -> Any:
    """`block(*inputs)`; when `owner.gradient_checkpointing` is set, only the inputs are kept for the backward pass."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        from torch.utils.checkpoint import checkpoint

        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [..., 1, head_dim / 2] for integer positions [...]; computed in at least fp32."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=compute) / head_dim
    angles = (positions.to(compute).unsqueeze(-1) * (theta**-exponent)).unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [..., H, K]: dimension i is paired with i + K/2 (the Hugging Face layout of Qwen3 weights)."""
    return _Rotate.apply(x, *rope) if torch.is_grad_enabled() else _rotate(x, *rope, 1.0)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionContext, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: FunctionContext, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, -1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    (first, second), out = x.chunk(2, dim=-1), torch.empty_like(x)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=sign)
    return out
