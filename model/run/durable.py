"""Folders that appear whole or not at all: staged, checksummed, fsynced, renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from model.run.failpoints import bytes_until_kill, reach

MANIFEST = "manifest.json"
STAGING_SUFFIX = ".partial"
_CHUNK = 1 << 22


class FileDigest(NamedTuple):
    """Size and checksum of a file, taken while it was written."""

    num_bytes: int
    sha256: str


Digests = Mapping[str, FileDigest]
"""File name -> its digest."""


def write_folder(
    folder: Path, files: Mapping[str, bytes], fill: Callable[[Path], Digests] = lambda staging: {}
) -> None:
    """Write a folder that either holds everything with a manifest, or does not exist.

    `fill(staging)` writes its files by `write_stream` first and returns their digests; then `files` are written. Every
    file and folder is fsynced before the rename that publishes it.
    """
    staging = folder.with_name(folder.name + STAGING_SUFFIX)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    reach("save.begin")
    digests = dict(fill(staging))
    digests |= {name: write_stream(staging / name, [content]) for name, content in files.items()}
    manifest = {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in digests.items()}
    _write_durably(staging / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    _sync(staging)
    reach("save.before_rename")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(staging, folder)
    reach("save.after_rename")
    _sync(folder.parent)


def write_stream(path: Path, chunks: Iterable[bytes | memoryview]) -> FileDigest:
    """Write one file of a folder in staging, chunk by chunk, and fsync it."""
    digest = _write_durably(path, chunks)
    reach("save.file")
    return digest


def copy_folder(source: Path, folder: Path) -> None:
    """Copy the files that `source`'s manifest lists; `folder` then holds all of them, or is as it was."""
    names = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    write_folder(folder, {}, lambda staging: {name: _copy_file(source / name, staging / name) for name in names})


def _copy_file(source: Path, target: Path) -> FileDigest:
    with source.open("rb") as file:
        return write_stream(target, iter(lambda: file.read(_CHUNK), b""))


def verify_folder(folder: Path) -> str:
    """Empty when the manifest lists every file and every file matches it, otherwise what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is missing or unreadable: {error}"
    if unlisted := sorted({path.name for path in folder.iterdir()} - {*entries, MANIFEST}):
        return f"{MANIFEST} does not list {', '.join(unlisted)}"
    for name, (size, expected) in entries.items():
        try:
            with (folder / name).open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    return f"{name}: expected {size} bytes, found {found}"
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"{name}: bytes differ from the checksum in {MANIFEST}"
        except OSError as error:
            return f"{name}: {error}"
    return ""


def write_file(path: Path, content: bytes) -> None:
    """Replace one file so that a reader sees the old or the new content, never a part."""
    staging = path.with_name(path.name + STAGING_SUFFIX)
    _write_durably(staging, [content])
    os.replace(staging, path)
    _sync(path.parent)


def _write_durably(path: Path, chunks: Iterable[bytes | memoryview]) -> FileDigest:
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            left = bytes_until_kill()
            if left is not None and left < len(chunk):
                file.write(chunk[:left])
                file.flush()
            reach("bytes", len(chunk))
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            del chunk  # before the next one is made
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(size, digest.hexdigest())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
