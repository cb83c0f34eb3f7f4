"""The same SFT stage by our own loop and by TRL's SFTTrainer: same losses and rates, and nearly the same weights.

Both compute in float32 and differ in the order of sums: ours packs rows without padding, and completions of one prompt
share it; TRL pads, and repeats the prompt. A loss of about 7 nats that is a mean of some hundred terms then differs by
a few units in the last place of float32, 6e-8 relative each.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conf.cli import load_config
from model.checkpoint import load_model
from model.data.sources import DataFolders
from model.interface import Mode
from sft.data import Demonstrations
from sft.stage import run_stage
from tests.conftest import require_extra
from tests.model.data.test_video import write_video

STEPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows with no image, one and two; a thought, a direct answer, several answers, several turns."""
    folder = tmp_path_factory.mktemp("trl sft data")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 32, 3), np.uint8)).save(folder / name)
    thought = "<think>I count one, two, three.</think>\\boxed{3}"
    rows = [
        {"question": "How many?", "answer": "Three of them.", "image": "a.png"},
        {"question": "How many are there here?", "thinking": "One, two, three.", "answer": "3", "image": "b.png"},
        {"question": "What is 2+2?", "answer": "4"},
        {
            "messages": [{"role": "user", "content": "Which?"}],
            "images": ["a.png", "b.png"],
            "completions": ["A.", "Bb."],
        },
        {"messages": [{"role": "user", "content": "And?"}], "completions": [thought, thought + " "], "mode": "think"},
        {
            "messages": [
                {"role": "user", "content": "One picture?"},
                {"role": "assistant", "content": "Yes, one."},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Quite sure."},
            ],
            "images": ["b.png"],
        },
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{n}", **row}) + "\n" for n, row in enumerate(rows)))
    return path


@pytest.fixture(scope="module")
def start(tiny_folder, data):
    """A config of an SFT stage, and its YAML."""

    def compose(folder: Path, *overrides: str):
        paths = [f"checkpoint='{tiny_folder}'", f"data.demonstrations='{data}'", f"run.dir='{folder}'"]
        sizes = ["batch_size=8", f"max_steps={STEPS}", "engine.num_threads=1", "engine.micro_batch_tokens=200"]
        rates = ["optimizer.learning_rate=1e-3", "optimizer.warmup_steps=1", "optimizer.weight_decay=0.1"]
        clips = ["optimizer.max_grad_norm=0.5", "optimizer.beta2=0.95", "run.trackers=[]"]
        return load_config("sft", [*paths, *sizes, *rates, *clips, *overrides])

    return compose


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> torch.Tensor:
    model, _ = load_model(folder)
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


@pytest.mark.parametrize("normalisation", ["tokens", "samples"])
def test_losses_and_weights(start, tiny_folder, tmp_path, normalisation):
    """Weights: both runs went the same way up to 1e-3 of it. AdamW divides a gradient by its own size, so that where
    one is nearly 0 rounding decides its direction; 3e-5 was found."""
    require_extra("trl", "trl")
    folders = {name: tmp_path / name for name in ("sailvl2", "trl")}
    for name, folder in folders.items():
        run_stage(*start(folder, f"trainer={name}", f"normalisation={normalisation}"))
    ours, theirs = (lines(folder) for folder in folders.values())
    assert [record["step"] for record in theirs] == [record["step"] for record in ours] == list(range(1, STEPS + 1))
    for own, other in zip(ours, theirs, strict=True):
        bar = 1e-6 if own["step"] == 1 else 1e-5  # from the second update on the weights differ too
        for name in ("loss", "nll_per_token", "grad_norm"):
            assert other[name] == pytest.approx(own[name], rel=bar), (own["step"], name)
        assert other["learning_rate"] == pytest.approx(own["learning_rate"], rel=1e-12)
        assert other["tokens"] == own["tokens"]
        assert own["grad_norm"] > 0.5, "every update is clipped"
    if normalisation == "samples":
        assert all(record["loss"] > 2 * record["nll_per_token"] for record in theirs), "the two weightings differ"
    else:
        assert all(record["loss"] == pytest.approx(record["nll_per_token"], rel=1e-12) for record in theirs)
    before, own, other = (weights(folder) for folder in (tiny_folder, *(one / "final" for one in folders.values())))
    assert torch.linalg.vector_norm(other - own) < 1e-3 * torch.linalg.vector_norm(own - before)


def test_packed_sources_with_frozen_towers(start, tiny_folder, data, tmp_path):
    """Rows of a stream, where some tokens of a completion are not scored; one tower trains, blocks are recomputed."""
    require_extra("trl", "trl")
    loaders = {}
    for name in ("sailvl2", "trl"):
        own = ["data.demonstrations=''", f"data.folder='{data.parent}'", "data.sources={a: {paths: [rows.jsonl]}}"]
        own += ["data.micro_batches_per_step=2", f"data.loader.index='{tmp_path / 'index'}'", "max_steps=2"]
        own += ["engine.freeze=[vision,language]", "engine.gradient_checkpointing=true"]
        run_stage(*start(tmp_path / name, f"trainer={name}", *own))
        loaders[name] = lines(tmp_path / name)
    for own, other in zip(loaders["sailvl2"], loaders["trl"], strict=True):
        for name in ("loss", "nll_per_token", "grad_norm"):
            assert other[name] == pytest.approx(own[name], rel=1e-6 if own["step"] == 1 else 1e-5)
        assert own.keys() - other.keys() == {
            *("tokens_above_half", "skipped", "loss/a", "time/evaluate"),
            *("time/visual_tokens_per_s", "time/tflops_per_s", "time/left_s"),
        }
    before, after = (dict(load_model(one)[0].named_parameters()) for one in (tiny_folder, tmp_path / "trl" / "final"))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"mlp1"}


