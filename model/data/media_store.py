"""Media as files named by their content: images that came as bytes, and files that rows take to another folder."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.data.media import image_format
from model.data.media_cells import Message
from model.run.durable import STAGING_SUFFIX, link_file
from model.run.failpoints import reach

_SUFFIX = re.compile(r"\.\w{1,8}", re.ASCII)
_CHUNK = 1 << 22


class MediaStore:
    """A folder of images. Putting the same bytes in again, also in a later process, changes nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is made when the first image comes; None is a temporary one that goes with this object."""
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="sailvl2-media-")
            self._folder = Path(self._temporary.name)
        return self._folder

    def without_folder(self, text: str) -> str:
        """A message without the folder's path, so that it is the same in every run's folder."""
        return text if self._folder is None else text.replace(f"{self._folder.resolve()}/", "")

    def put(self, content: bytes) -> str:
        """Name of the file that holds `content`. `MediaError` unless it is an image that may be opened."""
        name = f"{hashlib.sha256(content).hexdigest()}.{image_format(content).lower()}"
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != len(content):
            self.folder.mkdir(parents=True, exist_ok=True)
            staging = path.with_name(name + STAGING_SUFFIX)
            try:
                staging.write_bytes(content)
                reach("media")
                os.replace(staging, path)
            finally:
                staging.unlink(missing_ok=True)
        return name


class CarriedMedia:
    """Media of rows that are written to a folder of their own: links below `folder/media`.

    The same rows give the same names, wherever their files lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, str] = {}

    def messages(self, messages: Sequence[Message], root: Path) -> list[Message]:
        """The messages with every image and video of `root` as a file of the folder. `OSError` for one that cannot be
        read."""
        placed, files = self.named(messages, root)
        self.link(files)
        return placed

    def named(self, messages: Sequence[Message], root: Path) -> tuple[list[Message], dict[str, Path]]:
        """(messages as `messages` gives them, the file behind each name), without linking anything."""
        files: dict[str, Path] = {}
        return [self._message(message, root, files) for message in messages], files

    def link(self, files: Mapping[str, Path]) -> None:
        """Give files of other folders their names below the folder."""
        for name, path in files.items():
            target = self._folder / name
            if not (target.is_file() and target.stat().st_size == path.stat().st_size):
                link_file(path, target)

    def name_of(self, path: Path) -> str:
        """The name below the folder of a media file, without linking it: its sha256 with its ending."""
        place = path.resolve()
        if place not in self._names:
            digest = hashlib.sha256()
            with place.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            # A name without a dot would be read as base64.
            suffix = path.suffix.lower() if _SUFFIX.fullmatch(path.suffix) else ".file"
            self._names[place] = f"media/{digest.hexdigest()}{suffix}"
        return self._names[place]

    def _message(self, message: Message, root: Path, files: dict[str, Path]) -> Message:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        parts: list[object] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image", "video") and isinstance(part.get(kind), str):
                path = root / part[kind]
                part = {**part, kind: self.name_of(path)}
                files[part[kind]] = path
            parts.append(part)
        return {**message, "content": parts}
