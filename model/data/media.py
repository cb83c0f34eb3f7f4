"""Opening images that somebody else supplied: inside one folder, of known formats, of bounded size."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
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


class MediaError(ValueError):
    """An image that cannot be used; the message names the file, what was expected and what came."""


def open_image(root: Path, name: str) -> Image.Image:
    """RGB image `root/name`, upright. `MediaError` for a path outside root, another format, or a damaged file."""
    with _opened(root, name) as image:
        return _to_rgb(_upright(image))


def check_images(root: Path, names: Iterable[str]) -> None:
    """`MediaError` for the first of these files that is missing, too large or no image; pixels are not decoded."""
    for name in dict.fromkeys(names):
        with _opened(root, name):
            pass


@contextmanager
def _opened(root: Path, name: str) -> Iterator[Image.Image]:
    if "\0" in name:
        raise MediaError(f"image {name!r}: expected a file name, found a NUL character in it")
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise MediaError(f"image {name!r}: expected a path inside {root}, found {path}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MediaError(f"image {path}: expected at most {MAX_BYTES} bytes, found {size}")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MediaError(f"image {path}: expected at most {MAX_PIXELS} pixels, found {image.size}")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise MediaError(f"image {path}: expected a still image, found {frames} frames")
            yield image
    except FileNotFoundError:
        raise MediaError(f"image {path}: expected a file, found none") from None
    except UnidentifiedImageError:
        raise MediaError(f"image {path}: expected one of {', '.join(FORMATS)}, found other bytes") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"image {path}: expected a whole image, found damage: {error}") from None


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
