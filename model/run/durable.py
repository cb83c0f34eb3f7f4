"""Folders that appear whole or not at all: staged, checksummed, fsynced, renamed."""

import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from model.run.failpoints import bytes_until_end, reach
from model.run.manifest import MANIFEST, DamagedFolder, Digests, FileDigest, Manifest, manifest_bytes
from model.run.printable import printable

STAGING_SUFFIX = ".sailvl2-partial"
"""End of the names under which files and folders are written before they get their own. No user's file has it."""
OLD_SUFFIX = ".old" + STAGING_SUFFIX
"""End of the name of a folder that another one takes the place of, for the moment between two renames."""
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
    files in it that no such call wrote are set aside. `ValueError`, before anything is written, where it has no
    manifest.
    """
    staging = begin_folder(folder)
    try:
        reach("save.begin")
        digests = fill(staging)
        publish_folder(staging, folder, digests, files)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def begin_folder(folder: Path) -> Path:
    """Make the place where the files of a folder are written until `publish_folder`. For errors see `write_folder`."""
    if not (folder / MANIFEST).is_file():
        refuse_foreign_files(folder)
    staging = folder.with_name(folder.name + STAGING_SUFFIX)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def publish_folder(staging: Path, folder: Path, written: Digests, files: Mapping[str, bytes]) -> None:
    """Write `files` beside those that are written, then the manifest of all, and give the folder its name."""
    digests = dict(written)
    digests |= {name: write_stream(staging / name, [content]) for name, content in files.items()}
    _write_durably(staging / MANIFEST, [manifest_bytes(digests)])
    _sync(staging)
    reach("save.before_rename")
    before = folder.with_name(folder.name + OLD_SUFFIX)
    if folder.exists():
        os.replace(folder, before)
        reach("save.between_renames")
    os.replace(staging, folder)
    reach("save.after_rename")
    _sync(folder.parent)
    if before.exists():
        delete_written(before, folder)


def require_new_folder(folder: Path, key: str) -> None:
    """Make the folders above a new one. `ValueError`, which begins with `key`, where it has files or cannot be made."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{key}: expected a new folder, found {folder} with files in it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{key}: expected a folder that can be made, found: {error}") from None


def refuse_foreign_files(folder: Path) -> None:
    """`ValueError` where a folder holds files that its manifest does not list, so that replacing it would lose them."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder}: expected a folder or nothing, found a file or a link; name another place")
    if not folder.is_dir():
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


def delete_written(folder: Path, name: Path | None = None) -> None:
    """Delete a folder that was written with a manifest: the files that it lists, and the folder if nothing is left.

    Other files stay, in a folder with `.kept` behind its name, or behind `name`. One without a readable manifest was
    never finished, or is damaged; it goes as a whole.
    """
    try:
        names = list(Manifest.read(folder).entries)
    except DamagedFolder:
        shutil.rmtree(folder)
        return
    for one in [*names, MANIFEST]:
        (folder / one).unlink(missing_ok=True)
    if not delete_if_empty(folder):
        left = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        named = name or folder
        os.replace(folder, kept := free_name(named.with_name(f"{named.name}.kept")))
        print(f"{kept}: holds {printable(left)}, which no run wrote; the rest of it is deleted", file=sys.stderr)


def free_name(path: Path) -> Path:
    """`path`, or with a number behind it the first that does not exist."""
    names = [path, *(path.with_name(f"{path.name}{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def delete_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


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


@contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Hold a lock file. A second process says that it waits, and goes on once the first one is done or gone."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def link_file(path: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system allows none. A target of the same size and time of
    change stays; any other is replaced, because the file has changed or the copy was cut off."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        before, now = target.stat(), path.stat()
        if (before.st_size, before.st_mtime_ns) == (now.st_size, now.st_mtime_ns):
            return
        target.unlink()
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def write_file(path: Path, content: bytes) -> None:
    """Replace one file so that a reader sees the old or the new content, never a part."""
    staging = path.with_name(path.name + STAGING_SUFFIX)
    try:
        _write_durably(staging, [content])
        reach("file.before_rename")
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    os.replace(staging, path)
    reach("file.after_rename")
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
