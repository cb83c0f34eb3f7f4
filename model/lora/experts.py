"""A stack of experts with a low-rank adapter for both matrices of each expert."""

import torch
from torch import Tensor, nn

from model.layers import silu_product
from model.lora.linear import LowRank, adapted_product
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

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        if not self.is_on:
            return super().forward(x, counts)
        gate_ups, downs = (self._matrices(stack, x.dtype) for stack in STACKS)
        outputs = [
            self._product(silu_product(self._product(rows, *gate_up)), *down)
            for rows, gate_up, down in zip(x.split(counts), gate_ups, downs, strict=True)
            if rows.shape[0]
        ]
        return torch.cat(outputs) if outputs else x

    def _matrices(self, stack: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(weight, a, b) of each expert."""
        adapters = (getattr(self, f"{stack}_lora_{letter}").to(dtype).unbind(0) for letter in "ab")
        return list(zip(getattr(self, stack).unbind(0), *adapters, strict=True))

    def _product(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return adapted_product(x, weight, None, [LowRank(slice(None), a, b, self.scale)])
