"""Images that somebody else supplied: exact pixels of the harmless, a clear refusal of the rest, nothing in between."""

import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from model.data.media import MAX_BYTES, MAX_PIXELS, open_image
from model.data.media_error import MediaError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand: whatever header it is given."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def grid(*rows) -> Image.Image:
    """An RGB image of the given rows of colours."""
    return Image.fromarray(np.array(rows, np.uint8))


def pixels(folder, name, content: bytes | None = None) -> list[list[tuple[int, int, int]]]:
    if content is not None:
        (folder / name).write_bytes(content)
    image = open_image(folder, name)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


class TestPaths:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        self.root = tmp_path / "root"
        (self.root / "inner").mkdir(parents=True)
        for path in (tmp_path / "outside.png", self.root / "inner" / "a.png"):
            Image.new("RGB", (1, 1), RED).save(path)

    def test_inside(self):
        assert pixels(self.root, "inner/a.png") == [[RED]]
        assert pixels(self.root, "inner/../inner/./a.png") == [[RED]]
        (self.root / "link.png").symlink_to(self.root / "inner" / "a.png")
        assert pixels(self.root, "link.png") == [[RED]]

    @pytest.mark.parametrize(
        "name", ["../outside.png", "inner/../../outside.png", "{outside}", "link.png", "up/outside.png"]
    )
    def test_outside(self, tmp_path, name):
        """Also through a link to the file, and through a linked folder."""
        (self.root / "link.png").symlink_to(tmp_path / "outside.png")
        (self.root / "up").symlink_to(tmp_path)
        name = name.format(outside=tmp_path / "outside.png")
        with pytest.raises(MediaError, match=rf"expected a path inside {self.root}, found {tmp_path}/outside.png"):
            open_image(self.root, name)

    def test_a_folder_whose_name_begins_like_the_root_is_outside(self, tmp_path):
        (tmp_path / "root2").mkdir()
        Image.new("RGB", (1, 1)).save(tmp_path / "root2" / "a.png")
        with pytest.raises(MediaError, match="expected a path inside"):
            open_image(self.root, "../root2/a.png")

    @pytest.mark.parametrize("name", ["none.png", "none/a.png"])
    def test_missing(self, name):
        with pytest.raises(MediaError, match=f"{name}: expected a file, found none"):
            open_image(self.root, name)

    @pytest.mark.parametrize("name", ["", ".", "inner", "inner/a.png/b", "x" * 300, "a\0b.png"])
    def test_names_of_no_file(self, name):
        with pytest.raises(MediaError):
            open_image(self.root, name)


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "expected one of PNG, JPEG, WEBP, BMP, found other bytes"),
            (b"hello", "expected one of PNG, JPEG, WEBP, BMP, found other bytes"),
            (encoded(Image.new("RGB", (4, 4)), "GIF"), "expected one of PNG, JPEG, WEBP, BMP, found other bytes"),
            (encoded(Image.new("RGB", (4, 4)), "TIFF"), "expected one of PNG, JPEG, WEBP, BMP, found other bytes"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected one of PNG, JPEG, WEBP, BMP, found other bytes"),
            (animation("PNG"), "expected a still image, found 2 frames"),
            (animation("WEBP"), "expected a still image, found 2 frames"),
            (png(4097, 4096, 8, 0, b""), f"expected at most {MAX_PIXELS} pixels, found"),
            (png(60_000, 60_000, 8, 0, b""), "decompression bomb"),
            (png(2**31 - 1, 2**31 - 1, 8, 0, b""), "decompression bomb"),
            (png(0, 4, 8, 0, b""), "expected one of"),
            (png(4, 4, 7, 0, b"\0" * 20), "expected one of"),
        ],
        ids=[
            *[
                "empty",
                "text",
                "gif",
                "tiff",
                "svg",
                "animated_png",
                "animated_webp",
                "many_pixels",
                "bomb",
                "huge_bomb",
            ],
            *["no_width", "odd_depth"],
        ],
    )
    def test_content_under_a_png_name(self, tmp_path, content, expected):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(MediaError, match=expected) as error:
            open_image(tmp_path, "a.png")
        assert "a.png" in str(error.value)

    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
    def test_truncated_anywhere(self, tmp_path, form):
        """Refused, unless all that is missing is a trailer without pixels."""
        content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)), form)
        whole = pixels(tmp_path, "a.png", content)
        read = []
        for size in range(len(content)):
            try:
                assert pixels(tmp_path, "a.png", content[:size]) == whole, f"{size} of {len(content)} bytes"
                read.append(size)
            except MediaError:
                pass
        assert not read or read[0] >= len(content) - 20  # PNG: two checksums and the end chunk

    def test_too_many_bytes(self, tmp_path):
        with (tmp_path / "a.png").open("wb") as file:
            os.truncate(file.fileno(), MAX_BYTES + 1)  # sparse: takes no room
        with pytest.raises(MediaError, match=f"expected at most {MAX_BYTES} bytes, found {MAX_BYTES + 1}"):
            open_image(tmp_path, "a.png")

    def test_a_png_whose_pixels_are_as_many_as_allowed(self, tmp_path):
        """One row of 2^24 black pixels is 16 kB of PNG: allowed, and the bound is not off by one."""
        (tmp_path / "a.png").write_bytes(png(MAX_PIXELS, 1, 1, 0, bytes(1 + MAX_PIXELS // 8)))
        assert open_image(tmp_path, "a.png").size == (MAX_PIXELS, 1)


class TestPixelValues:
    def test_plain_formats(self, tmp_path):
        image = grid([RED, GREEN], [BLUE, WHITE])
        expected = [[RED, GREEN], [BLUE, WHITE]]
        assert pixels(tmp_path, "a.png", encoded(image)) == expected
        assert pixels(tmp_path, "a.bmp", encoded(image, "BMP")) == expected
        assert pixels(tmp_path, "a.webp", encoded(image, "WEBP", lossless=True)) == expected
        assert (
            pixels(tmp_path, "jpeg_named.png", encoded(Image.new("L", (8, 8), 90), "JPEG")) == [[(90, 90, 90)] * 8] * 8
        )

    def test_palette_with_a_transparent_entry_is_laid_on_white(self, tmp_path):
        image = Image.new("P", (3, 1))
        image.putpalette([*RED, *GREEN, *BLUE])
        image.putdata([0, 1, 2])
        assert pixels(tmp_path, "a.png", encoded(image)) == [[RED, GREEN, BLUE]]
        assert pixels(tmp_path, "b.png", encoded(image, transparency=bytes([255, 0, 255]))) == [[RED, WHITE, BLUE]]

    def test_alpha_is_laid_on_white(self, tmp_path):
        """alpha 51 is a fifth: 0.2 x 0 + 0.8 x 255 = 204."""
        image = Image.fromarray(np.array([[[*RED, 255], [*RED, 0], [*BLACK, 51]]], np.uint8))
        assert pixels(tmp_path, "a.png", encoded(image)) == [[RED, WHITE, (204, 204, 204)]]
        grey = Image.fromarray(np.array([[[7, 255], [7, 0], [0, 51]]], np.uint8), "LA")
        assert pixels(tmp_path, "b.png", encoded(grey)) == [[(7, 7, 7), WHITE, (204, 204, 204)]]

    def test_a_transparent_colour_is_white(self, tmp_path):
        rgb = png(2, 1, 8, 2, bytes([0, 5, 6, 7, 100, 101, 102]), chunk(b"tRNS", struct.pack(">HHH", 5, 6, 7)))
        assert pixels(tmp_path, "a.png", rgb) == [[WHITE, (100, 101, 102)]]
        grey = png(2, 1, 8, 0, bytes([0, 5, 100]), chunk(b"tRNS", struct.pack(">H", 5)))
        assert pixels(tmp_path, "b.png", grey) == [[WHITE, (100, 100, 100)]]

    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path):
        """v x 257 is how 8 bits are written in 16; between those the conversion rounds down."""
        exact = np.arange(256, dtype=np.uint16).reshape(1, 256) * 257
        assert pixels(tmp_path, "a.png", encoded(Image.fromarray(exact))) == [[(v, v, v) for v in range(256)]]
        values = np.arange(0, 65536, 7, dtype=np.uint16).reshape(1, -1)
        shown = [pixel[0] for pixel in pixels(tmp_path, "b.png", encoded(Image.fromarray(values)))[0]]
        assert max(abs(v - w / 257) for v, w in zip(shown, values[0].tolist(), strict=True)) < 1

    def test_one_bit_and_16_bit_colour(self, tmp_path):
        assert pixels(tmp_path, "a.png", png(2, 1, 1, 0, bytes([0, 0b10000000]))) == [[WHITE, BLACK]]
        wide = b"\0" + struct.pack(">3H", 65535, 0, 257 * 9)
        assert pixels(tmp_path, "b.png", png(1, 1, 16, 2, wide)) == [[(255, 0, 9)]]

    @pytest.mark.parametrize(
        ("ink", "colour"), [((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), BLACK)]
    )
    def test_cmyk(self, tmp_path, ink, colour):
        """One flat colour at quality 100: JPEG may be off by its rounding."""
        content = encoded(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100)
        shown = np.array(pixels(tmp_path, "a.jpg", content))
        assert np.abs(shown - np.array(colour)).max() <= 2

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_exif_orientation_is_applied(self, tmp_path, orientation, form):
        """Each stored picture, turned as its tag says, shows the same upright one (EXIF 2.32, tag 0x0112)."""
        upright = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, RED]], np.uint8)
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.swapaxes(0, 1),
            6: np.rot90(upright, 1),
            7: np.rot90(upright, 2).swapaxes(0, 1),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"exif": exif.tobytes(), **({"lossless": True} if form == "WEBP" else {})}
        content = encoded(Image.fromarray(np.ascontiguousarray(stored)), form, **options)
        assert np.array_equal(pixels(tmp_path, "a", content), upright)


