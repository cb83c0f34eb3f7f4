"""Images of prompts: what `ids` was expanded for is what `open_images` gives, whatever the sizes, caps and settings."""

import io
import json
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from model.batch import Row, pack_rows
from model.checkpoint import build_flavour
from model.config import FLAVOUR_FOLDER, Flavour, SailVL2Config, flavour_config
from model.data import media
from model.data.media import MAX_PIXELS, image_size, open_image
from model.data.media_error import MediaError
from model.interface import Mode
from model.processing.processor import Processor
from model.processing.settings import IMAGENET_MEAN, IMAGENET_STD, ProcessorSettings
from model.processing.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(FLAVOUR_FOLDER / "tiny")
TINY = Processor(flavour_config(Flavour.tiny), TOKENIZER)
TILED = TINY.with_settings(max_tiles=6, use_thumbnail=True)
ANYRES = build_flavour(Flavour.tiny_anyres, 0)[1]
RELEASED = {
    "image_size": 448,
    "patch_size": 14,
    "max_dynamic_patch": 10,
    "use_msac": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def ask(*images):
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def placeholders(processor, prompt) -> int:
    return prompt.ids.count(processor.placeholder_id)


def features(processor, images) -> int:
    """Visual tokens that a model makes of these pixels."""
    step = processor.config.pixels_per_token
    return sum(len(i) * (i.shape[2] // step) * (i.shape[3] // step) for i in images)


class TestExpansion:
    @given(
        st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), max_size=3),
        st.sampled_from([TILED, TILED.with_settings(use_msac=True), TILED.with_settings(upscale=2), ANYRES, TINY]),
        st.sampled_from([None, 1, 2, 12]),
    )
    @settings(max_examples=200)
    def test_ids_pixels_and_packed_rows_agree(self, sizes, processor, max_tiles):
        images = [noise(*size) for size in sizes]
        prompt = processor.prompt(ask(*images), Mode.think, max_tiles=max_tiles)
        pixels = processor.open_images(None, prompt.images)
        assert len(pixels) == len(sizes) == prompt.placeholder_ids.count(processor.placeholder_id)
        assert features(processor, pixels) == placeholders(processor, prompt)
        inputs = pack_rows(
            [Row(prompt.ids, [[0]], pixels)], processor.placeholder_id, processor.config.pixels_per_token
        )
        assert len(inputs.visual_index) == placeholders(processor, prompt)

    def test_each_image_is_tiled_on_its_own(self, tmp_path):
        for name, size in (("a.png", (96, 64)), ("b.png", (32, 32))):
            noise(*size).save(tmp_path / name)
        prompt = TILED.prompt(ask("a.png", "b.png", "a.png"), Mode.direct, tmp_path)
        images = TILED.open_images(tmp_path, prompt.images)
        assert [len(image) for image in images] == [7, 1, 7] and placeholders(TILED, prompt) == 4 * 15
        assert prompt.files == ["a.png", "b.png", "a.png"]
        shown = TOKENIZER.decode(prompt.ids, keep_control=True)
        assert f"<img>{'<IMG_CONTEXT>' * 28}</img>\n<img>{'<IMG_CONTEXT>' * 4}</img>\n<img>" in shown

    def test_msac_for_a_single_image_only(self, tmp_path):
        noise(96, 64).save(tmp_path / "a.png")
        msac = TILED.with_settings(use_msac=True)
        for names, tiles in ((["a.png"], [11]), (["a.png", "a.png"], [7, 7])):
            prompt = msac.prompt(ask(*names), Mode.direct, tmp_path)
            for images in (prompt.images, names):
                assert [len(i) for i in msac.open_images(tmp_path, images)] == tiles
            assert placeholders(msac, prompt) == 4 * sum(tiles)

    def test_cap_of_one_call(self, tmp_path):
        noise(64, 32).save(tmp_path / "a.png")
        for cap, tiles in ((1, 1), (2, 3), (6, 3), (None, 3)):
            prompt = TILED.prompt(ask("a.png"), Mode.direct, tmp_path, max_tiles=cap)
            assert [len(i) for i in TILED.open_images(tmp_path, prompt.images)] == [tiles]
            assert [len(i) for i in TILED.open_images(tmp_path, ["a.png"], cap)] == [tiles]
        for cap in (0, -1, 1.5, True, 5000):
            with pytest.raises(ValueError, match="expected"):
                TILED.prompt(ask("a.png"), Mode.direct, tmp_path, max_tiles=cap)

    def test_pixels_of_the_file_are_the_published_arithmetic(self, tmp_path):
        noise(70, 36).save(tmp_path / "a.png")
        (pixels,) = TILED.open_images(tmp_path, ["a.png"])
        image = Image.open(tmp_path / "a.png").convert("RGB")
        whole = np.asarray(image.resize((64, 32)))
        tiles = np.stack([whole[:, :32], whole[:, 32:], np.asarray(image.resize((32, 32)))]).astype(np.float32)
        expected = (tiles / np.float32(255) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
        assert np.array_equal(pixels.numpy(), expected.transpose(0, 3, 1, 2))

    def test_documents_expand_alike(self, tmp_path):
        noise(96, 64).save(tmp_path / "a.png")
        ids, _ = TILED.document("x", ["y"], ["a.png", "a.png"], tmp_path)
        assert ids.count(TILED.placeholder_id) == 4 * sum(len(i) for i in TILED.open_images(tmp_path, ["a.png"] * 2))

    def test_one_fixed_tile_opens_nothing(self, monkeypatch):
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a file was opened"))
        assert placeholders(TINY, TINY.prompt(ask("not there.png"), Mode.direct)) == 4
        assert placeholders(TILED, TILED.prompt(ask("not there.png"), Mode.direct, max_tiles=1)) == 4

    def test_sizes_need_the_folder_and_the_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"root: expected the folder of 'a\.png', found None"):
            TILED.prompt(ask("a.png"), Mode.direct)
        with pytest.raises(MediaError, match="expected a file, found none"):
            ANYRES.prompt(ask("a.png"), Mode.direct, tmp_path)

    def test_a_file_that_changes_between_prompt_and_pixels_is_noticed(self, tmp_path):
        noise(32, 32).save(tmp_path / "a.png")
        prompt = TILED.prompt(ask("a.png"), Mode.direct, tmp_path)
        noise(64, 32).save(tmp_path / "a.png")
        with pytest.raises(MediaError, match="expected the size it had when its prompt was built"):
            TILED.open_images(tmp_path, prompt.images)

    def test_names_and_a_prompts_images_do_not_mix(self):
        prompt = TINY.prompt(ask("a.png"), Mode.direct)
        with pytest.raises(ValueError, match="found both together"):
            TINY.open_images(None, [*prompt.images, "a.png"])

    def test_only_users_and_the_system_show_images(self):
        messages = [*ask("a.png"), {"role": "assistant", "content": ask("a.png")[0]["content"]}, *ask("a.png")]
        with pytest.raises(ValueError, match=r"messages\[1\].content: expected an assistant to write text"):
            TINY.prompt(messages, Mode.direct)


class TestSizes:
    """The header tells the size that decoding and turning will give."""

    @pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
    def test_exif(self, tmp_path, orientation, form):
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        noise(20, 10).save(tmp_path / "a", form, **({} if form == "BMP" else {"exif": exif.tobytes()}))
        assert image_size(tmp_path, "a") == open_image(tmp_path, "a").size
        assert image_size(tmp_path, "a") == ((10, 20) if orientation in (5, 6, 7, 8) and form != "BMP" else (20, 10))

    def test_the_turned_side_counts_for_the_tiles(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        noise(96, 32).save(tmp_path / "a.jpg", exif=exif.tobytes())
        prompt = TILED.prompt(ask("a.jpg"), Mode.direct, tmp_path)
        assert prompt.images[0].shape == (4, 32, 32) and prompt.images[0].cutter.grids((32, 96))[0] == (1, 3)
        (tiles,) = TILED.open_images(tmp_path, prompt.images)
        upright = np.asarray(open_image(tmp_path, "a.jpg").resize((32, 96)))[:32]
        red = (upright[..., 0] / np.float32(255) - np.float32(IMAGENET_MEAN[0])) / np.float32(IMAGENET_STD[0])
        assert np.array_equal(tiles[0, 0].numpy(), red)

    def test_exif_behind_the_pixels_of_a_png(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 8
        buffer = io.BytesIO()
        noise(20, 10).save(buffer, "PNG")
        data = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
        (tmp_path / "a.png").write_bytes(buffer.getvalue()[:-12] + chunk + buffer.getvalue()[-12:])
        assert image_size(tmp_path, "a.png") == open_image(tmp_path, "a.png").size == (10, 20)

    def test_orientation_in_xmp(self, tmp_path):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        noise(20, 10).save(tmp_path / "a.png", pnginfo=info)
        assert image_size(tmp_path, "a.png") == open_image(tmp_path, "a.png").size

    def test_pixels_are_not_decoded_for_it(self, tmp_path):
        """A PNG cut off in its pixels still has a size."""
        noise(300, 200).save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
        assert image_size(tmp_path, "b.png") == (300, 200)
        with pytest.raises(MediaError, match="expected a whole image"):
            open_image(tmp_path, "b.png")


class TestOddImages:
    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "LAB"]
    )
    def test_every_mode_in_memory(self, mode):
        image = (
            Image.new("L", (40, 20), 128).convert("RGB").convert(mode) if mode != "I;16" else Image.new(mode, (40, 20))
        )
        assert TILED.pixels(image).shape == (3, 3, 32, 32)

    @pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 65_000)])
    @pytest.mark.parametrize("processor", [TILED, TILED.with_settings(use_msac=True), TINY, ANYRES])
    def test_one_pixel_and_extreme_aspects(self, tmp_path, size, processor):
        Image.new("RGB", size, (255, 128, 0)).save(tmp_path / "a.png")
        prompt = processor.prompt(ask("a.png"), Mode.direct, tmp_path)
        images = processor.open_images(tmp_path, prompt.images)
        assert features(processor, images) == placeholders(processor, prompt)
        wanted = (np.float32([255, 128, 0]) / np.float32(255) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
        assert torch.equal(images[0], torch.from_numpy(wanted).view(1, 3, 1, 1).expand_as(images[0]))
        if processor is ANYRES:
            assert images[0].shape[2] * images[0].shape[3] <= processor.config.vision.max_patches * 64

    def test_the_same_image_from_memory_and_from_its_file(self, tmp_path):
        """Also transparent and turned ones."""
        exif = Image.Exif()
        exif[0x0112] = 6
        image = noise(90, 31)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(tmp_path / "a.png", exif=exif.tobytes())
        with Image.open(tmp_path / "a.png") as opened:
            assert torch.equal(TILED.pixels(opened), TILED.open_images(tmp_path, ["a.png"])[0])

    def test_nothing_too_much_and_damage_in_memory(self, tmp_path):
        for size in ((0, 5), (5, 0)):
            with pytest.raises(MediaError, match=f"expected 1 to {MAX_PIXELS} pixels"):
                TILED.pixels(Image.new("RGB", size))
        with pytest.raises(MediaError, match=f"expected 1 to {MAX_PIXELS} pixels"):
            TILED.pixels(Image.new("1", (4097, 4096)))
        noise(50, 50).save(tmp_path / "a.jpg")
        content = (tmp_path / "a.jpg").read_bytes()
        with Image.open(io.BytesIO(content[: len(content) // 2])) as opened, pytest.raises(MediaError, match="damage"):
            TILED.pixels(opened)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_pixels_that_are_no_numbers_are_refused_where_tensors_enter(self, value):
        prompt = TINY.prompt(ask("a.png"), Mode.direct)
        pixels = torch.zeros(1, 3, 32, 32)
        step = TINY.config.pixels_per_token
        pack_rows([Row(prompt.ids, [[0]], [pixels])], TINY.placeholder_id, step)
        pixels[0, 1, 2, 3] = value
        with pytest.raises(ValueError, match="pixels: expected finite numbers, found NaN or infinity"):
            pack_rows([Row(prompt.ids, [[0]], [pixels])], TINY.placeholder_id, step)

    @pytest.mark.parametrize("name", ["\ud800.png", "a\ud800/b.png"])
    def test_names_that_no_file_can_have(self, tmp_path, name):
        for read in (open_image, image_size):
            with pytest.raises(MediaError, match="expected a file name, found"):
                read(tmp_path, name)

    def test_links_in_a_circle(self, tmp_path):
        (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
        (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
        with pytest.raises(MediaError):
            open_image(tmp_path, "a.png")

    def test_bytes_changed_anywhere_never_crash_the_size(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        seeds = []
        for form in ("PNG", "JPEG", "WEBP"):
            buffer = io.BytesIO()
            noise(12, 8).save(buffer, form, exif=exif.tobytes())
            seeds.append(buffer.getvalue())
        rng = random.Random(1)
        counts = {"read": 0, "refused": 0}
        for _ in range(600):
            content = bytearray(rng.choice(seeds))
            for _ in range(rng.choice([1, 2, 4])):
                content[rng.randrange(min(len(content), 200))] = rng.randrange(256)
            (tmp_path / "a").write_bytes(content)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    width, height = image_size(tmp_path, "a")
                assert 0 < width * height <= MAX_PIXELS
                counts["read"] += 1
            except MediaError:
                counts["refused"] += 1
        assert min(counts.values()) > 50, counts


class TestSettings:
    def folder(self, tmp_path, preprocessor, **config):
        raw = json.loads((FLAVOUR_FOLDER / "tiny" / "config.json").read_text())
        (tmp_path / "config.json").write_text(
            json.dumps({**raw, "max_dynamic_patch": 12, "use_thumbnail": True, **config})
        )
        (tmp_path / "tokenizer.json").write_text(TOKENIZER.raw, encoding="utf-8")
        if preprocessor is not None:
            text = preprocessor if isinstance(preprocessor, str) else json.dumps(preprocessor)
            (tmp_path / "preprocessor_config.json").write_text(text)
        return tmp_path

    def test_the_preprocessor_file_wins_over_the_config(self, tmp_path):
        """The released 2B folder says 12 in config.json and 10 here."""
        processor = Processor.from_folder(self.folder(tmp_path, {**RELEASED, "image_size": 32, "patch_size": 8}))
        assert processor.settings == ProcessorSettings(max_tiles=10)
        assert processor.prompt(ask(noise(320, 32)), Mode.direct).images[0].shape[0] == 11
        assert processor.prompt(ask(noise(384, 32)), Mode.direct).images[0].shape[0] == 11

    def test_without_the_file_the_config_says(self, tmp_path):
        assert Processor.from_folder(self.folder(tmp_path, None)).settings == ProcessorSettings(max_tiles=12)

    def test_written_back_in_the_released_schema(self, tmp_path):
        config = SailVL2Config.from_folder(FLAVOUR_FOLDER / "sailvl2_2b")
        published = ProcessorSettings(max_tiles=10).to_published(config)
        assert {key: published[key] for key in RELEASED} == RELEASED
        assert config.max_dynamic_patch == 12

    def test_a_saved_processor_comes_back(self, tmp_path):
        changed = ProcessorSettings(7, 2, False, True, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 2, True)
        processor = Processor.from_folder(self.folder(tmp_path, None)).with_settings(**vars(changed))
        processor.save(tmp_path)
        again = Processor.from_folder(tmp_path)
        assert again.settings == changed
        image = noise(100, 40)
        assert torch.equal(again.pixels(image), processor.pixels(image))

    @pytest.mark.parametrize(
        ("preprocessor", "expected"),
        [
            ("{", "preprocessor_config.json: "),
            ("[]", "expected a JSON object, found list"),
            ({"image_size": 448}, "image_size: expected 32 as in config.json, found 448"),
            ({"max_dynamic_patch": 0}, "max_tiles: expected a positive whole number, found 0"),
            ({"max_dynamic_patch": "10"}, "max_tiles: expected a positive whole number, found '10'"),
            ({"max_dynamic_patch": 10**9}, "expected 1 <= min <= max <= 1024"),
            ({"use_msac": "yes"}, "use_msac: expected true or false, found 'yes'"),
            ({"image_mean": [0.5]}, "image_mean: expected three numbers"),
            ({"image_mean": [0.5, None, 0.5]}, "image_mean: expected three numbers"),
            ({"image_mean": 3}, "preprocessor_config.json: "),
            ({"image_std": [0.5, 0.0, 0.5]}, "image_std: expected positive numbers"),
            ({"image_std": [0.5, float("nan"), 0.5]}, "image_std: expected three numbers"),
        ],
    )
    def test_files_that_make_no_sense(self, tmp_path, preprocessor, expected):
        with pytest.raises(ValueError, match=expected) as error:
            Processor.from_folder(self.folder(tmp_path, preprocessor))
        assert "preprocessor_config.json" in str(error.value)

    def test_other_means_are_used(self):
        plain = TINY.with_settings(image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
        assert torch.equal(
            plain.pixels(Image.new("RGB", (5, 5), (255, 0, 51)))[0, :, 0, 0], torch.tensor([1, 0, 51 / 255])
        )


def test_caps_of_the_media_module_hold_for_sizes_too(tmp_path, monkeypatch):
    noise(20, 10).save(tmp_path / "a.png")
    monkeypatch.setattr(media, "MAX_PIXELS", 199)
    with pytest.raises(MediaError, match="expected at most 199 pixels"):
        image_size(tmp_path, "a.png")
