"""JSON data as Python has it."""

import json
import stat
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]
"""An object that was read from JSON, or can be written as it: text keys, and values of any kind that JSON has."""


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
