"""Algorithms by name, and from a file of the user's."""

import importlib.util
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.config import (
    ALGORITHM_CONFIGS,
    AlgorithmConfig,
    CispoConfig,
    ClipCovConfig,
    CustomConfig,
    GmpoConfig,
    KlCovConfig,
    SapoConfig,
)
from rlhf.algorithms.losses import (
    MAX_LOG_RATIO,
    detached_clip_objective,
    gated_objective,
    geometric_objective,
    token_covariances,
)
from rlhf.trajectory import PolicyBatch


class Cispo(Algorithm[CispoConfig]):
    """CISPO: the clipped ratio is a weight without gradient."""

    clips_any_sign = True
    advantage_scales_objective = True

    def objective(self, log_ratio: Tensor, policy_logprobs: Tensor, advantages: Tensor) -> Tensor:
        config = self.config
        return detached_clip_objective(log_ratio, policy_logprobs, advantages, config.clip_low, config.clip_high)


class Sapo(Algorithm[SapoConfig]):
    """SAPO: a gate fades the gradient of tokens whose ratio is far from 1."""

    advantage_scales_objective = True

    def objective(self, log_ratio: Tensor, policy_logprobs: Tensor, advantages: Tensor) -> Tensor:
        return gated_objective(log_ratio, advantages, self.config.gate.positive, self.config.gate.negative)


class Gmpo(Algorithm[GmpoConfig]):
    """GMPO: one ratio for a sequence, the geometric mean of its tokens' clipped ones."""

    advantage_scales_objective = True

    def token_objective(self, log_ratio: Tensor, policy_logprobs: Tensor, batch: PolicyBatch) -> Tensor:
        config = self.config
        return geometric_objective(
            log_ratio, batch.advantages, batch.loss_mask, batch.sequence, config.clip_low, config.clip_high
        )


class ClipCov(Algorithm[ClipCovConfig]):
    """Clip-Cov: the chosen tokens lose their gradient."""

    def token_objective(self, log_ratio: Tensor, policy_logprobs: Tensor, batch: PolicyBatch) -> Tensor:
        config = self.config.covariance
        objective = self.objective(log_ratio, policy_logprobs, batch.advantages)
        covariances = token_covariances(policy_logprobs, batch.advantages, batch.loss_mask)
        inside = (covariances > config.least) & (covariances < config.most)
        # The ratio's clip takes the gradient of these tokens already, so that none of the few is spent on them.
        upwards, low, high = batch.advantages > 0, 1.0 - self.config.clip_low, 1.0 + self.config.clip_high
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        inside &= ~torch.where(upwards, ratio > high, (batch.advantages < 0) & (ratio < low))
        places = inside.nonzero()[:, 0]
        count = max(1, int(config.share * int(batch.loss_mask.sum())))
        # Which of them are chosen is drawn by a generator that the batch itself seeds, so that it is drawn again alike.
        seed = zlib.crc32(batch.rollout_logprobs.detach().float().cpu().numpy().tobytes())
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).to(places.device)
        keeps = torch.ones_like(inside)
        keeps[places[order[:count]]] = False
        return torch.where(keeps, objective, 0.0)


class KlCov(Algorithm[KlCovConfig]):
    """KL-Cov: the chosen tokens are held near the old policy."""

    def token_objective(self, log_ratio: Tensor, policy_logprobs: Tensor, batch: PolicyBatch) -> Tensor:
        config = self.config.covariance
        objective = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * batch.advantages
        covariances = token_covariances(policy_logprobs, batch.advantages, batch.loss_mask)
        count = min(max(1, int(config.share * int(batch.loss_mask.sum()))), int(batch.loss_mask.sum()))
        held = torch.zeros_like(batch.loss_mask)
        held[covariances.topk(count).indices] = True
        return objective - torch.where(held, config.strength * log_ratio.abs(), 0.0)


CLASSES: dict[str, type[Algorithm]] = {
    "cispo": Cispo,
    "sapo": Sapo,
    "gmpo": Gmpo,
    "clip_cov": ClipCov,
    "kl_cov": KlCov,
}
"""Classes of the bundles that are more than their config."""


def build_algorithm(config: AlgorithmConfig, max_completion_tokens: int) -> Algorithm:
    """The algorithm of a config. `ValueError` names the known ones, or what is wrong with a file."""
    if isinstance(config, CustomConfig):
        return load_class(config.name)(config, max_completion_tokens)
    if config.name not in ALGORITHM_CONFIGS:
        raise ValueError(f"algorithm.name: expected one of {sorted(ALGORITHM_CONFIGS)}, found {config.name!r}")
    return CLASSES.get(config.name, Algorithm)(config, max_completion_tokens)


def load_class(spec: str) -> type[Algorithm]:
    """The subclass of `Algorithm` that FILE.py:CLASS names. `ValueError` if it cannot be had; the file is executed."""
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"algorithm.name: expected a file at {path}, found none")
    module_spec = importlib.util.spec_from_file_location(f"custom_algorithm_{Path(path).stem}", path)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses in the file look themselves up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"algorithm.name: {path} does not load: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, Algorithm):
        raise ValueError(f"algorithm.name: expected {name} in {path} to be a subclass of Algorithm, found {found!r}")
    return found
