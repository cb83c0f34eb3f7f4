"""`generate()` of an exported folder, without further arguments, writes what our own sampler writes.

transformers pads a batch, keeps another cache and sums in another order. Two logits that differ by less than `TIE` of
the largest may therefore change places; a completion is compared up to such a place, and none was seen for this seed.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import model.hf  # noqa: F401  (registers the classes)
from model.batch import Row, pack_rows
from model.checkpoint import build_flavour, load_model, save_model
from model.config import Flavour, flavour_config
from model.interface import END_OF_TEXT, IM_END, IMAGE_CONTEXT, Mode
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.build import build_worker
from rollouts.config import RolloutConfig
from rollouts.rollout import RolloutRequest, generate
from rollouts.weights.sync import fill_worker

COUNT, CONTEXT, TIE = 64, 160, 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random weights. The head reads the end of a turn, and two barred tokens, louder than other tokens: about a twelfth
    of all places would choose one of them."""
    path = tmp_path_factory.mktemp("export") / "model"
    shapes = flavour_config(Flavour.tiny)
    shapes = replace(shapes, language=replace(shapes.language, max_position_embeddings=CONTEXT))
    tiny, processor = SailVL2(shapes), Processor(shapes, build_flavour(Flavour.tiny, 0)[1].tokenizer)
    tiny.initialise(5)
    with torch.no_grad():
        head = torch.randn(tiny.language_model.lm_head.weight.shape, generator=torch.Generator().manual_seed(5))
        for name in (IM_END, END_OF_TEXT, IMAGE_CONTEXT):
            head[processor.tokenizer.control[name]] *= 2.0
        tiny.language_model.lm_head.weight = torch.nn.Parameter(head)
    save_model(path, tiny, processor)
    return path


@pytest.fixture(scope="module")
def conversations() -> list[list[dict]]:
    questions = [f"What is {number} and {7 * number}{'?' * (number % 5)}" for number in range(COUNT)]
    pictures = [Image.effect_noise((32, 32), 40 + number).convert("RGB") for number in range(COUNT)]
    return [
        [
            {
                "role": "user",
                "content": [*([{"type": "image", "image": p}] if n % 2 else []), {"type": "text", "text": q}],
            }
        ]
        for n, (q, p) in enumerate(zip(questions, pictures, strict=True))
    ]


def ours(folder: Path, conversations: list[list[dict]], mode: Mode) -> list[list[int]]:
    """Greedy completions of our sampler, of as many tokens as the context leaves behind the longest prompt."""
    own, processor = load_model(folder)
    prompts = [processor.prompt(messages, mode) for messages in conversations]
    longest = max(len(prompt.ids) for prompt in prompts)
    limits = RolloutConfig(max_prompt_tokens=longest, max_completion_tokens=CONTEXT - longest)
    requests = [
        RolloutRequest(n, str(n), p.ids, p.placeholder_ids, processor.open_images(None, p.images), 1, greedy=True)
        for n, p in enumerate(prompts)
    ]
    worker = build_worker(own, processor, limits, 0)
    fill_worker(worker, own)
    return [group[0].completion_ids for group in generate(worker, requests)]


def theirs(folder: Path, conversations: list[list[dict]], mode: Mode) -> list[list[int]]:
    """Completions up to the end of the turn, by transformers' defaults alone."""
    policy = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        padding=True,
        return_tensors="pt",
        add_generation_prompt=True,
        thinking=mode is Mode.think,
    )
    written = policy.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
    end = processor.processor.tokenizer.end_id
    return [row[: row.index(end) + 1] if end in row else row for row in written]


def gap(own: SailVL2, processor: Processor, messages: list[dict], mode: Mode, written: list[int]) -> float:
    """By how much the most likely token after `written` leads, as a share of the largest logit."""
    prompt = processor.prompt(messages, mode)
    images = processor.open_images(None, prompt.images)
    row = Row([*prompt.ids, *written], [[0]], images)
    with torch.no_grad():
        hidden, _ = own.hidden_states(pack_rows([row], processor.placeholder_id, own.config.pixels_per_token))
        logits = own.language_model.lm_head(hidden)[-2].index_fill(0, torch.tensor(processor.barred_ids), -1e9)
    first, second = logits.topk(2).values.tolist()
    return (first - second) / first


def differing(folder: Path, conversations: list[list[dict]], mode: Mode) -> tuple[list[float], list[int]]:
    """(the lead of the most likely token where completions of the two part, the lengths of ours)."""
    own, processor = load_model(folder)
    leads = []
    expected = ours(folder, conversations, mode)
    for messages, left, right in zip(conversations, expected, theirs(folder, conversations, mode), strict=True):
        if left != right:
            same = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
            leads.append(gap(own, processor, messages, mode, left[:same]))
    return leads, [len(completion) for completion in expected]


@pytest.mark.parametrize("mode", [Mode.think, Mode.direct], ids=lambda mode: mode.value)  # auto's text is too long
def test_generate_without_arguments_writes_what_our_sampler_writes(folder, conversations, mode):
    leads, lengths = differing(folder, conversations, mode)
    assert not [lead for lead in leads if lead > TIE]
    assert min(lengths) < 10 < 60 < max(lengths)  # some end their turn, some come to the end of the context


@pytest.mark.parametrize("how", ["transformers wrote the folder", "the file is missing"])
def test_it_still_does_after_a_reload(folder, conversations, tmp_path, how):
    again = tmp_path / "again"
    if how == "the file is missing":
        shutil.copytree(folder, again, ignore=shutil.ignore_patterns("generation_config.json", "manifest.json"))
    else:
        AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(again)
        AutoProcessor.from_pretrained(folder).save_pretrained(again)
        settings = json.loads((again / "generation_config.json").read_text())
        assert len(settings["eos_token_id"]) == 2 and settings["suppress_tokens"]
    leads, _ = differing(again, conversations[:8], Mode.think)
    assert not [lead for lead in leads if lead > TIE]
