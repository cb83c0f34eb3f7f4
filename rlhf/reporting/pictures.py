"""Images of rollouts as small pictures inside the page: each content once, and all of them within a number of bytes."""

import base64
import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from model.data.media import open_image
from model.data.media_error import MediaError
from model.json_values import JsonObject
from model.run.printable import printable

_SMALL = 96
"""Longer side, in pixels, up to which an image is kept exactly, as PNG."""
_QUALITY = 80


class Pictures:
    """Numbers images by their content, and keeps them as data that a page shows without any file.

    An image that is missing, damaged or left out keeps its number, and says why it is not there.
    """

    def __init__(self, longest_side: int, max_bytes: int) -> None:
        self._side, self._left = longest_side, max_bytes
        self.entries: list[JsonObject] = []  # {"src": data URI, "w", "h"}, or {"name", "why"}
        self.num_left_out = 0
        self.num_unreadable = 0
        self._by_path: dict[str, int] = {}
        self._by_content: dict[str, int] = {}

    def add(self, path: str) -> int:
        """The number of the image at a path."""
        if path not in self._by_path:
            self._by_path[path] = self._open(path)
        return self._by_path[path]

    def _open(self, path: str) -> int:
        name = printable(path, 300)
        try:
            image = open_image(Path("/"), os.path.abspath(path))
        except MediaError as error:
            self.num_unreadable += 1
            why = printable(str(error), 300)
            return self._append({"name": name, "why": why})
        except Exception as error:  # one image, however strange, does not cost the page
            self.num_unreadable += 1
            return self._append({"name": name, "why": printable(f"{type(error).__name__}: {error}", 300)})
        size = image.size
        kind, content = _encoded(image, self._side)
        digest = hashlib.sha256(content).hexdigest()
        if digest in self._by_content:
            return self._by_content[digest]
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        if len(source) > self._left:
            self.num_left_out += 1
            return self._append({"name": name, "why": "left out, because the page would be too large"})
        self._left -= len(source)
        self._by_content[digest] = self._append({"src": source, "w": size[0], "h": size[1]})
        return self._by_content[digest]

    def _append(self, entry: JsonObject) -> int:
        self.entries.append(entry)
        return len(self.entries) - 1


def _encoded(image: Image.Image, longest_side: int) -> tuple[str, bytes]:
    """(kind, bytes) of an image whose sides are at most so long."""
    image.thumbnail((longest_side, longest_side))
    out = io.BytesIO()
    if max(image.size) <= _SMALL:
        image.save(out, "PNG", optimize=True)
        return "png", out.getvalue()
    image.save(out, "WEBP", quality=_QUALITY)
    return "webp", out.getvalue()
