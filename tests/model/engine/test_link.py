"""Messages between ranks: whatever their tensors are, what arrives is what was sent."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.batch import Row, StoredPixels, pack_rows
from model.checkpoint import build_flavour
from model.config import Flavour
from model.data.media_error import MediaError
from model.engine import link
from model.engine.link import _pack, _Unpickler
from model.interface import Mode


def sent(message: object) -> object:
    """A message as the other side unpacks it."""
    sizes, content, *large = _pack(message)
    waiting = iter(large)
    length, joined = sizes.tolist()
    assert content.numel() == length + joined
    return _Unpickler(content, length, lambda tensor: tensor.copy_(next(waiting))).load()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.zeros(0, 4),
        torch.tensor(3.5),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(1).expand(5),
        torch.randn(600_000),
        torch.empty(1, 1)[:, 0],
    ],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
)
def test_tensors_arrive_as_they_were(tensor):
    found = sent({"a": [tensor, "text"], "b": tensor})
    assert isinstance(found, dict)
    for one in (found["a"][0], found["b"]):
        assert one.dtype == tensor.dtype and one.shape == tensor.shape
        assert torch.equal(one.nan_to_num(), tensor.nan_to_num()) and one.is_contiguous()


def test_micro_batches_arrive_whole():
    model, processor = build_flavour(Flavour.tiny_moe, 0)
    row = Row([processor.placeholder_id] * 4 + [1], [[3, 4], [5]], (torch.randn(1, 3, 32, 32),))
    inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
    assert torch.equal(model(sent(inputs)).logprobs, model(inputs).logprobs)


class TestPictures:
    @pytest.fixture
    def stored(self, tmp_path):
        """(processor, micro-batch with a picture in a file, the same with its pixels)."""
        _, processor = build_flavour(Flavour.tiny, 0)
        pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        messages = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}]
        prompt = processor.prompt(messages, Mode.direct, tmp_path)
        made = []
        for own in (processor.storing_pictures(), processor):
            images = own.pictures(tmp_path, prompt.images)
            row = Row(prompt.ids, [[1]], images)
            made.append(pack_rows([row], processor.placeholder_id, processor.config.pixels_per_token))
        return processor, *made

    def test_they_travel_as_references_and_are_opened_where_they_arrive(self, stored):
        _, by_reference, plain = stored
        assert isinstance(by_reference.pixels[0], StoredPixels)
        assert sum(tensor.numel() for tensor in _pack(by_reference)) < 4096 < plain.pixels[0].nbytes
        arrived = sent(by_reference)
        assert arrived.num_tiles == plain.num_tiles and not arrived.is_open
        opened = arrived.to(torch.device("cpu"))
        assert opened.is_open and torch.equal(opened.pixels[0], plain.pixels[0])

    def test_a_rank_that_does_not_see_the_file_says_so(self, stored, tmp_path):
        _, by_reference, _ = stored
        (tmp_path / "a.png").unlink()
        with pytest.raises(MediaError, match=r"a\.png.*on host .*: every process of an engine must see"):
            sent(by_reference).to(torch.device("cpu"))

    def test_a_damaged_file_is_known_where_the_row_is_made(self, tmp_path):
        _, processor = build_flavour(Flavour.tiny, 0)
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        whole = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MediaError):
            processor.storing_pictures().pictures(tmp_path, ["a.png"])


def test_small_tensors_share_one_message():
    """One message for sizes, one for all that is small, one for each large tensor."""
    many = [torch.zeros(10) for _ in range(100)]
    assert len(_pack(many)) == 2
    assert len(_pack([*many, torch.zeros(link._SMALL_BYTES)])) == 3
