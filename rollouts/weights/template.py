"""The shape of a model whose weights come later."""

from typing import Protocol

import torch
from torch import Tensor

from model.checkpoint import released_tensors
from model.config import SailVL2Config
from model.sail_vl2 import SailVL2


class ModelTemplate(Protocol):
    """All that a sampler is built from. A `SailVL2` is one; its weights are not looked at."""

    @property
    def config(self) -> SailVL2Config: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        """The device on which the trainer computes with the model."""
        ...


def template_tensors(template: ModelTemplate) -> dict[str, Tensor]:
    """Return released name -> tensor without memory (device "meta"), in the order in which a model gives them."""
    with torch.device("meta"):
        model = SailVL2(template.config).to(template.dtype)
    return released_tensors(model)
