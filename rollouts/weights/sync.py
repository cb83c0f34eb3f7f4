"""Bringing the policy's weights to the sampler, with proof that they arrived."""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from rollouts.rollout import RolloutWorker


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def sync_weights(publish: Callable[[], tuple[int, dict[str, Tensor]]], worker: RolloutWorker) -> int:
    """Send the weights that `publish` gives (policy version, tensors by name); returns the version now sampling.

    `RuntimeError` naming every tensor whose checksum on the worker differs from the one sent.
    """
    version, tensors = publish()
    manifest = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
    worker.begin_update(version, manifest)
    for name, tensor in tensors.items():
        worker.load(name, tensor)
    proof = worker.finish_update(version)
    wrong = sorted(name for name in manifest if proof.get(name) != manifest[name])
    if wrong:
        raise RuntimeError(f"weight sync to policy version {version}: other bytes on the worker for {wrong}")
    return version
