"""JSON data as Python has it."""

import json
import stat
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

Choice = TypeVar("Choice", bound=Enum)
JsonObject = dict[str, Any]
"""An object that was read from JSON, or can be written as it: text keys, and values of any kind that JSON has."""


def member(kind: type[Choice], given: Choice | str, name: str) -> Choice:
    """The member of an enum that is meant, by itself or by its value. `ValueError`, with the name of the field, for
    anything else: compared with `is`, a text would be no member at all, without a word."""
    for one in kind:
        if given is one or given == one.value:
            return one
    raise ValueError(f"{name}: expected {' or '.join(str(one.value) for one in kind)}, found {given!r:.80}")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text spells. `ValueError` for one that is damaged, no UTF-8, or nested too deeply.

    `json.loads` answers text that is nested 100,000 deep with a `RecursionError`, which ends a program.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def refuse_special_file(path: Path) -> None:
    """`OSError` for a named pipe, a device or a socket, whose opening would wait for ever; and for a missing file."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path} is a pipe or a device, not a file")


def read_json_object(path: Path) -> JsonObject:
    """The JSON object of a file. `ValueError` names the file; `OSError` where it cannot be read, or is a pipe."""
    refuse_special_file(path)
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object, found: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def read_json_config(folder: Path) -> JsonObject:
    """`folder/config.json` of any model. `ValueError` if it is missing or no JSON object."""
    path = Path(folder) / "config.json"
    try:
        return read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder}: expected a checkpoint folder, found no config.json; {_where_the_model_is(Path(folder))}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read, found: {error}") from None


def _where_the_model_is(folder: Path) -> str:
    """Return advice for a folder without config.json."""
    for final in (folder / "final", folder.parent.parent / "final"):
        if (final / "config.json").is_file():
            return f"this folder belongs to a run, whose model is {final}"
    if (folder / "adapter_config.json").is_file():
        return (
            "this folder holds adapters alone; add them to their model first: python -m model.export checkpoint=MODEL "
            f"adapter={folder} out=DIR"
        )
    if (folder / "run.json").is_file() or (folder / "engine.json").is_file():
        return "this folder belongs to a run, which writes its model to RUN/final when it ends"
    return "give the folder that holds config.json and *.safetensors"
