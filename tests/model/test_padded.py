"""Whole conversations: what trains is what assistants wrote; batches; and text that tries to be more than text."""

import random

import pytest
import torch
from PIL import Image

from model.config import FLAVOUR_FOLDER, Flavour, flavour_config
from model.interface import CONTROL_TOKENS, DEFAULT_SYSTEM_TEXT, THINKING_INSTRUCTION, Mode
from model.processing.processor import Processor
from model.processing.tokenizer import Tokenizer

PROCESSOR = Processor(flavour_config(Flavour.tiny), Tokenizer.from_folder(FLAVOUR_FOLDER / "tiny"))
TILED = PROCESSOR.with_settings(max_tiles=6, use_thumbnail=True)
CONTROL = PROCESSOR.tokenizer.control
SYSTEM = f"<|im_start|>system\n{DEFAULT_SYSTEM_TEXT}<|im_end|>"
IMAGE = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>\n"


def show(ids):
    return PROCESSOR.tokenizer.decode(ids, keep_control=True)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def picture(width=32, height=32):
    return {"type": "image", "image": Image.new("RGB", (width, height))}


def spans(tokens) -> list[str]:
    """Texts of the maximal runs of weight 1."""
    runs, current = [], []
    for index, weight in zip(tokens.ids, tokens.loss_weights, strict=True):
        assert weight in (0.0, 1.0)
        if weight:
            current.append(index)
        elif current:
            runs.append(show(current))
            current = []
    return [*runs, show(current)] if current else runs


class TestLossSpans:
    def test_content_and_end_of_each_assistant_turn(self):
        messages = [
            user([picture(), {"type": "text", "text": "a"}]),
            assistant("b"),
            user("c"),
            assistant("<think>d</think>e"),
        ]
        tokens = PROCESSOR.conversation(messages, Mode.think)
        assert show(tokens.ids) == (
            f"{SYSTEM}<|im_start|>user\n{IMAGE}a<|im_end|><|im_start|>assistant\nb<|im_end|>"
            f"<|im_start|>user\nc{THINKING_INSTRUCTION}<|im_end|><|im_start|>assistant\n<think>d</think>e<|im_end|>"
        )
        assert spans(tokens) == ["b<|im_end|>", "<think>d</think>e<|im_end|>"]
        assert len(tokens.ids) == len(tokens.loss_weights)

    @pytest.mark.parametrize("text", ["b", "", "\nb", "\n\n", " b ", "</think>", "<think>x</think>\\boxed{3}", "思考"])
    def test_it_is_the_prompt_and_then_the_completion(self, text):
        """Also where a merge could cross from the header into the content."""
        asked = [{"role": "system", "content": "s"}, user([picture(96, 64), {"type": "text", "text": "a"}])]
        for mode in Mode:
            tokens = TILED.conversation([*asked, assistant(text)], mode)
            prompt = TILED.prompt(asked, mode)
            completion = TILED.completion(text)
            assert tokens.ids == prompt.ids + completion
            assert tokens.placeholder_ids == prompt.placeholder_ids + completion
            assert tokens.loss_weights == [0.0] * len(prompt.ids) + [1.0] * len(completion)
            assert len(TILED.open_images(None, tokens.images)[0]) == 7

    def test_parts_of_an_assistants_text_are_one_span(self):
        parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
        assert spans(PROCESSOR.conversation([user("a"), assistant(parts)], Mode.direct)) == ["xy<|im_end|>"]

    def test_an_assistant_writes_think_tags_and_no_other_control_token(self):
        tokens = PROCESSOR.conversation([user("a"), assistant("<|im_end|><IMG_CONTEXT><think>")], Mode.direct)
        trained = [i for i, weight in zip(tokens.ids, tokens.loss_weights, strict=True) if weight]
        assert [i for i in trained if i in CONTROL.values()] == [CONTROL["<think>"], CONTROL["<|im_end|>"]]

    @pytest.mark.parametrize(
        ("messages", "expected"),
        [
            ([], "expected a list that ends with an assistant message"),
            ([user("a")], "expected a list that ends with an assistant message"),
            ([assistant("a")], "expected a user message for the assistant to answer"),
            (["a", assistant("a")], r"messages\[0\]: expected an object"),
            ([user("a"), assistant([picture()])], "expected an assistant to write text"),
        ],
    )
    def test_refused(self, messages, expected):
        with pytest.raises(ValueError, match=expected):
            PROCESSOR.conversation(messages, Mode.direct)


def test_the_instruction_directly_or_on_a_line_of_its_own():
    lined = PROCESSOR.with_settings(instruction_on_new_line=True)
    for processor, between in ((PROCESSOR, ""), (lined, "\n")):
        shown = show(processor.prompt([user("a")], Mode.think).ids)
        assert f"user\na{between}{THINKING_INSTRUCTION}<|im_end|>" in shown
    assert lined.prompt([user("a")], Mode.direct).ids == PROCESSOR.prompt([user("a")], Mode.direct).ids


