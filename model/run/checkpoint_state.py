"""The file of a checkpoint that says where the run stood, and what else lies in the folder."""

import json
from pathlib import Path

from model.json_values import read_json_object
from model.run.manifest import DamagedFolder, Digests, Manifest
from model.run.state import State

STATE = "state.json"


def state_bytes(whole: State, digests: Digests) -> bytes:
    """Content of the file with a checkpoint's state, which also lists the engine's files."""
    return json.dumps({**whole, "files": sorted(digests)}).encode()


def verified_state(folder: Path) -> State:
    """The state of a checkpoint whose files are all as they were written. `DamagedFolder` otherwise."""
    manifest = Manifest.read(folder)
    manifest.require([STATE])
    manifest.verify()
    try:
        state = read_json_object(folder / STATE)
        files, step, counts = state["files"], int(state["step"]), state["logs"]
        if not isinstance(files, list) or not isinstance(counts, dict):
            raise ValueError("files that are no list, or logs that are no numbers of lines")
        if not all(isinstance(name, str) for name in files) or not all(isinstance(n, int) for n in counts.values()):
            raise ValueError("files that are no names, or logs that are no numbers of lines")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFolder(
            f"{folder / STATE}: expected step, files and logs as this version writes them, found: {error!r}"
        ) from None
    manifest.require(files)
    if folder.name != f"step_{step:08d}":
        raise DamagedFolder(f"{folder / STATE}: expected the state of {folder.name}, found that of step {step}")
    return state
