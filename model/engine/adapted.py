"""Placing, scoring by and writing low-rank adapters: where an engine treats a model that has some differently."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from model.batch import ModelInputs
from model.engine.base import Scorer
from model.logprobs import TokenScores
from model.lora.adapters import KeptAdapters, adapters_of
from model.lora.merge import Gather, whole
from model.lora.peft_files import write_adapters
from model.sail_vl2 import SailVL2

ADAPTER_SUFFIX = "_adapter"
"""End of the name of the folder with adapters that stands beside the folder of a model."""


def place(
    model: SailVL2,
    device: torch.device,
    dtype: torch.dtype,
    own_dtype: torch.dtype = torch.float32,
    lies_together: bool = True,
) -> None:
    """Move the weights, which do not train, to the device in the dtype that computes; adapters are of `own_dtype`.

    Weights that meet the same input are laid together, so each such set is one product. Frozen ones can be.
    """
    adapters = adapters_of(model)
    own = [matrix for adapter in adapters for matrix in (adapter.a, adapter.b)]
    kept = [matrix.detach().to(device, own_dtype) for matrix in own]
    model.requires_grad_(False).to(device, dtype)
    for matrix, values in zip(own, kept, strict=True):
        matrix.data = values
    if lies_together:
        model.lay_side_by_side()


class AdaptedReference:
    """`Scorer` by the adapters that the model has now, whatever they become: no second model.

    Fresh adapters change nothing, so that the reference of a run that starts from a model is this model.
    """

    def __init__(self, scorer: Scorer, model: nn.Module) -> None:
        self._scorer = scorer
        self._kept = KeptAdapters(model)

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        with self._kept.in_place():
            return self._scorer.logprobs(batches)


def rank_and_scale(model: nn.Module) -> tuple[int, float]:
    """Those of all adapters of the model."""
    first = adapters_of(model)[0]
    return first.a.shape[-2], first.scale


def export_adapters(folder: Path, model: nn.Module, gather: Gather = whole) -> None:
    """Write the adapters in PEFT's format beside the folder of the merged model, to `FOLDER_adapter`."""
    rank, scale = rank_and_scale(model)
    write_adapters(folder.with_name(folder.name + ADAPTER_SUFFIX), model, rank, scale * rank, gather)


def described(model: SailVL2, trained: int, total: int) -> str:
    """Say how many of the parameters are adapters that train."""
    rank, _ = rank_and_scale(model)
    return (
        f"{trained:,} of them ({trained / total:.3%}) in {len(adapters_of(model))} trained adapters of rank {rank}; "
        f"the others stay as they are, in {str(model.dtype).removeprefix('torch.')}"
    )
