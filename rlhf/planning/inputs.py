"""The inputs of an RL run beside its rows, with checksums: the start model and the sources of the user's functions.

This module imports no torch, so that an evaluation that is there already is read at once.
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from model.run.identity import Input, input_of
from rewards.config import RewardConfig
from rewards.custom import ENTRY_POINTS
from rlhf.config import RlConfig


def inputs_of(config: RlConfig) -> dict[str, Input]:
    """By the key of the config. Modules that a function imports on its own are not looked into."""
    from model.lora.start import inputs_of as adapter_inputs

    found = {"checkpoint": input_of(Path(config.checkpoint)), **adapter_inputs(config.adapter)}
    functions = [*config.reward.functions, *config.reward.answer_functions]
    for key, specs in (("reward.functions", functions), ("algorithm.name", [config.algorithm.name])):
        if sources := [(spec, _source_of(spec)) for spec in specs if key == "reward.functions" or ":" in spec]:
            found[key] = _code_of(sources)
    return found


def digest_of_functions(config: RewardConfig) -> str:
    """A checksum over the user's reward functions, those that judge answers too; empty without any."""
    sources = [(spec, _source_of(spec)) for spec in [*config.functions, *config.answer_functions]]
    return _code_of(sources).sha256 if sources else ""


def known_inputs(config: RlConfig) -> dict[str, Input]:
    """Those inputs of a run that can be had without opening its data."""
    from model.data.sources import input_of_tables

    tables = {"prompts": config.prompts, "evaluation.prompts": config.evaluation.prompts}
    return {**inputs_of(config), **input_of_tables(tables)}


def _code_of(sources: Sequence[tuple[str, Path | None]]) -> Input:
    """Functions by name, with the content of the files that they stand in; where the files lie is no part of it."""
    total = hashlib.sha256()
    for spec, file in sources:
        place, _, name = spec.rpartition(":")
        total.update(f"{Path(place).name}:{name}\0".encode())
        total.update(input_of(file).sha256.encode() if file else b"")
    return Input(", ".join(str(file or spec) for spec, file in sources), total.hexdigest())


def _source_of(spec: str) -> Path | None:
    """The file of `FILE.py:NAME`, `package.module:NAME` or an entry point; None where there is none to read."""
    place, colon, _ = spec.rpartition(":")
    if not colon:
        points = [point for point in importlib.metadata.entry_points(group=ENTRY_POINTS) if point.name == spec]
        if not points:
            return None
        place = points[0].module
    if place.endswith(".py"):
        return Path(place) if Path(place).is_file() else None
    try:
        module = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return None
    return Path(module.origin) if module and module.origin and Path(module.origin).is_file() else None
