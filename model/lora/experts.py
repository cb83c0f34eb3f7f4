"""A stack of experts with a low-rank adapter for both matrices of each expert."""

import torch
from torch import Tensor, nn

from model.kernels.grouped_products import expert_products
from model.layers import silu_product
from model.moe import Experts

STACKS = ("gate_up_proj", "down_proj")


class LoraExperts(Experts):
    """Experts whose weights stay as they are, plus `scale * lora_b[e] @ lora_a[e]` for each expert, which trains.

    The adapters of a stack are `STACK_lora_a` [E, rank, in] and `STACK_lora_b` [E, out, rank].
    """

    def __init__(self, base: Experts, rank: int, scale: float, device: torch.device | None = None) -> None:
        """Shares the weights of `base`. The adapters are empty memory in the weights' type.

        `device`: where the adapters are, if not where the weights are.
        """
        with torch.device("meta"):
            num_experts, width, inner = base.down_proj.shape
            super().__init__(num_experts, width, inner)
        for stack in STACKS:
            weight = getattr(base, stack)
            num_experts, rows, width = weight.shape
            setattr(self, stack, weight)
            a, b = ((num_experts, rank, width), (num_experts, rows, rank))
            setattr(self, f"{stack}_lora_a", nn.Parameter(weight.new_empty(a, device=device)))
            setattr(self, f"{stack}_lora_b", nn.Parameter(weight.new_empty(b, device=device)))
        self.scale = scale
        self.is_on = True

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        if not self.is_on:
            return super().forward(x, ends)
        gate_up, down = STACKS
        return self._products(down, silu_product(self._products(gate_up, x, ends)), ends)

    def _products(self, stack: str, x: Tensor, ends: Tensor) -> Tensor:
        """The products of every expert with its own rows of x, each with its adapter."""
        a, b = (getattr(self, f"{stack}_lora_{letter}").to(x.dtype) for letter in "ab")
        added = expert_products(expert_products(x, a, ends), b, ends)
        return expert_products(x, getattr(self, stack), ends) + self.scale * added
