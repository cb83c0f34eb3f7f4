"""WebDataset's tar files: members that follow each other and share a name up to the first dot of the file name are a
row."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from model.corpus.shard import Place, Shard, Unit, Withheld
from model.data.jsonl import columns_of_line
from model.data.raw_rows import MAX_ROW_BYTES, RawRow, require_file
from model.json_values import JsonObject

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_TEXTS = {"txt": "caption", "caption": "caption", "ocr": "caption"}
_IGNORED = ("pdf", "index", "cls", "md5", "url")  # members with these endings are left out
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


class TarShard(Shard):
    """An uncompressed tar file; a place is (first byte of the first member's header, bytes up to the next row)."""

    def units(self) -> list[Unit]:
        require_file(self.path, "tar")
        with self.path.open("rb") as file:
            head = file.read(2)
        if head in _COMPRESSED:
            raise ValueError(
                f"data: {self.path}: expected an uncompressed tar file, whose rows can be read in any order, found "
                f"{_COMPRESSED[head]}; unpack it with gunzip or the like"
            )
        return [Unit(0, self.path.stat().st_size)]

    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        for number, (start, size, members, problem) in enumerate(self._groups(), 1):
            if problem:
                yield (start, size), RawRow(self.path, number, problem=problem)
                continue
            with self.path.open("rb") as file:
                yield (start, size), self._row(file, members, number, None)

    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        start, size = place
        with self._named_errors(), self.path.open("rb") as file:
            part: Any = _Part(file, start, size)
            with tarfile.open(fileobj=part, mode="r:") as archive:
                members = [_Member(one, start + one.offset_data) for one in archive]
            return self._row(file, members, 0, num_pictures)

    def _groups(self) -> Iterator[tuple[int, int, list["_Member"], str]]:
        """(first byte, number of bytes, members, why it cannot be used) of each row.

        The last row of a file that is cut off may lack members, and cannot be used. `ValueError` for a damaged header,
        behind which no row can be found.
        """
        size = self.path.stat().st_size
        key, start, members = None, 0, []
        with self._named_errors(), tarfile.open(self.path, "r:") as archive:
            for one in _until_the_end(archive):
                if one.isdir():
                    continue
                if members and _key(one.name) != key:
                    yield start, one.offset - start, members, ""
                    members = []
                if not members:
                    key, start = _key(one.name), one.offset
                members.append(_Member(one, one.offset_data))
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else it keeps every header
            end = archive.offset  # pyright: ignore[reportAttributeAccessIssue]
        cut = self._cut_at(end, size, members)
        if members:
            yield start, min(end, size) - start, members, cut
        elif cut:
            raise ValueError(f"data: {self.path}: {cut}")

    def _cut_at(self, end: int, size: int, members: list["_Member"]) -> str:
        """A message about the end of the file; empty where it is that of a whole tar file, a block of zeros."""
        with self.path.open("rb") as file:
            file.seek(end)
            block = file.read(tarfile.BLOCKSIZE)
        if len(block) == tarfile.BLOCKSIZE and not (members and members[-1].stop > size):
            if block.strip(b"\0"):
                raise ValueError(
                    f"data: {self.path}: expected the header of a member at byte {end}, found something else; "
                    f"{size - end} bytes from there on cannot be read: make the file anew"
                )
            return ""
        last = f"behind member {members[-1].name!r:.80}" if members else "at its first byte"
        if members and members[-1].stop > size:
            last = f"inside member {members[-1].name!r:.80}"
        return f"expected a whole tar file, found one that is cut off {last}, without the zeros of its end"

    def _row(self, file: IO[bytes], members: list["_Member"], number: int, num_pictures: int | None) -> RawRow:
        try:
            return RawRow(self.path, number, _columns(file, members, num_pictures is not None))
        except ValueError as error:
            return RawRow(self.path, number, problem=str(error))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tarfile.TarError, ValueError) as error:
            raise ValueError(f"data: {self.path}: expected a whole tar file, found: {error}") from None


def _until_the_end(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members; behind one that is cut off there are none."""
    found: tarfile.TarInfo | None = None
    while True:
        try:
            following = archive.next()
        except tarfile.ReadError:
            if found is None:
                raise
            return
        if following is None:
            return
        yield (found := following)


class _Member:
    """A file in a tar file."""

    def __init__(self, info: tarfile.TarInfo, first: int) -> None:
        self.name, self.size, self.is_file = info.name, info.size, info.isfile()
        self._first = first
        self.stop = first + info.size

    @property
    def ending(self) -> str:
        """The file name behind its first dot, in lower case."""
        return os.path.basename(self.name).partition(".")[2].lower()

    def read(self, file: IO[bytes]) -> bytes:
        """Its content. `ValueError` for more than a row may have."""
        if self.size > MAX_ROW_BYTES:
            raise ValueError(f"{self.name!r:.80}: expected at most {MAX_ROW_BYTES} bytes, found {self.size}")
        file.seek(self._first)
        content = file.read(self.size)
        if len(content) != self.size:
            raise ValueError(
                f"{self.name!r:.80}: expected {self.size} bytes, found {len(content)}; the file is cut off"
            )
        return content


class _Part:
    """Bytes of a file as a file of their own, which is all that `tarfile` asks of them."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        found = self._file.read(left if size < 0 else min(size, left))
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _columns(file: IO[bytes], members: list[_Member], withholds: bool) -> JsonObject:
    """The columns of a row: those of its JSON, its images, its text. `ValueError` for members that make no row."""
    columns: JsonObject = {}
    images: list[Any] = []
    for member in members:
        if not member.is_file:
            raise ValueError(f"member {member.name!r:.80}: expected a file, found a link or a device")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ValueError(
                f"member {member.name!r:.80}: expected a name inside the tar file, found one that leads out"
            )
        ending = member.ending
        last = ending.rpartition(".")[2]
        if last in _IMAGES:
            images.append(Withheld() if withholds else member.read(file))
        elif last in ("json", "jsonl"):
            columns |= columns_of_line(member.read(file))
        elif last in _TEXTS:
            columns.setdefault(_TEXTS[last], _text(member, member.read(file)))
        elif last in ("mp4", "webm", "mkv", "avi", "mov"):
            raise ValueError(
                f"member {member.name!r:.80}: expected images and text, found a video; unpack videos, and name their "
                "files in JSONL rows"
            )
        elif last not in _IGNORED:
            raise ValueError(
                f"member {member.name!r:.80}: expected the ending of an image ({', '.join(_IMAGES)}), json or txt, "
                f"found {ending!r:.40}"
            )
    columns.setdefault("id", _key(members[0].name).lstrip("/"))
    return {**columns, "images": images} if images else columns


def _text(member: _Member, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"member {member.name!r:.80}: expected UTF-8, found: {error}") from None
