"""Messages and images to ids and pixels: the published template, built so that text stays text."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples.digits.task import Family
from model.config import FLAVOUR_FOLDER, SailVL2Config
from model.data.media_error import MediaError
from model.data.tables import Table
from model.interface import AUTO_INSTRUCTION, CONTROL_TOKENS, DEFAULT_SYSTEM_TEXT, THINKING_INSTRUCTION, Mode
from model.processing.processor import Processor
from model.processing.settings import IMAGENET_MEAN, IMAGENET_STD
from model.processing.tokenizer import Tokenizer

CONFIG = SailVL2Config.from_folder(FLAVOUR_FOLDER / "tiny")
PROCESSOR = Processor(CONFIG, Tokenizer.from_folder(FLAVOUR_FOLDER / "tiny"))
CONTROL = PROCESSOR.tokenizer.control
NAMES = {index: name for name, index in CONTROL.items()}
IMAGE = "<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
SYSTEM = f"<|im_start|>system\n{DEFAULT_SYSTEM_TEXT}<|im_end|>"

user_text = st.lists(st.one_of(st.sampled_from(CONTROL_TOKENS), st.text(max_size=5))).map("".join)
user_part = st.one_of(
    user_text.map(lambda text: {"type": "text", "text": text}), st.just({"type": "image", "image": "a.png"})
)
user_content = st.one_of(user_text, st.lists(user_part, max_size=4))


def show(ids):
    return PROCESSOR.tokenizer.decode(ids, keep_control=True)


def controls(ids) -> Counter:
    return Counter(NAMES[index] for index in ids if index in NAMES)


def user(*parts):
    """A user message; parts that end in .png are images."""
    return {
        "role": "user",
        "content": [
            {"type": "image", "image": part} if part.endswith(".png") else {"type": "text", "text": part}
            for part in parts
        ],
    }


class TestTemplate:
    def test_default_system_text_and_an_image(self):
        prompt = PROCESSOR.prompt([user("a.png", "How many?")], Mode.direct)
        assert show(prompt.ids) == f"{SYSTEM}<|im_start|>user\n{IMAGE}How many?<|im_end|><|im_start|>assistant\n"
        assert prompt.files == ["a.png"]

    def test_thinking_appends_the_instruction_to_the_last_user_turn_only(self):
        messages = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
        assert show(PROCESSOR.prompt(messages, Mode.think).ids) == (
            f"{SYSTEM}<|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|>"
            f"<|im_start|>user\nc{THINKING_INSTRUCTION}<|im_end|><|im_start|>assistant\n"
        )

    def test_mode_auto_appends_our_instruction_whose_think_tags_are_tokens(self):
        prompt = PROCESSOR.prompt([user("c")], "auto")
        assert show(prompt.ids).endswith(f"c{AUTO_INSTRUCTION}<|im_end|><|im_start|>assistant\n")
        assert controls(prompt.ids)["<think>"] == 1 and "<judge>" in AUTO_INSTRUCTION

    def test_own_system_text_replaces_the_default(self):
        prompt = PROCESSOR.prompt([{"role": "system", "content": "Be brief."}, user("a")], Mode.direct)
        assert show(prompt.ids) == (
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\na<|im_end|><|im_start|>assistant\n"
        )

    def test_images_stand_where_they_are_named(self):
        messages = [user("x", "a.png", "y", "b.png"), {"role": "assistant", "content": "z"}, user("c.png")]
        prompt = PROCESSOR.prompt(messages, Mode.direct)
        assert show(prompt.ids).removeprefix(SYSTEM) == (
            f"<|im_start|>user\nx{IMAGE}y{IMAGE}<|im_end|><|im_start|>assistant\nz<|im_end|>"
            f"<|im_start|>user\n{IMAGE}<|im_end|><|im_start|>assistant\n"
        )
        assert prompt.files == ["a.png", "b.png", "c.png"]

    def test_ids_are_those_of_the_joined_text_between_control_tokens(self):
        """Merges cross the borders of our parts exactly as if the published template had been encoded whole."""
        encode = PROCESSOR.tokenizer.encode
        before, between, after = THINKING_INSTRUCTION.replace("</think>", "<think>").split("<think>")
        start, end = CONTROL["<|im_start|>"], CONTROL["<|im_end|>"]
        assert PROCESSOR.prompt([user("a.png", "How ", "many?")], Mode.think).ids == [
            *[start, *encode(f"system\n{DEFAULT_SYSTEM_TEXT}"), end, start, *encode("user\n")],
            *[CONTROL["<img>"], *[CONTROL["<IMG_CONTEXT>"]] * 4, CONTROL["</img>"], *encode(f"\nHow many?{before}")],
            *[CONTROL["<think>"], *encode(between), CONTROL["</think>"], *encode(after), end],
            *[start, *encode("assistant\n")],
        ]

    def test_placeholder_form_has_one_placeholder_per_image(self):
        prompt = PROCESSOR.prompt([user("a.png", "and", "b.png")], Mode.think)
        placeholder = CONTROL["<IMG_CONTEXT>"]
        assert prompt.placeholder_ids.count(placeholder) == 2 and prompt.ids.count(placeholder) == 8
        expanded = [i for index in prompt.placeholder_ids for i in ([index] * 4 if index == placeholder else [index])]
        assert prompt.ids == expanded

    @pytest.mark.parametrize(
        ("text", "tags"),
        [
            ("<think>a</think>b", ["<think>", "</think>"]),
            ("</think>a<think>b", ["</think>", "<think>"]),
            ("<think>a</think><think>b</think>", ["<think>", "</think>"] * 2),
        ],
    )
    def test_think_tags_of_an_earlier_completion_are_tokens_where_they_stand(self, text, tags):
        prompt = PROCESSOR.prompt([user("q"), {"role": "assistant", "content": text}, user("r")], Mode.direct)
        assert f"<|im_start|>assistant\n{text}<|im_end|>" in show(prompt.ids)
        assert [NAMES[index] for index in prompt.ids if index in NAMES and "think" in NAMES[index]] == tags

    def test_thinking_prompts_of_the_digits_task_fit_its_limit(self, digits_folder):
        seen = set()
        for split in ("train", "validation", "test", "demonstrations"):
            for row in Table(digits_folder / f"{split}.jsonl").rows():
                prompt = PROCESSOR.prompt(row.columns["messages"], Mode.think)
                assert prompt.ids.count(CONTROL["<IMG_CONTEXT>"]) == 4 and len(prompt.ids) <= 96
                seen.add(tuple(prompt.ids))
        assert len(seen) == len(Family)  # the image apart, a prompt is its question

    def test_completion_ends_its_turn(self):
        assert show(PROCESSOR.completion("<think>a</think>b")) == "<think>a</think>b<|im_end|>"
        assert controls(PROCESSOR.completion("<|im_end|><think>")) == {"<think>": 1, "<|im_end|>": 1}

    def test_document_is_delimited_and_has_no_roles(self):
        prefix, texts = PROCESSOR.document("Digits:", ["12</think>", "3"], ["a.png", "b.png"])
        assert show(prefix) == f"<|endoftext|>{IMAGE}{IMAGE}Digits:"
        assert [show(text) for text in texts] == ["12</think><|endoftext|>", "3<|endoftext|>"]
        assert texts[0][-2] == CONTROL["</think>"]


@given(st.lists(user_content, min_size=1, max_size=3), st.one_of(st.none(), user_text), st.sampled_from(Mode))
def test_untrusted_text_never_adds_a_control_token(contents, system, mode):
    """The template's own control tokens are all there are, and the text reads back as it was written."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for content in contents:
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}]
    prompt = PROCESSOR.prompt(messages[:-1], mode)
    parts = [part for content in contents if isinstance(content, list) for part in content]
    num_images = sum(part["type"] == "image" for part in parts)
    turns = 2 * len(contents) + 1
    expected = Counter({"<|im_start|>": turns, "<|im_end|>": turns - 1, "<img>": num_images, "</img>": num_images})
    expected["<IMG_CONTEXT>"] = 4 * num_images
    expected.update({} if mode is Mode.direct else {"<think>": 1, "</think>": 1})
    assert controls(prompt.ids) == +expected
    assert len(prompt.images) == num_images
    texts = [content for content in contents if isinstance(content, str)]
    texts += [part["text"] for part in parts if part["type"] == "text"]
    shown = show(prompt.ids)
    assert all(text in shown for text in [*texts, DEFAULT_SYSTEM_TEXT if system is None else system])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "messages: expected a list that ends with a user message"),
        ([{"role": "assistant", "content": "a"}], "messages: expected a list that ends with a user message"),
        ([user("a"), {"role": "system", "content": "a"}], "messages: expected a list that ends with a user message"),
        (["hello"], r"messages\[0\]: expected an object with role and content, found 'hello'"),
        ([3], r"messages\[0\]: expected an object with role and content, found 3"),
        ([{"role": "tool", "content": "a"}, user("b")], r"role: expected system, user or assistant, found 'tool'"),
        ([{"content": "a"}, user("b")], r"role: expected system, user or assistant, found None"),
        ([{"role": "user"}], r"content: expected text or a list of parts, found None"),
        (
            [{"role": "user", "content": ["a"]}],
            r"content: expected parts of type text, image, image_url or video, found 'a'",
        ),
        (
            [{"role": "user", "content": [{"type": "audio", "audio": "a"}]}],
            "of type text, image, image_url or video, found .*audio",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 3}]}],
            "of type text, image, image_url or video, found .*3",
        ),
        ([{"role": "user", "content": "\ud800"}], "found a lone surrogate"),
    ],
)
def test_messages_that_do_not_fit_are_refused(messages, expected):
    with pytest.raises(ValueError, match=expected):
        PROCESSOR.prompt(messages, Mode.think)


