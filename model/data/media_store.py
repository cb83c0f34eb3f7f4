"""Images that came as bytes inside a data file, as files named by their content."""

import hashlib
import os
import tempfile
from pathlib import Path

from model.data.media import image_format
from model.run.durable import STAGING_SUFFIX
from model.run.failpoints import reach


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