class TestBatch:
    conversations = (
        [user("a")],
        [user([picture(96, 64), picture(32, 32), {"type": "text", "text": "which?"}]), assistant("both")],
        [{"role": "system", "content": "Be brief."}, user([picture(64, 32)]), assistant("x"), user("y")],
    )

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_each_row_is_its_conversation_and_padding(self, side):
        batch = TILED.batch(self.conversations, Mode.think, padding_side=side)
        single = [
            TILED.prompt(self.conversations[0], Mode.think),
            TILED.conversation(self.conversations[1], Mode.think),
        ]
        single.append(TILED.prompt(self.conversations[2], Mode.think))
        length = max(len(tokens.ids) for tokens in single)
        assert batch.token_ids.shape == batch.attention_mask.shape == batch.loss_weights.shape == (3, length)
        for row, tokens in enumerate(single):
            used = batch.attention_mask[row].bool()
            size = len(tokens.ids)
            assert used[-size:].all() if side == "left" else used[:size].all()
            assert used.sum() == size and batch.token_ids[row][used].tolist() == tokens.ids
            assert set(batch.token_ids[row][~used].tolist()) <= {CONTROL["<|endoftext|>"]}
        assert batch.loss_weights[[0, 2]].sum() == 0
        trained = batch.token_ids[1][batch.loss_weights[1] == 1].tolist()
        assert show(trained) == "both<|im_end|>"

    def test_pixels_and_their_owners(self):
        batch = TILED.batch(self.conversations, Mode.direct)
        assert batch.tiles_per_image == (7, 1, 3) and batch.images_per_row == (0, 2, 1)
        assert [tuple(p.shape) for p in batch.pixels] == [(n, 3, 32, 32) for n in (7, 1, 3)]
        assert (batch.token_ids == TILED.placeholder_id).sum(1).tolist() == [0, 32, 12]
        assert batch.to(torch.device("cpu")) is batch

    def test_refused(self):
        with pytest.raises(ValueError, match="expected at least one conversation"):
            PROCESSOR.batch([], Mode.direct)
        with pytest.raises(ValueError, match="padding_side: expected left or right, found 'middle'"):
            PROCESSOR.batch([[user("a")]], Mode.direct, padding_side="middle")
        with pytest.raises(ValueError, match="expected a list that ends with a user message"):
            PROCESSOR.batch([[]], Mode.direct)


SPELLINGS = (
    *[*CONTROL_TOKENS, "<image>", "<video>", "<|vision_start|>", "<|image_pad|>", "<tool_call>", "<s>", "[INST]"],
    *["<|im_", "start|>", "end|>", "<|", "|>", "<", ">", "</", "<think", "think>", "<IMG", "_CONTEXT>", "IMG_CONTEXT"],
    *["system\n", "\nassistant\n", "user", "\n", "\r\n", "\t", " ", "\0", "\u200b", "\u202e", "\ufeff", "\ufffd"],
    *["＜think＞", "‹think›", "<ｔhink>", "e\u0301", "思考", "👩‍👩‍👧", "\U0010ffff", "İ", "ß", "ſ", "\x7f", "\\u003c"],
    *["&lt;think&gt;", "%3Cthink%3E", "Frame-1: ", "Ġ", "Ċ", "<0x0A>", "151667", "\ue000"],
)


def adversarial(rng: random.Random) -> str:
    pieces = []
    for _ in range(rng.randrange(1, 8)):
        kind = rng.random()
        if kind < 0.65:
            pieces.append(rng.choice(SPELLINGS))
        elif kind < 0.85:
            name = rng.choice(CONTROL_TOKENS)
            pieces.append(name[rng.randrange(len(name)) :] if rng.random() < 0.5 else name[: rng.randrange(len(name))])
        else:
            code = rng.choice([rng.randrange(128), rng.randrange(0x800), rng.randrange(0x110000)])
            pieces.append(chr(code) if not 0xD800 <= code < 0xE000 else "?")
    return "".join(pieces)


def test_ten_thousand_strings_that_try_to_be_control_tokens():
    """No control id comes from users' or system text, and placeholders are as many as features."""
    rng = random.Random(20240)
    bare = {}
    for _ in range(10_000):
        texts = [adversarial(rng) for _ in range(rng.choice([1, 1, 2]))]
        num_images = rng.choice([0, 0, 1, 2])
        parts = [{"type": "text", "text": text} for text in texts]
        parts += [{"type": "image", "image": "a.png"}] * num_images
        rng.shuffle(parts)
        mode = rng.choice(list(Mode))
        messages = [user(parts)]
        if rng.random() < 0.3:
            messages.insert(0, {"role": "system", "content": adversarial(rng)})
        ids = PROCESSOR.prompt(messages, mode).ids
        control = [index for index in ids if index in PROCESSOR.tokenizer.control.values()]
        key = (num_images, mode)
        if key not in bare:
            template = PROCESSOR.prompt([user([{"type": "image", "image": "a.png"}] * num_images)], mode).ids
            bare[key] = [index for index in template if index in CONTROL.values()]
        assert control == bare[key], texts
        assert ids.count(PROCESSOR.placeholder_id) == 4 * num_images
        shown = show(ids)
        assert all(text in shown for text in texts)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "<think>\udc80", "\udcff<|im_end|>"])
def test_half_a_surrogate_pair_is_refused_in_every_place(text):
    for messages in (
        [user(text)],
        [user([{"type": "text", "text": text}])],
        [{"role": "system", "content": text}, user("a")],
        [user("a"), assistant(text), user("b")],
    ):
        with pytest.raises(ValueError, match="found a lone surrogate"):
            PROCESSOR.prompt(messages, Mode.direct)
    with pytest.raises(ValueError, match="found a lone surrogate"):
        PROCESSOR.conversation([user("a"), assistant(text)], Mode.direct)
