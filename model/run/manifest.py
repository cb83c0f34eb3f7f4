"""The manifest of a folder: which files an earlier run wrote into it, with their sizes and checksums."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from model.json_values import read_json_object, refuse_special_file
from model.run.printable import printable

MANIFEST = "manifest.json"


class DamagedFolder(ValueError):
    """A folder does not hold what its manifest, or its kind, says."""


class FileDigest(NamedTuple):
    """Size and checksum of a file, taken while it was written."""

    num_bytes: int
    sha256: str


Digests = Mapping[str, FileDigest]
"""File name -> its digest."""


def manifest_bytes(digests: Digests) -> bytes:
    """Content of the manifest of a folder that holds these files."""
    entries = {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in digests.items()}
    return json.dumps(entries, indent=1).encode()


@dataclass(frozen=True)
class Manifest:
    """The files of a folder that its manifest lists."""

    folder: Path
    entries: Digests

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """`DamagedFolder` where it is missing, unreadable, or names files outside of the folder."""
        path = folder / MANIFEST
        try:
            refuse_special_file(path)
            entries = {
                name: FileDigest(int(entry["bytes"]), str(entry["sha256"]))
                for name, entry in read_json_object(path).items()
            }
        except (OSError, ValueError) as error:
            raise DamagedFolder(f"{path} is missing or unreadable: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise DamagedFolder(
                f"{path} is missing or unreadable: expected bytes and sha256 of every file, found something else"
            ) from None
        if strange := [name for name in entries if name != Path(name).name or name in (MANIFEST, "", ".", "..")]:
            raise DamagedFolder(f"{path}: expected names of files in this folder, found {strange[0]!r:.80}")
        return cls(folder, entries)

    def require(self, names: Iterable[str]) -> None:
        """`DamagedFolder` unless all of these files are listed."""
        if missing := sorted(set(names) - self.entries.keys()):
            raise DamagedFolder(f"{self.folder / MANIFEST} does not list {', '.join(missing)}")

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files, by default every listed one, with their checksums. `DamagedFolder` names the first that
        differs. Files that are not listed are neither opened nor looked at."""
        chosen = list(self.entries if names is None else names)
        self.require(chosen)
        for name in chosen:
            self._verify(name, self.entries[name])

    def _verify(self, name: str, expected: FileDigest) -> None:
        path = self.folder / name
        try:
            refuse_special_file(path)
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != expected.num_bytes:
                    raise DamagedFolder(f"{path}: expected {expected.num_bytes} bytes, found {found}")
                if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                    raise DamagedFolder(f"{path}: its bytes differ from the checksum in {MANIFEST}")
        except OSError as error:
            raise DamagedFolder(f"{path}: expected a file that can be read, found: {error}") from None


def verify_files(folder: Path, names: Iterable[str]) -> None:
    """Verify these files of a folder that has a manifest; one without a manifest is taken as it is.

    `DamagedFolder` says what to do about a file that was changed on purpose.
    """
    if not (folder / MANIFEST).exists():
        return
    try:
        manifest = Manifest.read(folder)
        if gone := sorted(name for name in manifest.entries if not (folder / name).is_file()):
            raise DamagedFolder(f"{folder}: expected the files that {MANIFEST} lists, found no {printable(gone[0])}")
        manifest.verify(names)
    except DamagedFolder as error:
        raise DamagedFolder(
            f"{error}; copy the folder anew, or delete {folder / MANIFEST} if its files were changed on purpose"
        ) from None
