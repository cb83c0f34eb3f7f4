"""State of a run's parts in a checkpoint: each part has a named section, and nobody reads another's."""

from collections.abc import Mapping
from typing import Any, Protocol

State = dict[str, Any]
"""JSON data."""


class Stateful(Protocol):
    """A part of a run with state of its own."""

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        ...

    def restore(self, state: State) -> None:
        """Go on from it."""
        ...


def sections_of(step: int, parts: Mapping[str, Stateful]) -> State:
    """The state of a run after `step` steps: a section for each part."""
    return {"step": step, **{name: part.state() for name, part in parts.items()}}


def restore_sections(state: State, parts: Mapping[str, Stateful]) -> None:
    """Give every part its section. `ValueError` names one that is missing."""
    for name, part in parts.items():
        if name not in state:
            raise ValueError(
                f"resume: state.json: expected the sections {', '.join(parts)}, found {', '.join(state)}; another "
                "version wrote the checkpoint: start anew with run.start=fresh"
            )
        part.restore(state[name])