def test_rows_with_videos(start, tmp_path):
    """A video is a prompt's frames, each an image with one tile; a row with an image of several tiles is beside it."""
    require_extra("trl", "trl")
    require_extra("video", "av")
    write_video(tmp_path / "a.mp4", num_frames=6)
    Image.new("RGB", (96, 32)).save(tmp_path / "wide.png")
    rows = [
        {"question": "<video>How bright?", "videos": ["a.mp4"], "completions": ["Dark.", "Quite dark."]},
        {"question": "What is it?", "image": "wide.png", "answer": "Nothing."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{n}", **row}) + "\n" for n, row in enumerate(rows)))
    own = [f"data.demonstrations='{path}'", "batch_size=4", "max_steps=2", "engine.micro_batch_tokens=2000"]
    for name in ("sailvl2", "trl"):
        run_stage(*start(tmp_path / name, f"trainer={name}", *own))
        assert not (tmp_path / name / "bad_rows.jsonl").exists()
    for ours, theirs in zip(lines(tmp_path / "sailvl2"), lines(tmp_path / "trl"), strict=True):
        for name in ("loss", "grad_norm", "tokens"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-6 if ours["step"] == 1 else 1e-5), name


def test_trls_own_collator_makes_the_same_ids_labels_and_pixels(start, tiny, tiny_folder, tmp_path, data):
    """So the mask is TRL's own: the prompt is not trained, the thought, the answer and the end of the turn are."""
    require_extra("trl", "trl")
    from transformers import AutoProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    import model.hf  # noqa: F401
    from sft.trl.batches import padded_batch

    config, _ = start(tmp_path, "batch_size=7")
    rows = Demonstrations(str(data), config.data, tiny[1], DataFolders())
    theirs = AutoProcessor.from_pretrained(tiny_folder)
    pictures = {name: Image.open(data.parent / name) for name in ("a.png", "b.png")}
    examples = []
    for sample in rows.items:
        for completion in sample.completions:
            names = [
                part["image"]
                for message in sample.chat.messages
                if isinstance(message["content"], list)
                for part in message["content"]
                if part["type"] == "image"
            ]
            examples.append(
                {
                    "prompt": bare(sample.chat.messages),
                    "completion": [{"role": "assistant", "content": completion}],
                    "images": [pictures[name] for name in names],
                    "chat_template_kwargs": {"thinking": sample.mode is Mode.think},
                }
            )
    assert len(examples) == 9 and {len(one["images"]) for one in examples} == {0, 1, 2}
    expected = DataCollatorForVisionLanguageModeling(theirs, completion_only_loss=True)(examples)
    found = padded_batch([rows.build(index) for index in range(len(rows))], theirs.tokenizer.pad_token_id)
    assert found.keys() == {"input_ids", "attention_mask", "labels", "pixel_values"}
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    trained = theirs.decode([token for token in found["labels"][1].tolist() if token != -100])
    assert trained == "<think>One, two, three.</think>\\boxed{3}<|im_end|>"


def bare(messages: list[dict]) -> list[dict]:
    """Messages whose image parts name no image, as TRL fills them."""
    return [
        {
            **message,
            "content": [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
            if isinstance(message["content"], list)
            else [{"type": "text", "text": message["content"]}],
        }
        for message in messages
    ]
