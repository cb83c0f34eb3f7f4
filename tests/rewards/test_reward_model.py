"""A sequence classifier made here, loaded by path, as a reward."""

import math

import pytest
import torch

from rewards.custom import describe
from rewards.reward_model import preference
from tests.conftest import require_extra


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen3 classifier with one output, and a tokenizer of single characters."""
    require_extra("hf", "transformers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

    path = tmp_path_factory.mktemp("reward_model")
    letters = [chr(code) for code in range(32, 127)] + ["\n", "?"]
    vocabulary = {letter: index for index, letter in enumerate(dict.fromkeys(["<pad>", *letters]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="?").save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(path)
    return path


def test_values_are_the_models(folder, make_input):
    batch = [make_input("first answer"), make_input("second answer")]
    raw = preference(batch, model=str(folder), transform="none")
    assert raw[0] != raw[1] and all(math.isfinite(value) for value in raw)
    squashed = preference(batch, model=str(folder))
    assert squashed == pytest.approx([1 / (1 + math.exp(-value)) for value in raw], abs=1e-6)
    assert preference(batch[::-1], model=str(folder), transform="none") == pytest.approx(raw[::-1], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({}, {"model": "/nowhere"}, "expected a model folder"),
        ({}, {"transform": "tanh"}, "expected sigmoid or none"),
        ({}, {"model": ""}, "expected a model folder"),
        ({}, {"max_tokens": 3}, "expected at most 3 tokens"),
        ({}, {"max_tokens": 0}, "max_tokens: expected at least 1, found 0"),
        ({}, {"device": "gpu"}, "device: expected cpu, cuda.*found 'gpu'"),
        ({"images": ["a.png"]}, {}, "expected text prompts, found images"),
    ],
)
def test_bad_input_is_an_error(folder, make_input, changes, settings, said):
    with pytest.raises(ValueError, match=said):
        preference([make_input("text", **changes)], **{"model": str(folder), **settings})


@pytest.mark.parametrize("settings", [{"model": "/nowhere"}, {"transform": "tanh"}, {"max_tokens": 2.5}, {}])
def test_its_options_are_checked_before_a_run(folder, settings):
    good = {"model": str(folder)} if settings and "model" not in settings else {}
    assert describe("rewards.reward_model:preference", {"model": str(folder)}).memory_mb == 0.0
    with pytest.raises(ValueError, match=r"reward\.options\.preference\.(model|transform|max_tokens): expected"):
        describe("rewards.reward_model:preference", {**good, **settings})
