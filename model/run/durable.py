"""Folders that appear whole or not at all: staged, checksummed, fsynced, renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from model.run.failpoints import bytes_until_kill, reach

MANIFEST = "manifest.json"
STAGING_SUFFIX = ".partial"


def write_folder(folder: Path, files: Mapping[str, bytes | Callable[[], bytes]]) -> None:
    """Write `files` so that `folder` either holds all of them with a manifest, or does not exist.

    Every file and folder is fsynced before the rename that publishes it. A large content may be a function that makes
    it when its turn comes.
    """
    staging = folder.with_name(folder.name + STAGING_SUFFIX)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    reach("save.begin")
    manifest = {}
    for name, source in files.items():
        content = source if isinstance(source, bytes) else source()
        _write_durably(staging / name, content)
        reach("save.file")
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _write_durably(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync(staging)
    reach("save.before_rename")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(staging, folder)
    reach("save.after_rename")
    _sync(folder.parent)


def verify_folder(folder: Path) -> str:
    """Empty when every file matches the manifest, otherwise what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is missing or unreadable: {error}"
    for name, (size, digest) in entries.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            return f"{name}: {error}"
        if len(content) != size:
            return f"{name}: expected {size} bytes, found {len(content)}"
        if hashlib.sha256(content).hexdigest() != digest:
            return f"{name}: bytes differ from the checksum in {MANIFEST}"
    return ""


def write_file(path: Path, content: bytes) -> None:
    """Replace one file so that a reader sees the old or the new content, never a part."""
    staging = path.with_name(path.name + STAGING_SUFFIX)
    _write_durably(staging, content)
    os.replace(staging, path)
    _sync(path.parent)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        left = bytes_until_kill()
        if left is not None and left < len(content):
            file.write(content[:left])
            file.flush()
            reach("bytes", len(content))
        reach("bytes", len(content))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
