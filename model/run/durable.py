"""Folders that appear whole or not at all: staged, checksummed, fsynced, renamed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from model.run.failpoints import bytes_until_end, reach
from model.run.manifest import MANIFEST, DamagedFolder, Digests, FileDigest, Manifest, manifest_bytes

STAGING_SUFFIX = ".sailvl2-partial"
"""End of the names under which files and folders are written before they get their own. No user's file has it."""
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the `OSError`s that say that a disk, a quota or a limit of file sizes is full."""
_CHUNK = 1 << 22


class OutOfSpace(RuntimeError):
    """The disk, or the quota, is full."""

    exit_code = 6


def write_folder(
    folder: Path, files: Mapping[str, bytes], fill: Callable[[Path], Digests] = lambda staging: {}
) -> None:
    """Write a folder that either holds everything with a manifest, or does not exist.

    `fill(staging)` writes its files by `write_stream` first and returns their digests; then `files` are written. Every
    file and folder is fsynced before the rename that publishes it. An earlier folder of the same name is replaced;
    `ValueError`, before anything is written, where it holds files that no such call wrote.
    """
    refuse_foreign_files(folder)
    staging = folder.with_name(folder.name + STAGING_SUFFIX)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    reach("save.begin")
    try:
        digests = dict(fill(staging))
        digests |= {name: write_stream(staging / name, [content]) for name, content in files.items()}
        _write_durably(staging / MANIFEST, [manifest_bytes(digests)])
        _sync(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    reach("save.before_rename")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(staging, folder)
    reach("save.after_rename")
    _sync(folder.parent)


def refuse_foreign_files(folder: Path) -> None:
    """`ValueError` where a folder holds files that its manifest does not list, so that replacing it would lose them."""
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise ValueError(f"{folder}: expected a folder or nothing, found a file; name another place")
        return
    names = {path.name for path in folder.iterdir()}
    listed: set[str] = set()
    with suppress(DamagedFolder):
        listed = {*Manifest.read(folder).entries, MANIFEST}
    if foreign := sorted(names - listed):
        raise ValueError(
            f"{folder}: expected a new folder, or one that an earlier run wrote, found {', '.join(foreign[:3])} in it; "
            "move that away, or name another folder"
        )


def write_stream(path: Path, chunks: Iterable[bytes | memoryview]) -> FileDigest:
    """Write one file of a folder in staging, chunk by chunk, and fsync it."""
    digest = _write_durably(path, chunks)
    reach("save.file")
    return digest


def copy_folder(source: Path, folder: Path) -> None:
    """Copy the files that `source`'s manifest lists, after they were verified; `folder` then holds all of them, or is
    as it was. `DamagedFolder` where the source is not what its manifest says."""
    manifest = Manifest.read(source)
    manifest.verify()
    names = list(manifest.entries)
    write_folder(folder, {}, lambda staging: {name: _copy_file(source / name, staging / name) for name in names})


def _copy_file(source: Path, target: Path) -> FileDigest:
    with source.open("rb") as file:
        return write_stream(target, iter(lambda: file.read(_CHUNK), b""))


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
            left = bytes_until_end()
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