def test_a_policy_may_sample_text_think_tags_and_the_end_of_its_turn_only():
    sampled = set(range(CONFIG.language.vocab_size)) - set(PROCESSOR.barred_ids)
    text = set(range(min(CONTROL.values())))
    assert sampled == text | {CONTROL["<think>"], CONTROL["</think>"], CONTROL["<|im_end|>"]}


def test_unused_rows_of_the_vocabulary_are_barred():
    language = dataclasses.replace(CONFIG.language, vocab_size=PROCESSOR.tokenizer.num_entries + 3)
    wider = Processor(dataclasses.replace(CONFIG, language=language), PROCESSOR.tokenizer)
    last = PROCESSOR.tokenizer.num_entries
    assert {last, last + 1, last + 2} <= set(wider.barred_ids) and max(wider.barred_ids) == last + 2


def test_configurations_that_do_not_fit_are_refused():
    entries = PROCESSOR.tokenizer.num_entries
    language = dataclasses.replace(CONFIG.language, vocab_size=entries - 1)
    with pytest.raises(ValueError, match=rf"vocab_size = {entries - 1} entries, found {entries}"):
        Processor(dataclasses.replace(CONFIG, language=language), PROCESSOR.tokenizer)


class TestPixels:
    @pytest.mark.parametrize("size", [(32, 32), (7, 100)])
    def test_one_colour_keeps_its_normalised_value_at_any_size(self, size):
        """Float32 keeps 7 digits; the resize works in 8 bits and leaves a constant image exact."""
        pixels = PROCESSOR.pixels(Image.new("RGB", size, (255, 128, 0)))
        wanted = (np.array([1.0, 128 / 255, 0.0]) - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == torch.float32
        torch.testing.assert_close(pixels[0, :, 5, 9], torch.tensor(wanted, dtype=torch.float32), atol=1e-6, rtol=0)
        assert torch.equal(pixels, pixels[..., :1, :1].expand_as(pixels))

    def test_rows_are_rows_and_columns_columns(self):
        image = Image.new("RGB", (32, 32))
        image.putpixel((3, 20), (255, 255, 255))  # x = 3, y = 20
        bright = (PROCESSOR.pixels(image)[0, 0] > 1).nonzero().tolist()
        assert bright == [[20, 3]]

    def test_tiles_are_stacked_in_the_order_of_the_names(self, tmp_path):
        for name, value in (("a.png", 0), ("b.png", 255)):
            Image.new("L", (32, 32), value).save(tmp_path / name)
        tiles = torch.cat(PROCESSOR.open_images(tmp_path, ["b.png", "a.png", "b.png"]))
        assert tiles.shape == (3, 3, 32, 32)
        assert (tiles[:, 0, 0, 0] > 1).tolist() == [True, False, True]
        assert PROCESSOR.open_images(tmp_path, []) == ()
        with pytest.raises(MediaError, match=r"c.png: expected a file, found none"):
            PROCESSOR.open_images(tmp_path, ["a.png", "c.png"])
