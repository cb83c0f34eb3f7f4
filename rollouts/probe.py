"""How a model sees a prompt, stage by stage. Where two models differ first is why their log-probabilities differ."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import released_tensors
from model.engine.base import TrainEngine
from model.sail_vl2 import SailVL2
from rollouts.rollout import RolloutRequest
from rollouts.weights.sync import tensor_checksum

Probe = dict[str, Tensor]
"""Stage -> values on CPU. Stages are `ids`, `pixels.N`, `dtype` (an empty tensor of it), `weights.NAME` (a checksum),
`visual.N` [tokens, D] and `embeddings`."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference of two implementations of the same sums, as a share of the largest value."""


@torch.no_grad()
def probe_model(model: SailVL2, request: RolloutRequest, placeholder_id: int) -> Probe:
    """Return every stage of our own model."""
    images = [image.to(model.device) for image in request.pixels]
    inputs = pack_rows([Row(request.prompt_ids, [], request.pixels)], placeholder_id, model.config.pixels_per_token)
    visual = [model.visual_tokens([image.to(model.dtype)])[0].flatten(0, 1) for image in images]
    return {
        **probe_inputs(request.prompt_ids, request.pixels),
        **probe_weights(released_tensors(model), model.dtype),
        **{f"visual.{number}": tokens.cpu() for number, tokens in enumerate(visual)},
        "embeddings": model.embed(inputs.to(model.device)).cpu(),
    }


def probe_engine(engine: TrainEngine, request: RolloutRequest, placeholder_id: int, pixels_per_token: int) -> Probe:
    """Return every stage of the model that an engine trains."""
    pixels = request.pixels
    inputs = pack_rows([Row(request.prompt_ids, [], pixels)], placeholder_id, pixels_per_token)
    embeddings = engine.embeddings(inputs).cpu()
    sums, dtype = {}, embeddings.dtype
    for name, tensor in engine.weights():
        sums[f"weights.{name}"], dtype = torch.tensor(tensor_checksum(tensor)), tensor.dtype
    lengths = [image[:, 0].numel() // pixels_per_token**2 for image in pixels]
    visual = embeddings[inputs.token_ids == placeholder_id].split(lengths) if lengths else ()
    return {
        **probe_inputs(request.prompt_ids, pixels),
        "dtype": torch.empty(0, dtype=dtype),
        **sums,
        **{f"visual.{number}": tokens for number, tokens in enumerate(visual)},
        "embeddings": embeddings,
    }


def probe_inputs(ids: Sequence[int], images: Sequence[Tensor]) -> Probe:
    return {"ids": torch.tensor(ids), **{f"pixels.{number}": image.cpu() for number, image in enumerate(images)}}


def probe_weights(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Probe:
    sums = {f"weights.{name}": torch.tensor(tensor_checksum(tensor)) for name, tensor in tensors.items()}
    return {"dtype": torch.empty(0, dtype=dtype), **sums}


def first_difference(ours: Probe, theirs: Probe) -> str:
    """Say at which stage they differ first beyond rounding, and by how much; empty if they agree.

    Stages that one of them lacks are passed over.
    """
    for name, mine in ours.items():
        other = theirs.get(name)
        if other is None:
            continue
        if name == "dtype":
            if mine.dtype != other.dtype:
                return f"dtype: {mine.dtype} (trainer) and {other.dtype} (sampler)"
            continue
        if mine.shape != other.shape:
            return f"{name}: shapes {list(mine.shape)} (trainer) and {list(other.shape)} (sampler)"
        if name.startswith(("ids", "weights")):
            if not torch.equal(mine, other):
                return f"{name}: other {'ids' if name == 'ids' else 'bytes'}"
            continue
        difference = float((mine.float() - other.float()).abs().max()) if mine.numel() else 0.0
        coarser = torch.bfloat16 if torch.bfloat16 in (mine.dtype, other.dtype) else torch.float32
        limit = 0.0 if name.startswith("pixels") else _TOLERANCE[coarser] * float(mine.float().abs().max())
        if not difference <= limit:
            return f"{name}: largest difference {difference:.3g}"
    return ""


def cause_of(difference: str) -> str:
    """Return the kind of cause behind a first difference."""
    stage = difference.partition(":")[0].partition(".")[0]
    return "embeddings" if stage == "visual" else stage
