"""Text and ids: what goes in comes out, digits stay single, and no text becomes a control token."""

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.digits.build_tokenizer import NUM_ENTRIES, texts
from model import interface
from model.config import FLAVOUR_FOLDER
from model.interface import CONTROL_TOKENS, THINK_END, THINK_START
from model.processing.processor import Processor
from model.processing.tokenizer import Tokenizer, train_tokenizer

TINY = FLAVOUR_FOLDER / "tiny"
TOKENIZER = Tokenizer.from_folder(TINY)
CONTROL_IDS = set(TOKENIZER.control.values())

pieces = st.sampled_from(
    [*CONTROL_TOKENS, "<|im_", "end|>", "<think", ">", "<IMG_", " ", "\n", "\r\n", "1234", "e\u0301", "思考"]
)
any_text = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=3))).map("".join))


@given(any_text)
def test_any_text_comes_back_and_never_as_control_tokens(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == TOKENIZER.decode(ids, keep_control=True) == text
    assert not CONTROL_IDS & set(ids)


@pytest.mark.parametrize("name", CONTROL_TOKENS)
def test_spelled_control_token_is_ordinary_text(name):
    ids = TOKENIZER.encode(name)
    assert len(ids) > 1 and not CONTROL_IDS & set(ids) and TOKENIZER.decode(ids) == name


@given(any_text)
def test_think_tags_of_a_completion_are_tokens_and_come_back(text):
    ids = TOKENIZER.encode_with_think_tags(text)
    think = {TOKENIZER.control[THINK_START], TOKENIZER.control[THINK_END]}
    assert TOKENIZER.decode(ids) == text
    assert sum(index in think for index in ids) == len(re.findall("</?think>", text))
    assert not (CONTROL_IDS - think) & set(ids)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc80<think>"])
def test_lone_surrogates_are_refused_by_name(text):
    """JSON can spell half a surrogate pair; UTF-8 cannot hold it."""
    for encode in (TOKENIZER.encode, TOKENIZER.encode_with_think_tags):
        with pytest.raises(ValueError, match="found a lone surrogate in"):
            encode(text)


def test_decoding_drops_control_tokens_but_the_think_tags():
    control = TOKENIZER.control
    hello = TOKENIZER.encode("hé")
    ids = [control["<|im_start|>"], control["<think>"], *hello, control["</think>"], *hello, control["<|im_end|>"]]
    assert TOKENIZER.decode(ids) == "<think>hé</think>hé"
    assert TOKENIZER.decode(ids, keep_control=True) == "<|im_start|><think>hé</think>hé<|im_end|>"


def test_a_completion_that_stops_inside_a_character_decodes():
    first, *rest = TOKENIZER.encode("思")
    assert rest, "the test needs a character of several tokens"
    assert TOKENIZER.decode([first]) == "\ufffd"
    assert TOKENIZER.decode([first, TOKENIZER.control["</think>"], *rest]).endswith("\ufffd")


@given(st.integers(0, 10**30))
def test_every_digit_is_a_token_of_its_own(number):
    assert [TOKENIZER.decode([index]) for index in TOKENIZER.encode(str(number))] == list(str(number))


def test_no_entry_joins_a_digit_with_anything():
    entries = json.loads(TOKENIZER.raw)["model"]["vocab"]
    assert {entry for entry in entries if re.search("[0-9]", entry)} == set("0123456789")


def test_size_and_order_of_the_entries():
    assert TOKENIZER.num_entries <= 1024
    assert list(TOKENIZER.control) == list(CONTROL_TOKENS)
    last = TOKENIZER.num_entries
    assert list(TOKENIZER.control.values()) == list(range(last - len(CONTROL_TOKENS), last))
    assert TOKENIZER.end_id == TOKENIZER.control["<|im_end|>"]


def test_shipped_tokenizer_is_what_the_tasks_texts_give_byte_for_byte():
    rebuilt = train_tokenizer(texts(), NUM_ENTRIES)
    assert rebuilt.raw.encode() == (TINY / "tokenizer.json").read_bytes()


def test_interface_strings_are_the_published_ones(monkeypatch, tiny):
    """The expected sums are copied from our notes on the released model, not from the module."""
    digests = [
        hashlib.sha256(text.encode()).hexdigest()
        for text in (interface.THINKING_INSTRUCTION, interface.DEFAULT_SYSTEM_TEXT)
    ]
    assert digests == [
        "ce8dbcf37ba747f35b4951d2f267615c7621d8c4d20ffc9524202081ed98bf5f",
        "6954e88e7e35548c871bf7b1c1a0d49bdda105b71958fe68db0d325ec1abeab6",
    ]
    config = tiny[1].config
    monkeypatch.setattr(interface, "DEFAULT_SYSTEM_TEXT", interface.DEFAULT_SYSTEM_TEXT + " ")
    with pytest.raises(ValueError, match="default_system_text: expected sha256 6954e88e"):
        Processor(config, TOKENIZER)


class TestFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match=r"expected a tokenizer.json in the checkpoint folder"):
            Tokenizer.from_folder(tmp_path)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"added_tokens": []}', '{"added_tokens": [{}]}'])
    def test_damaged(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer.json: expected a tokenizer.json with added_tokens"):
            Tokenizer.from_folder(tmp_path)

    def test_without_a_control_token(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text(TOKENIZER.raw.replace('"<IMG_CONTEXT>"', '"<other>"'))
        with pytest.raises(ValueError, match=r"added_tokens: expected \['<IMG_CONTEXT>'\], found only"):
            Tokenizer.from_folder(tmp_path)

    def test_exported_folder_gives_the_same_ids_in_transformers(self, tiny_folder):
        """On plain text; a control token's spelling is one token there, which is why users' text never goes that way."""
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(tiny_folder)
        prose = [
            "What is the sum of the four digits?",
            "  Don't I'LL\r\n\tx \n",
            "3+7=10,10+1=11",
            "思考 e\u0301 \u212b １２ \x00",
        ]
        for text in [*prose, interface.DEFAULT_SYSTEM_TEXT]:
            assert theirs.encode(text) == TOKENIZER.encode(text), text
            assert theirs.decode(TOKENIZER.encode(text)) == text
        completion = "<think>3719:3+7=10</think>\\boxed{20}"
        assert theirs.encode(completion) == TOKENIZER.encode_with_think_tags(completion)
        assert theirs.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(TOKENIZER.control.values())
        assert (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")


def changed(change) -> str:
    """The shipped tokenizer.json after `change(description)`."""
    description = json.loads(TOKENIZER.raw)
    change(description)
    return json.dumps(description)


class TestStoredSettings:
    """What a tokenizer.json may carry from the program that saved it."""

    TEXT = "What is the sum of 1, 2, 3, 4, 5, 6, 7, 8 and 9?"

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.update(truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}),
            lambda d: d.update(truncation={"direction": "Left", "max_length": 3, "strategy": "OnlyFirst", "stride": 1}),
            lambda d: d.update(padding={"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}),
            lambda d: d["model"].update(dropout=0.9),
        ],
    )  # fmt: skip
    def test_nothing_cuts_pads_or_varies_what_is_encoded(self, change, tmp_path):
        loaded = Tokenizer(changed(change), "x")
        assert all(loaded.encode(self.TEXT) == TOKENIZER.encode(self.TEXT) for _ in range(5))
        loaded.save(tmp_path)
        stored = json.loads((tmp_path / "tokenizer.json").read_text())
        assert not stored["truncation"] and not stored["padding"] and not stored["model"]["dropout"]

    def test_a_file_without_them_is_kept_byte_for_byte(self):
        raw = (TINY / "tokenizer.json").read_text()
        assert Tokenizer(raw, "x").raw == raw


def set_id(name, index):
    def change(description):
        for token in description["added_tokens"]:
            if token["content"] == name:
                token["id"] = description["model"]["vocab"]["a"] if index == "a" else index

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[(set_id("<|im_end|>", i), "<|im_end|>: expected a whole id from 0 on") for i in (-1, 3.5, True, "7", None, 2**40, [1])],
        (set_id("<|im_end|>", "a"), "<|im_end|>: expected an id of its own"),
        (set_id("<think>", 506), "expected an id of its own"),
        (lambda d: d["added_tokens"].append({**d["added_tokens"][0], "id": 600}), "expected an id of its own"),
        (lambda d: d["added_tokens"].append({"content": "", "id": 600}), "content: expected a text"),
        (lambda d: d["model"]["vocab"].update(a=-4), "model.vocab: 'a': expected a whole id"),
        (lambda d: d["model"]["vocab"].update(a=d["model"]["vocab"]["b"]), "model.vocab: expected every id once"),
        (lambda d: d["model"].update(vocab=[]), "expected a tokenizer.json"),
    ],
)  # fmt: skip
def test_ids_are_whole_distinct_and_their_own(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Tokenizer(changed(change), "x")


def test_entries_are_counted_by_the_largest_id():
    """A vocabulary may leave ids out: what counts is which rows of the embedding it reaches."""
    loaded = Tokenizer(changed(lambda d: d["model"]["vocab"].update({"!": 4000})), "x")
    assert loaded.num_entries == 4001
    with pytest.raises(ValueError, match=r"expected at most llm_config.vocab_size = \d+ entries, found 4001"):
        Processor(Processor.from_folder(TINY).config, loaded)
