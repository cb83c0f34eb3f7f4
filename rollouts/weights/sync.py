"""Bringing the policy's weights to the samplers, with proof that they arrived.

The trainer reads each tensor once: its checksum is made while it is sent, and the list of checksums (the manifest)
follows the last tensor. The sampler makes the checksums of what it then holds, and the two lists are compared.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from model.checkpoint import released_tensors
from model.sail_vl2 import SailVL2
from rollouts.rollout import RolloutWorker
from rollouts.weights.buffer import Place, place_of
from rollouts.weights.senders import WeightSender

W = TypeVar("W", bound=RolloutWorker)


def tensor_checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def streamed(
    version: int,
    tensors: Iterable[tuple[str, Tensor]],
    places: Mapping[str, Place],
    manifest: dict[str, int],
    on_host: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors on one by one and note the checksum of each in `manifest`.

    `on_host` passes copies in host memory on, so that a tensor leaves its GPU once. `ValueError` for a tensor that
    has no place; after the last one, `RuntimeError` names those of `places` that never came.
    """
    for name, tensor in tensors:
        place_of(name, tensor, places)
        host = tensor.detach().cpu()
        manifest[name] = tensor_checksum(host)
        yield name, host if on_host else tensor.detach()
    if missing := places.keys() - manifest.keys():
        raise RuntimeError(f"weight sync to version {version}: tensors never arrived: {sorted(missing)}")


def send(
    sender: WeightSender, version: int, tensors: Iterable[tuple[str, Tensor]], on_host: bool = True
) -> dict[str, int]:
    """Put all tensors of an update and return their checksums. For errors see `streamed`."""
    manifest: dict[str, int] = {}
    for name, tensor in streamed(version, tensors, sender.places, manifest, on_host):
        sender.put(name, tensor)
    return manifest


def sync_weights(worker: RolloutWorker, version: int, tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Send weights by released name to a sampler and check its proof; returns the version that now samples.

    A tensor may change or be freed as soon as the next one is drawn. `RuntimeError` names every tensor that never
    came, or whose bytes at the sampler differ from those that were sent.
    """
    proof = worker.load_weights(version, tensors)
    if proof.wrong:
        raise RuntimeError(f"weight sync to policy version {version}: other bytes on the worker for {proof.wrong}")
    return proof.version


def fill_worker(worker: W, model: SailVL2, version: int = 0) -> W:
    """Send a worker the present weights of a whole model, and return the worker."""
    sync_weights(worker, version, released_tensors(model).items())
    return worker
