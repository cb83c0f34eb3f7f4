"""AdamW over two groups: matrices decay, vectors do not.

The arithmetic is torch's functional AdamW (fused kernel). Its Optimizer class is not used because constructing one
imports the whole compiler, a second of every process, and because state by parameter name is what checkpoints keep.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from model.engine.config import OptimizerConfig


class AdamW:
    """State lives in `moments`: parameter name -> (first moment, second moment, step count)."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self.moments = {
            name: (torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), dtype=torch.float32, device=p.device))
            for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def step(self, learning_rate: float, grad_scale: Tensor | None = None) -> None:
        """Update every parameter that has a gradient, which is divided by the scalar `grad_scale` on the way."""
        for decays in (True, False):
            names = [n for n, p in self.parameters.items() if p.grad is not None and (p.dim() >= 2) is decays]
            if not names:
                continue
            first, second, steps = zip(*(self.moments[name] for name in names), strict=True)
            adamw(
                [self.parameters[name] for name in names],
                [self._gradient(name) for name in names],
                list(first),
                list(second),
                [],
                list(steps),
                fused=True,
                amsgrad=False,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                lr=learning_rate,
                weight_decay=self.config.weight_decay if decays else 0.0,
                eps=1e-8,
                maximize=False,
                grad_scale=grad_scale,
            )

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Named tensors that are the moments themselves: copying into them restores them."""
        kinds = ("exp_avg", "exp_avg_sq", "step")
        for name, tensors in self.moments.items():
            for kind, tensor in zip(kinds, tensors, strict=True):
                yield f"{name}/{kind}", tensor

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        assert gradient is not None
        return gradient
