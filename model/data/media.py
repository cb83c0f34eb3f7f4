"""Opening images that somebody else supplied: inside one folder, of known formats, of bounded size."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 16_777_216
MAX_BYTES = 32 * 2**20


class MediaError(ValueError):
    """An image that cannot be used; the message names the file, what was expected and what came."""


def open_image(root: Path, name: str) -> Image.Image:
    """RGB image `root/name`, upright. `MediaError` for a path outside root, another format, or a damaged file."""
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
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise MediaError(f"image {path}: expected a file, found none") from None
    except UnidentifiedImageError:
        raise MediaError(f"image {path}: expected one of {', '.join(FORMATS)}, found other bytes") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"image {path}: expected a whole image, found damage: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Transparency is laid on white; 16-bit greys are scaled down, not clipped."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = image.convert("F").point(lambda value: value / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
