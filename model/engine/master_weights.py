"""fp32 weights behind a model that computes in a narrower type.

bfloat16 keeps 8 bits: a weight of 1 does not move by a step below 0.002. So the optimizer works on fp32 weights; the
model computes with rounded copies, made anew after each step, and gradients are added up in fp32.
"""

import copy

import torch
from torch import Tensor, nn

from model.sail_vl2 import SailVL2


class MasterWeights:
    """Ties a compute copy in `dtype` to the fp32 `model`: gradients of the copy land in the model's `.grad`."""

    def __init__(self, model: SailVL2, dtype: torch.dtype) -> None:
        self.compute = copy.deepcopy(model).to(dtype)
        self.compute.language_model.tie()
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for (name, rounded), (other, master) in zip(
            self.compute.named_parameters(), model.named_parameters(), strict=True
        ):
            assert name == other
            self._pairs.append((rounded, master))
            if rounded.requires_grad:
                rounded.register_post_accumulate_grad_hook(lambda p, master=master: _hand_over(p, master))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the fp32 weights into the compute copy."""
        rounded, masters = zip(*self._pairs, strict=True)
        torch._foreach_copy_(rounded, masters)  # pyright: ignore[reportPrivateImportUsage]


def _hand_over(rounded: Tensor, master: nn.Parameter) -> None:
    gradient, rounded.grad = rounded.grad, None
    assert gradient is not None
    if master.grad is None:
        master.grad = torch.empty_like(master)
        # On a GPU 1.7 times as fast as `Tensor.to` (benchmarks/RESULTS.md).
        torch._foreach_copy_([master.grad], [gradient])  # pyright: ignore[reportPrivateImportUsage]
    else:
        master.grad += gradient
