"""Opening images that somebody else supplied: inside one folder, of known formats, of bounded size."""

import io
import os
import stat
import struct
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, UnidentifiedImageError

from model.data.decode import decode_apart
from model.data.media_error import MediaError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
PAGE_FORMATS = (*FORMATS, "TIFF")
"""Formats of images inside the files of a corpus, which may be scanned pages."""
_JPEG = ("JPEG", "MPO")
_MOST_SCANNED = 2**28
"""Pixels times scans of a JPEG that are decoded in this process: a second, about."""
MAX_PIXELS = 16_777_216
MAX_BYTES = 32 * 2**20
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture(ABC):
    """An image that is no file of its own."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height) of the image upright."""

    @abstractmethod
    def open(self) -> Image.Image:
        """RGB image, upright. `MediaError` where it cannot be used."""


class StoredSource(Picture):
    """An image inside a file, which any process that sees the file opens; it is small, hashable and can be sent."""


@dataclass(frozen=True)
class HeldPicture(Picture):
    """The content of an image file, in memory. The first page of a TIFF counts."""

    content: bytes = field(repr=False)

    @cached_property
    def size(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return image_size_of_bytes(self.content, PAGE_FORMATS)

    def open(self) -> Image.Image:
        return open_image_bytes(self.content, PAGE_FORMATS)


def open_image(root: Path, name: str) -> Image.Image:
    """RGB image `root/name`, upright. `MediaError` for a path outside root, another format, a damaged file, or one that
    takes too long to decode."""
    with _opened(inside(root, name)) as image:
        if _is_decoded_soon(image):
            return _to_rgb(_upright(image))
    return decode_apart(inside(root, name))


def open_image_bytes(content: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """`open_image` for the content of a file, in one of these formats."""
    what = f"image of {len(content)} bytes"
    _check_bytes(len(content), what)
    with _named_errors(what, formats), Image.open(io.BytesIO(content), formats=formats) as image:
        _check_header(image, what)
        if _is_decoded_soon(image):
            return _to_rgb(_upright(image))
    with tempfile.NamedTemporaryFile(prefix="sailvl2-image-") as file:
        file.write(content)
        file.flush()
        return decode_apart(Path(file.name))


def open_here(path: Path) -> Image.Image:
    """`open_image` in this process, however long it takes."""
    with _opened(path) as image:
        return _to_rgb(_upright(image))


def image_size(root: Path, name: str) -> tuple[int, int]:
    """(width, height) that `open_image` would give, from the file's header alone."""
    with _opened(inside(root, name)) as image:
        return _upright_size(image)


def image_size_of_bytes(content: bytes, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
    """(width, height) that `open_image_bytes` would give, from the header alone."""
    what = f"image of {len(content)} bytes"
    _check_bytes(len(content), what)
    with _named_errors(what, formats), Image.open(io.BytesIO(content), formats=formats) as image:
        _check_header(image, what)
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.width == image.height:  # no turn changes it
        return image.size
    if image.format == "PNG" and not _has_late_metadata(getattr(image, "fp", None)):
        exif = Image.Image.getexif(image)  # the PNG class's own method would decode all pixels first
    else:
        exif = image.getexif()
    turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in memory as `open_image` gives one from a file. `MediaError` if it is too large, empty or damaged."""
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise MediaError(f"image {image!r}: expected 1 to {MAX_PIXELS} pixels, found {image.size}")
    try:
        return _to_rgb(_upright(image))
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads an opened file as late as this
        raise MediaError(f"image {image!r}: expected a whole image, found damage: {error}") from None


def check_images(root: Path, names: Iterable[str]) -> None:
    """`MediaError` for the first of these files that is missing, too large or no image; pixels are not decoded."""
    for name in dict.fromkeys(names):
        with _opened(inside(root, name)):
            pass


def image_format(content: bytes) -> str:
    """Which of `FORMATS` an image's bytes are, by their header. `MediaError` for what `open_image` would not open."""
    what = f"image of {len(content)} bytes"
    _check_bytes(len(content), what)
    with _named_errors(what), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_header(image, what)
        return "JPEG" if image.format in _JPEG else str(image.format)


def inside(root: Path, name: str, kind: str = "image") -> Path:
    """The path `root/name`. `MediaError` if it leaves `root` or is no file name at all."""
    if "\0" in name:
        raise MediaError(f"{kind} {name!r}: expected a file name, found a NUL character in it")
    try:
        path = (root / name).resolve()
        os.fsencode(path)
    except (OSError, ValueError, RuntimeError) as error:  # half a surrogate pair; links in a circle
        raise MediaError(f"{kind} {name!r:.200}: expected a file name, found: {error}") from None
    if not path.is_relative_to(root.resolve()):
        raise MediaError(f"{kind} {name!r}: expected a path inside {root}, found {path}")
    return path


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _named_errors(f"image {path}"):
        status = path.stat()
        _check_bytes(status.st_size, f"image {path}")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise MediaError(f"image {path}: expected a file, found a folder or a device")
        with Image.open(path, formats=FORMATS) as image:
            _check_header(image, f"image {path}")
            yield image


@contextmanager
def _named_errors(what: str, formats: tuple[str, ...] = FORMATS) -> Iterator[None]:
    """Turn the errors that opening and decoding may raise into a `MediaError` about `what`."""
    try:
        yield
    except FileNotFoundError:
        raise MediaError(f"{what}: expected a file, found none") from None
    except UnidentifiedImageError:
        raise MediaError(f"{what}: expected one of {', '.join(formats)}, found other bytes") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{what}: expected a whole image, found damage: {error}") from None


def _check_bytes(size: int, what: str) -> None:
    if size > MAX_BYTES:
        raise MediaError(f"{what}: expected at most {MAX_BYTES} bytes, found {size}")


def _check_header(image: Image.Image, what: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"{what}: expected at most {MAX_PIXELS} pixels, found {image.size}")
    # Phones store a JPEG with a smaller picture behind the first (Multi-Picture Format), and scanners the pages of a
    # document as one TIFF: the first counts.
    if image.format not in (*_JPEG, "TIFF") and (frames := getattr(image, "n_frames", 1)) > 1:
        raise MediaError(f"{what}: expected a still image, found {frames} frames")


def _is_decoded_soon(image: Image.Image) -> bool:
    return image.format not in _JPEG or _num_scans(image) * image.width * image.height <= _MOST_SCANNED


def _num_scans(image: Image.Image) -> int:
    """How many passes over all pixels a JPEG asks for, at most."""
    file = getattr(image, "fp", None)
    if file is None:
        return 1
    position = file.tell()
    file.seek(0)
    count = file.read().count(b"\xff\xda")
    file.seek(position)
    return max(1, count)


def _has_late_metadata(file: IO[bytes] | None) -> bool:
    """Whether a PNG has EXIF or text after its pixels, which PIL sees only once it has decoded those."""
    if file is None:
        return True
    position = file.tell()
    file.seek(8)
    seen_pixels = late = False
    while not late and len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        seen_pixels |= kind == b"IDAT"
        late = seen_pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(position)
    return late


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. Not by `ImageOps.exif_transpose`: it writes all of EXIF anew and fails on odd fields."""
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Transparency is laid on white; 16-bit greys are scaled down, not clipped."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = image.convert("F").point(lambda value: value / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
