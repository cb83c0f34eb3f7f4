"""The protocol of an evaluation as one id: figures of different ids must not be compared as if they were of one.

The id is a hash of all that decides a figure beside the weights: the data, the wording, how an answer is found and
judged, sampling, how images are prepared, and the version of the code that does this.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model.json_values import JsonObject
from rlhf.config import EvaluationMode
from rollouts.config import RolloutConfig

LENGTH = 12
"""Hexadecimal digits of an id."""
_CODE = (
    "model/data", "model/processing", "rewards", "rlhf/evaluation", "rlhf/prompts.py", "rollouts/sampling.py",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that the figure of a data set depends on, beside the weights."""

    data: str  # checksum of the table
    prompt: JsonObject  # wording, and the thinking instruction
    extraction: JsonObject  # how an answer is found and compared
    judge: JsonObject  # name of the judge and the checksum of its prompt; empty without one
    sampling: JsonObject
    images: JsonObject  # how images are prepared
    code: str  # version of the toolkit, and a checksum of the modules that decide a figure

    @property
    def id(self) -> str:
        """The id: the first digits of a SHA-256."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]

    def to_json(self) -> JsonObject:
        return {"id": self.id, **dataclasses.asdict(self)}


def sampling_of(mode: EvaluationMode, rollouts: RolloutConfig, num_samples: int, seed: int) -> JsonObject:
    """The settings of sampling that change what is sampled. A greedy answer depends on no temperature and no seed."""
    limits = {
        "max_prompt_tokens": rollouts.max_prompt_tokens,
        "max_completion_tokens": rollouts.max_completion_tokens,
    }
    if not mode.is_sampled:
        return {"mode": mode.value, "greedy": True, **limits}
    sampled = {"temperature": rollouts.temperature, "num_samples": num_samples, "seed": seed}
    return {"mode": mode.value, **sampled, **limits}


def differences(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Name the parts in which two protocols differ, with both values."""
    found = []
    for name in sorted((one.keys() | other.keys()) - {"id"}):
        here, there = one.get(name), other.get(name)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            keys = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
            found += [f"{name}.{key}: {_short(here.get(key))} and {_short(there.get(key))}" for key in keys]
        else:
            found.append(f"{name}: {_short(here)} and {_short(there)}")
    return found


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def code_version() -> str:
    """The toolkit's version, and a checksum of the modules that decide a figure."""
    root = Path(__file__).resolve().parents[2]
    total = hashlib.sha256()
    for place in _CODE:
        path = root / place
        for file in sorted((*path.rglob("*.py"), *path.rglob("*.yaml"))) if path.is_dir() else [path]:
            total.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\n")
    try:
        number = version("sailvl2-rl")
    except PackageNotFoundError:
        number = "unknown"
    return f"{number} {total.hexdigest()[:LENGTH]}"
