"""The inputs of an RL run beside its rows, with checksums: the start model and the sources of the user's functions."""

import importlib.metadata
import importlib.util
from pathlib import Path

from model.run.identity import Input, digest_of_files, input_of
from rewards.custom import ENTRY_POINTS
from rlhf.config import RlConfig


def inputs_of(config: RlConfig) -> dict[str, Input]:
    """By the key of the config. Modules that a reward function imports on its own are not looked into."""
    found = {"checkpoint": input_of(Path(config.checkpoint))}
    functions = [*config.reward.functions, config.algorithm.name]
    sources = [source for spec in functions if (source := _source_of(spec)) is not None]
    if sources:
        names = ", ".join(str(source) for source in sources)
        found["reward.functions"] = Input(names, digest_of_files(sources))
    return found


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
