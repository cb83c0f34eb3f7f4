"""Algorithms by name, and from a file of the user's."""

import importlib.util
import sys
from pathlib import Path

from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.config import ALGORITHM_CONFIGS, AlgorithmConfig, CispoConfig, CustomConfig
from rlhf.algorithms.losses import detached_clip_objective


class Cispo(Algorithm[CispoConfig]):
    """CISPO: the clipped ratio is a weight without gradient."""

    clips_any_sign = True
    advantage_scales_objective = True

    def objective(self, log_ratio: Tensor, policy_logprobs: Tensor, advantages: Tensor) -> Tensor:
        config = self.config
        return detached_clip_objective(log_ratio, policy_logprobs, advantages, config.clip_low, config.clip_high)


CLASSES: dict[str, type[Algorithm]] = {"cispo": Cispo}
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
