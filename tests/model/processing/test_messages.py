"""Images in messages: file names, addresses, PIL images and arrays; messages about them never print their content."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.data.media_error import MediaError
from model.interface import Mode
from model.processing.messages import shown


def png(size=(32, 32), mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def asked(*parts: object) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


def pixels(processor, root: Path | None, *parts: object) -> torch.Tensor:
    prompt = processor.prompt(asked(*parts), Mode.direct, root)
    return processor.open_images(root, prompt.images)[0]


@pytest.fixture
def processor(tiny):
    return tiny[1]


@pytest.mark.parametrize("nested", [True, False])
def test_openai_parts_hold_data_addresses_and_files_under_the_root(processor, tmp_path, nested):
    (tmp_path / "a b.png").write_bytes(content := png())
    expected = pixels(processor, tmp_path, {"type": "image", "image": "a b.png"})
    encoded = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    for address in (encoded, "a b.png", (tmp_path / "a b.png").as_uri()):
        part = {"type": "image_url", "image_url": {"url": address, "detail": "high"} if nested else address}
        assert torch.equal(pixels(processor, tmp_path, part), expected), address


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 3), (32, 32, 4)])
def test_arrays_of_bytes_are_images(processor, shape):
    array = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    as_image = {"type": "image", "image": Image.fromarray(array)}
    assert torch.equal(pixels(processor, None, {"type": "image", "image": array}), pixels(processor, None, as_image))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image", "image": np.zeros((300, 300))}, "expected an array of uint8 .* found float64 [300, 300]"),
        ({"type": "image", "image": np.zeros((3, 300, 300), np.uint8)}, "found uint8 [3, 300, 300]"),
        ({"type": "image", "image": np.zeros((0, 3), np.uint8)}, "found uint8 [0, 3]"),
        ({"type": "image", "image": torch.zeros(900, 900)}, "a PIL image or an array of uint8, found Tensor"),
        ({"type": "picture", "image": np.zeros((300, 300))}, "found {'type': 'picture', 'image': array of float64"),
        ({"type": "image"}, "expected parts of type text, image, image_url or video, found {'type': 'image'}"),
        ({"type": "image_url", "image_url": {"url": "https://host/a.png"}}, "found 'https://host/a.png'; nothing is downloaded here"),
        ({"type": "image", "image": "http://host/a.png"}, "fetch the image first"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}, "expected base64"),
        ([1] * 10_000, "found list of 10000"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named_without_its_content(processor, tmp_path, part, said):
    with pytest.raises(ValueError, match=re.escape(said).replace(r"\.\*", ".*")) as error:
        processor.prompt(asked(part), Mode.direct, tmp_path)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_file_outside_the_root_is_refused_however_it_is_named(processor, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "data").mkdir()
    for name in ("../secret.png", str(tmp_path / "secret.png"), (tmp_path / "secret.png").as_uri()):
        with pytest.raises(MediaError, match="expected a path inside"):
            pixels(processor, tmp_path / "data", {"type": "image_url", "image_url": {"url": name}})


def test_damaged_bytes_of_a_data_address_are_named(processor):
    encoded = base64.b64encode(png()[:200]).decode()
    with pytest.raises(MediaError, match="image of 200 bytes: expected a whole image"):
        pixels(processor, None, {"type": "image", "image": f"data:image/png;base64,{encoded}"})


def test_messages_that_are_arrays_are_not_printed(processor):
    for messages in (
        [np.zeros((500, 500))],
        [{"role": "user", "content": np.zeros((500, 500))}],
        [{"role": [1] * 999}],
    ):
        with pytest.raises(ValueError) as error:
            processor.prompt(messages, Mode.direct)
        assert len(str(error.value)) < 200
    assert shown("a" * 500) == repr("a" * 60 + "...") and shown(3.5) == "3.5" and shown((1, 2)) == "tuple of 2"
