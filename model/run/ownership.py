"""Which files of a run's folder are the run's own. Nothing else there is ever cut or deleted."""

import os
import re
import shutil
import sys
from pathlib import Path

from model.run.durable import STAGING_SUFFIX, refuse_foreign_files
from model.run.manifest import MANIFEST, DamagedFolder, Manifest

METRICS = "metrics.jsonl"
LOGS = (METRICS, "ledger.jsonl", "skipped.jsonl", "evaluations.jsonl")
# In the order in which a fresh start deletes them: what would make a half-deleted run look alive goes first.
_OWN = (
    "done.json",
    "checkpoints/step_????????",
    "checkpoints/step_????????.rejected*",
    "final",
    "best",
    *LOGS[1:],
    "bad_rows.jsonl",
    "bad_rows_*.jsonl",
    "rollouts/step_??????.jsonl",
    "media/*",
    "events/events.out.tfevents.*",
    METRICS,
    "config.yaml",
)
_MEDIA_NAME = re.compile(r"[0-9a-f]{64}\.\w+")


def clear_run(folder: Path) -> None:
    """Delete what runs wrote into their folder. `ValueError`, before anything is touched, where a model's folder holds
    files that no run wrote."""
    for name in ("final", "best"):
        refuse_foreign_files(folder / name)
    for pattern in _OWN:
        for path in sorted(folder.glob(pattern)):
            if path.parent.name == "media" and not _MEDIA_NAME.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                delete_written(path)
            else:
                path.unlink(missing_ok=True)
    delete_leftovers(folder)
    for name in ("checkpoints", "rollouts", "media", "events"):
        _delete_if_empty(folder / name)


def delete_leftovers(folder: Path) -> None:
    """Delete what a process that was killed had not finished writing."""
    for pattern in ("*", "checkpoints/*", "rollouts/*", "media/*"):
        for leftover in folder.glob(f"{pattern}{STAGING_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def delete_written(folder: Path) -> None:
    """Delete a folder that was written with a manifest: the files that it lists, and the folder if nothing is left.

    One without a readable manifest was never finished, or is damaged; it goes as a whole.
    """
    try:
        names = list(Manifest.read(folder).entries)
    except DamagedFolder:
        shutil.rmtree(folder)
        return
    for name in [*names, MANIFEST]:
        (folder / name).unlink(missing_ok=True)
    if not _delete_if_empty(folder):
        left = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        os.replace(folder, kept := free_name(folder.with_name(f"{folder.name}.kept")))
        print(f"{kept}: holds {left}, which no run wrote; the rest of it is deleted", file=sys.stderr)


def free_name(path: Path) -> Path:
    """`path`, or with a number behind it the first that does not exist."""
    names = [path, *(path.with_name(f"{path.name}{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _delete_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
