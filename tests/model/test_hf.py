"""transformers' classes over our modules: the same numbers, generation in batches, and folders both sides can read.

Tolerance: two float32 orders of the same sums differ by some 1e-6 of the logit scale; 2e-5 of it is the bar.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import model.hf  # noqa: F401  (registers the classes)
from model.batch import Row, pack_rows
from model.checkpoint import EMBEDDING, HEAD, build_flavour, load_model, save_model
from model.config import Flavour

PIXELS_PER_TOKEN, LENGTH = 16, 12


@pytest.fixture(scope="module", params=[Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
def pair(request, tmp_path_factory):
    """(our model, its processor, transformers' model of the same folder, the folder)."""
    folder = tmp_path_factory.mktemp("hf") / "checkpoint"
    ours, processor = build_flavour(request.param, 3)
    save_model(folder, ours, processor)
    return ours, processor, AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), folder


@pytest.fixture
def batch(pair):
    """Two prompts with an image each, and their pixels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 400, (2, LENGTH), generator=generator)
    ids[0, 2:6] = ids[1, 3:7] = pair[1].placeholder_id
    return ids, torch.randn(2, 3, 32, 32, generator=generator)


def our_logits(ours, processor, ids, pixels) -> torch.Tensor:
    rows = [Row(i[:-1].tolist(), [i[-1:].tolist()], [p[None]]) for i, p in zip(ids, pixels, strict=True)]
    hidden, _ = ours.hidden_states(pack_rows(rows, processor.placeholder_id, PIXELS_PER_TOKEN))
    return ours.language_model.lm_head(hidden).unflatten(0, ids.shape)


@torch.no_grad()
def test_logits_are_ours(pair, batch):
    ours, processor, theirs, _ = pair
    ids, pixels = batch
    expected = our_logits(ours, processor, ids, pixels)
    found = theirs(input_ids=ids, pixel_values=pixels).logits
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    backbone = theirs.base_model(input_ids=ids, pixel_values=pixels).last_hidden_state
    assert torch.equal(theirs.get_output_embeddings()(backbone), found)


@torch.no_grad()
def test_left_padding_and_the_cache_change_nothing(pair, batch):
    ours, processor, theirs, _ = pair
    ids, pixels = batch
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"max_new_tokens": 6, "do_sample": False}
    both = theirs.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **options)
    alone = theirs.generate(input_ids=ids[:1, 2:], pixel_values=pixels[:1], **options)
    assert both[0, LENGTH:].tolist() == alone[0, LENGTH - 2 :].tolist()
    uncached = theirs.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=False, **options)
    assert torch.equal(both, uncached)
    grown = ids[1:]
    for token in both[1, LENGTH:].tolist():  # our packed forward, a token at a time
        assert our_logits(ours, processor, torch.cat((grown, grown[:, :1]), 1), pixels[1:])[0, -2].argmax() == token
        grown = torch.cat((grown, torch.tensor([[token]])), 1)


def test_gradient_of_the_loss_is_that_of_the_packed_rows(pair, batch):
    ours, processor, theirs, _ = pair
    ids, pixels = batch
    labels = ids.clone()
    labels[:, :8] = -100
    theirs.zero_grad()
    theirs(input_ids=ids, pixel_values=pixels, labels=labels).loss.backward()
    rows = [Row(i[:8].tolist(), [i[8:].tolist()], [p[None]]) for i, p in zip(ids, pixels, strict=True)]
    ours.zero_grad()
    (-ours(pack_rows(rows, processor.placeholder_id, PIXELS_PER_TOKEN)).logprobs.mean()).backward()
    for name in ("vision_model.trunk.blocks.0.attn.qkv.weight", "mlp1.1.weight"):
        expected = ours.get_parameter(name).grad
        assert (theirs.model.get_parameter(name).grad - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_folder_that_transformers_wrote_is_a_checkpoint(pair, tmp_path):
    ours, processor, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    processor.save(tmp_path)
    again, _ = load_model(tmp_path)
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_config_says_what_trl_and_vllm_ask_for(pair):
    folder = pair[3]
    config = AutoConfig.from_pretrained(folder)
    assert config.get_text_config().vocab_size == pair[0].config.language.vocab_size
    assert config.image_token_id == pair[1].placeholder_id
    assert config.shapes() == pair[0].config


@torch.no_grad()
def test_text_alone_needs_no_pixels(pair):
    assert pair[2](input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 520)


def test_images_and_placeholders_must_agree(pair, batch):
    ids, pixels = batch
    with pytest.raises(ValueError, match="row 1: expected image placeholders for whole tiles"):
        pair[2](input_ids=ids, pixel_values=pixels[:1])
    with pytest.raises(ValueError, match="found NaN or infinity"):
        pair[2](input_ids=ids, pixel_values=pixels * float("nan"))


class TestFoldersThatDoNotFit:
    """transformers alone would draw missing tensors at random, and trust the config about the head."""

    @pytest.fixture
    def folder(self, tiny_folder, tmp_path):
        """A folder without a manifest, as one from the Hub."""
        copy = shutil.copytree(tiny_folder, tmp_path / "copy")
        (copy / "manifest.json").unlink()
        return copy

    def rewrite(self, folder, change) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def test_every_wrong_tensor_is_named(self, folder):
        def change(tensors):
            del tensors["mlp1.0.weight"]
            tensors["mlp1.9.weight"] = torch.zeros(1)
            tensors["mlp1.1.bias"] = torch.zeros(3)

        self.rewrite(folder, change)
        with pytest.raises(ValueError) as error:
            AutoModelForImageTextToText.from_pretrained(folder)
        for problem in ("missing mlp1.0.weight", "unexpected mlp1.9.weight", "mlp1.1.bias: expected"):
            assert problem in str(error.value)

    def test_truncated_shard_is_named(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(ValueError, match=r"model\.safetensors: expected a whole safetensors file"):
            AutoModelForImageTextToText.from_pretrained(folder)

    @pytest.mark.parametrize("stored_equal", [True, False])
    @pytest.mark.parametrize("config_says", [True, False])
    def test_stored_tensors_decide_whether_the_head_is_tied(self, folder, stored_equal, config_says):
        config = json.loads((folder / "config.json").read_text())
        config["llm_config"]["tie_word_embeddings"] = config_says
        (folder / "config.json").write_text(json.dumps(config))
        embedding = load_file(folder / "model.safetensors")[EMBEDDING]
        head = embedding.clone() if stored_equal else embedding + 1.0
        self.rewrite(folder, lambda tensors: tensors.update({HEAD: head}))
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        assert torch.equal(model.lm_head.weight, head)
        assert torch.equal(model.get_input_embeddings().weight, embedding)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == stored_equal
