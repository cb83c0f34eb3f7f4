"""The names that library users import: `from sailvl2_rl import load, sample, score`. docs/api.md describes them.

Importing this package imports nothing else: a name is looked up in its room when it is first used. transformers' Auto
classes learn of our folders by `register()`, and only then.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.checkpoint import save_model as save
    from model.interface import Mode
    from model.processing.processor import Processor
    from rewards.config import RewardConfig
    from rewards.result import RewardInput, RewardResult, Unscorable
    from rewards.rubric import Rubric
    from sailvl2_rl.judging import reward_input, score, verify
    from sailvl2_rl.sampling import Completion, load, sample, sample_batch

    __version__: str

__all__ = [
    "Completion",
    "Mode",
    "Processor",
    "RewardConfig",
    "RewardInput",
    "RewardResult",
    "Rubric",
    "Unscorable",
    "__version__",
    "load",
    "register",
    "reward_input",
    "sample",
    "sample_batch",
    "save",
    "score",
    "verify",
]

_HOMES = {
    "Completion": "sailvl2_rl.sampling:Completion",
    "Mode": "model.interface:Mode",
    "Processor": "model.processing.processor:Processor",
    "RewardConfig": "rewards.config:RewardConfig",
    "RewardInput": "rewards.result:RewardInput",
    "RewardResult": "rewards.result:RewardResult",
    "Rubric": "rewards.rubric:Rubric",
    "Unscorable": "rewards.result:Unscorable",
    "load": "sailvl2_rl.sampling:load",
    "reward_input": "sailvl2_rl.judging:reward_input",
    "sample": "sailvl2_rl.sampling:sample",
    "sample_batch": "sailvl2_rl.sampling:sample_batch",
    "save": "model.checkpoint:save_model",
    "score": "sailvl2_rl.judging:score",
    "verify": "sailvl2_rl.judging:verify",
}
"""Name -> the module that defines it, and what it is called there."""


def register() -> None:
    """Make transformers' Auto classes and pipelines know SAIL-VL2 folders. It needs the extra `hf`."""
    importlib.import_module("model.hf")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'sailvl2_rl' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, original = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(module), original)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sailvl2-rl")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0+unknown"
