"""Which files of a run's folder are the run's own. Nothing else there is ever cut or deleted."""

import os
import re
import shutil
from pathlib import Path

from model.run.durable import OLD_SUFFIX, STAGING_SUFFIX, delete_if_empty, delete_written, refuse_foreign_files

METRICS = "metrics.jsonl"
LOGS = (METRICS, "ledger.jsonl", "skipped.jsonl", "evaluations.jsonl", "adalrs.jsonl")
MODELS = ("final", "final_adapter", "best", "best_adapter", "last")
"""Folders of models, and of the adapters that a run with `adapter=lora` trained. `last` holds the last model of a run
where a gate of a pipeline put the best one into `final`."""
# In the order in which a fresh start deletes them: what would make a half-deleted run look alive goes first.
_OWN = (
    "done.json",
    "checkpoints/step_????????",
    "checkpoints/step_????????.rejected*",
    "exports/step_????????",
    "exports/step_????????_adapter",
    *MODELS,
    *LOGS[1:],
    "adalrs.png",
    "bad_rows.jsonl",
    "bad_rows_*.jsonl",
    "rollouts/step_??????.jsonl",
    "media/*",
    "events/rollouts/events.out.tfevents.*",
    "events/events.out.tfevents.*",
    "events.jsonl",
    "report.html",
    METRICS,
    "config.yaml",
)
_DATA = (
    "prompts.jsonl",
    "unfiltered.jsonl",
    "demonstrations.jsonl",
    "dropped.jsonl",
    "summary.json",
    "bad_rows.jsonl",
    "bad_rows_*.jsonl",
    "samples/*.jsonl",
    "replies/*.json",
)
"""The files of a folder that a maker of data wrote, its media apart."""
_MEDIA_NAME = re.compile(r"[0-9a-f]{64}\.\w+")


def clear_run(folder: Path) -> None:
    """Delete what runs wrote into their folder. `ValueError`, before anything is touched, where a model's folder holds
    files that no run wrote."""
    for name in MODELS:
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
    for name in ("checkpoints", "exports", "rollouts", "media", "events/rollouts", "events"):
        delete_if_empty(folder / name)


def clear_data(folder: Path) -> None:
    """Delete what a maker of data wrote into its folder, and the folder if nothing else is in it."""
    for pattern in _DATA:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    clear_media(folder / "media")
    delete_leftovers(folder)
    for name in ("samples", "replies", ""):
        delete_if_empty(folder / name)


def clear_media(folder: Path) -> None:
    """Delete images that came as bytes and were written to a folder, and the folder if nothing else is in it."""
    for path in folder.glob("*"):
        if _MEDIA_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    delete_if_empty(folder)


def holds_nothing(folder: Path, mark: str) -> bool:
    """Whether a folder is absent or empty, or holds only what a refused run left."""
    if not folder.is_dir():
        return True
    names = [path.name for path in folder.iterdir()]
    return all(name in (mark, ".lock") or name.startswith("bad_rows") for name in names)


def clear_refused(folder: Path, mark: str) -> None:
    """Delete what a run wrote that was refused before its first step, and the folder. The list of the rows that cannot
    be used stays where there is one, in a folder that is marked as a run's."""
    reports = {path: path.read_bytes() for path in folder.glob("bad_rows*.jsonl")}
    clear_run(folder)
    if reports:
        for path, content in reports.items():
            path.write_bytes(content)
        return
    for name in (mark, ".lock"):
        (folder / name).unlink(missing_ok=True)
    delete_if_empty(folder)


def delete_leftovers(folder: Path) -> None:
    """Delete what a process that was killed had not finished writing. A folder whose place was to be taken is put back
    where nothing has taken it."""
    for old in folder.glob(f"*{OLD_SUFFIX}"):
        if not (place := old.with_name(old.name.removesuffix(OLD_SUFFIX))).exists():
            os.replace(old, place)
        else:
            delete_written(old, place)
    for pattern in ("*", "checkpoints/*", "exports/*", "rollouts/*", "media/*"):
        for leftover in folder.glob(f"{pattern}{STAGING_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
