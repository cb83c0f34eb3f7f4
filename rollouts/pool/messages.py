"""Messages between the trainer and its sampler processes.

The trainer sends one `StartMessage`, then lists of messages. A sampler answers each list with a list that ends with
`Done`, or with `Failed` instead of a list when it ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from model.config import SailVL2Config
from model.processing.processor import Processor
from rollouts.config import RolloutConfig
from rollouts.probe import Probe
from rollouts.rollout import Rollout, RolloutRequest
from rollouts.weights.handles import TensorHandle


@dataclass(frozen=True)
class StartMessage:
    """Says what a sampler samples with. Its weights come with the first `Update`."""

    model_config: SailVL2Config
    processor: Processor
    config: RolloutConfig
    run_seed: int
    dtype: torch.dtype
    returns_routes: bool = False  # whether requests may ask for the experts of every token


@dataclass(frozen=True)
class Generate:
    """Asks for the completions of some requests."""

    requests: Sequence[tuple[int, RolloutRequest]]  # pairs of the pool's handle and the request


@dataclass(frozen=True)
class Abort:
    """Takes a request back."""

    handle: int


@dataclass(frozen=True)
class Update:
    """Brings new weights. The answer is `Updated`, or `Missed` if the handle was lost."""

    version: int
    manifest: Mapping[str, int]  # checksums of the tensors that were sent, by released name
    tensor_handle: TensorHandle


@dataclass(frozen=True)
class ProbePrompt:
    """Asks how the sampler sees a prompt, stage by stage. The answer is `Probed`."""

    request: RolloutRequest


Message = Generate | Abort | Update | ProbePrompt


@dataclass(frozen=True)
class Done:
    """Brings the groups that were completed since the last answer."""

    groups: list[tuple[int, list[Rollout]]]  # pairs of the pool's handle and the completions
    num_open: int  # groups that the sampler still works on


@dataclass(frozen=True)
class Updated:
    """Says which weights the sampler now holds."""

    version: int
    checksums: dict[str, int]  # made of the tensors as the sampler holds them, by released name


@dataclass(frozen=True)
class Missed:
    """Says that an update's tensors did not come; the sampler is as it was."""

    version: int


@dataclass(frozen=True)
class Probed:
    """Brings what a sampler makes of a prompt; empty if the probe failed."""

    probe: Probe


@dataclass(frozen=True)
class Failed:
    """Says why a sampler process ends."""

    traceback: str


Answer = Done | Updated | Missed | Probed
