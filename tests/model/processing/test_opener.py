"""Images that a rank opens ahead are those that it would open when they are needed."""

import pytest
import torch

from model.batch import ModelInputs, Row, StoredPixels, pack_rows
from model.data.media_error import MediaError
from model.interface import Mode
from model.processing.opener import ImageOpener, OpenAhead
from model.processing.processor import Processor
from tests.model.corpus import layouts
from tests.model.data.test_video import write_video

HOW = OpenAhead(workers=1, patience_s=300.0, most_bytes=2**30)
VIDEO = {"type": "video", "video": "v.mp4", "num_frames": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        (folder / f"{number}.png").write_bytes(layouts.picture(number, size=(20 + 9 * number, 30)))
    write_video(folder / "v.mp4")
    return folder


def inputs_of(processor: Processor, folder, *rows: list) -> ModelInputs:
    """A micro-batch of references."""
    packed = []
    for media in rows:
        parts = [VIDEO if name == "v.mp4" else {"type": "image", "image": name} for name in media]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]
        prompt = processor.prompt(messages, Mode.direct, folder)
        packed.append(Row(prompt.ids, [[1, 2]], processor.pictures(folder, prompt.images)))
    return pack_rows(packed, processor.placeholder_id, processor.config.pixels_per_token)


def pixels(inputs: ModelInputs) -> list[torch.Tensor]:
    return list(inputs.to(torch.device("cpu")).pixels)  # pyright: ignore[reportReturnType]


@pytest.fixture
def opener():
    made = ImageOpener()
    yield made
    if made._workers is not None:
        made._workers.close()


def test_pixels_are_the_same_whenever_they_are_opened(tiny, folder, opener):
    processor = tiny[1].storing_pictures()
    for name in ("0.png", "1.png", "2.png"):  # references stand for images whose files were opened once
        inputs_of(processor, folder, [name])
    batches = [
        inputs_of(processor, folder, ["0.png", "v.mp4"], ["1.png"]),
        inputs_of(processor, folder, ["v.mp4"], ["0.png", "0.png"]),
        inputs_of(processor, folder, ["2.png"]),
    ]
    wanted = [pixels(one) for one in batches]
    assert all(isinstance(part, StoredPixels) for one in batches for part in one.pixels)
    opener.begin(batches[:2], HOW)
    for batch, right in zip(batches, wanted, strict=True):
        assert all(torch.equal(*pair) for pair in zip(pixels(opener.opened(batch)), right, strict=True))
    figures = opener.take_figures()
    assert (figures["images_opened"], figures["images_ahead"]) == (11, 10)  # the last one was not begun
    assert opener.take_figures()["images_opened"] == 0 and not opener._begun and not opener._num_bytes


def test_memory_is_bounded_and_what_was_begun_may_be_given_up(tiny, folder, opener):
    processor = tiny[1].storing_pictures()
    inputs_of(processor, folder, ["0.png"], ["1.png"])
    batch = inputs_of(processor, folder, ["0.png"], ["1.png"])
    (one,) = batch.pixels
    assert isinstance(one, StoredPixels)
    half = OpenAhead(1, 300.0, one.images[0].shape.numel())
    opener.begin([batch], half)
    opener.opened(batch)
    assert opener.take_figures()["images_ahead"] == 1
    opener.begin([batch], HOW)
    opener.forget()
    opener.opened(batch)
    assert opener.take_figures()["images_ahead"] == 0


def test_an_image_that_cannot_be_read_is_named(tiny, folder, opener):
    processor = tiny[1].storing_pictures()
    inputs_of(processor, folder, ["3.png"])
    batch = inputs_of(processor, folder, ["3.png"])
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[:-30])
    opener.begin([batch], HOW)
    with pytest.raises(MediaError, match=r"3\.png.*on host"):
        opener.opened(batch)
    (folder / "3.png").write_bytes(content)
