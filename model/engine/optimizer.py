"""AdamW over two groups: matrices decay, vectors do not.

The arithmetic is torch's functional AdamW (fused kernel). Its Optimizer class is not used because constructing one
imports the whole compiler, a second of every process, and because state by parameter name is what checkpoints keep.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from model.engine.config import OptimizerConfig


class AdamW:
    """State lives in `moments`: parameter name -> (first moment, second moment, step count)."""

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, device: torch.device | None = None
    ) -> None:
        """`device` is where moments are kept and weights updated; None: where each parameter is."""
        self.config = config
        self.parameters = dict(parameters)
        self._device = device
        self.moments = {name: self._fresh(parameter) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, grad_scale: Tensor | None = None) -> None:
        """Update every parameter that has a gradient, which is divided by the scalar `grad_scale` on the way."""
        for decays in (True, False):
            with_gradient = ((n, p) for n, p in self.parameters.items() if p.grad is not None and p.numel())
            names = [name for name, parameter in with_gradient if (parameter.dim() >= 2) is decays]
            # Elsewhere than the weights are, one at a time: the copies of all would take what was saved.
            for group in [names] if self._device is None else [[name] for name in names]:
                self._step_group(group, learning_rate, self.config.weight_decay if decays else 0.0, grad_scale)

    def _step_group(
        self, names: list[str], learning_rate: float, weight_decay: float, grad_scale: Tensor | None
    ) -> None:
        if not names:
            return
        first, second, steps = zip(*(self.moments[name] for name in names), strict=True)
        weights = [self._moved(self.parameters[name].detach()) for name in names]
        adamw(
            weights,
            [self._moved(self._gradient(name)) for name in names],
            list(first),
            list(second),
            [],
            list(steps),
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
            grad_scale=None if grad_scale is None else self._moved(grad_scale),
        )
        if self._device is not None:
            for name, weight in zip(names, weights, strict=True):
                self.parameters[name].copy_(weight)

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Named tensors that are the moments themselves: copying into them restores them."""
        kinds = ("exp_avg", "exp_avg_sq", "step")
        for name, tensors in self.moments.items():
            for kind, tensor in zip(kinds, tensors, strict=True):
                yield f"{name}/{kind}", tensor

    def _fresh(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        like = torch.zeros_like(parameter, requires_grad=False, device=self._device or parameter.device)
        return like, torch.zeros_like(like), torch.zeros((), dtype=torch.float32, device=like.device)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor if self._device is None else tensor.to(self._device)

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        assert gradient is not None
        return gradient