def test_damage_anywhere_gives_pixels_or_a_media_error(tmp_path):
    """Bytes changed at random, EXIF included, with checksums mended: never another exception, which would end a run."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "description", 72.0
    base = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8))
    seeds = [encoded(base, form, exif=exif.tobytes()) for form in ("PNG", "JPEG", "WEBP")]
    seeds += [encoded(base.quantize(8), transparency=bytes([0, 100])), encoded(base, "BMP")]
    rng = random.Random(0)
    counts = {"read": 0, "refused": 0}
    for _ in range(1200):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.choice([1, 1, 2, 4])):
            content[rng.randrange(min(len(content), 250))] = rng.choice([0, 255, rng.randrange(256)])
        (tmp_path / "a").write_bytes(with_checksums(bytes(content)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert open_image(tmp_path, "a").mode == "RGB"
            counts["read"] += 1
        except MediaError:
            counts["refused"] += 1
    assert min(counts.values()) > 200, counts


def with_checksums(content: bytes) -> bytes:
    """A PNG with the checksum of every chunk mended, so that damage reaches the decoder; other formats as they are."""
    if not content.startswith(b"\x89PNG"):
        return content
    mended, position = content[:8], 8
    while position + 12 <= len(content):
        size = struct.unpack(">I", content[position : position + 4])[0]
        if position + 12 + size > len(content):
            break
        mended += chunk(content[position + 4 : position + 8], content[position + 8 : position + 8 + size])
        position += 12 + size
    return mended + content[position:]
