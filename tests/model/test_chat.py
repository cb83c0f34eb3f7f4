"""Conversations on a terminal: devices, several images, several turns."""

import builtins

import pytest
from PIL import Image

from conf.cli import load_config
from model.chat.__main__ import chat
from model.checkpoint import load_model
from model.processing.processor import Processor
from model.run.printable import printable_text
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import RolloutRequest, generate


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    for name in ("a.png", "b.png"):
        Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / name)
    return [str(tmp_path / name) for name in ("a.png", "b.png")]


@pytest.fixture
def prompts(monkeypatch) -> list[list[dict]]:
    """The messages of every prompt that is built."""
    seen: list[list[dict]] = []
    original = Processor.prompt

    def prompt(self, messages, *arguments):
        seen.append([dict(message) for message in messages])
        return original(self, messages, *arguments)

    monkeypatch.setattr(Processor, "prompt", prompt)
    return seen


def talk(folder, *arguments: str) -> None:
    config, resolved = load_config("chat", [f"checkpoint={folder}", "max_completion_tokens=4", *arguments])
    chat(config, resolved)


def images_in(message: dict) -> int:
    return sum(part["type"] == "image" for part in message["content"])


def test_one_question_may_be_about_several_images(tiny_folder, pictures, prompts, capsys):
    talk(tiny_folder, f"image=[{','.join(pictures)}]", "question=Which?", "device=cpu", "mode=direct")
    ((message,),) = prompts
    assert images_in(message) == 2 and message["content"][-1]["text"] == "Which?"
    # The most likely tokens are those of the sampler.
    model, processor = load_model(tiny_folder)
    prompt = processor.prompt([message], "direct")
    limits = RolloutConfig(max_prompt_tokens=len(prompt.ids), max_completion_tokens=4)
    images = processor.open_images(None, prompt.images)
    request = RolloutRequest(0, "", prompt.ids, prompt.placeholder_ids, images, 1, greedy=True)
    ((rollout,),) = generate(EmbeddedWorker.sharing(model, processor, limits, 0), [request])
    wanted = printable_text(processor.tokenizer.decode(rollout.completion_ids))
    assert capsys.readouterr().out.strip() == wanted.strip()


def test_a_conversation_keeps_what_was_said_and_takes_further_images(
    tiny_folder, pictures, prompts, monkeypatch, capsys
):
    typed = iter(["First?", f"/image {pictures[1]}", "/image gone.png", "Second?", "Third?", ""])
    monkeypatch.setattr(builtins, "input", lambda _: next(typed))
    talk(tiny_folder, f"image={pictures[0]}")
    said = capsys.readouterr()
    assert [[message["role"] for message in messages] for messages in prompts] == [
        ["user"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant", "user"],
    ]  # fmt: skip
    assert [images_in(message) for message in prompts[2] if message["role"] == "user"] == [1, 1, 0]
    assert "gone.png: expected a file, found none" in said.err and "1 for the next question" in said.out


def test_an_image_that_is_missing_is_refused_before_the_model_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: expected a file, found none"):
        talk(tmp_path / "no model", "image=gone.png", "question=What?")


def test_a_single_item_of_a_list_needs_no_brackets(tmp_path):
    assert load_config("chat", ["checkpoint=c", "image=a b.png"])[0].image == ["a b.png"]
    assert load_config("chat", ["checkpoint=c", "image='1.png'"])[0].image == ["1.png"]
    assert load_config("chat", ["checkpoint=c", "image=[a.png,b.png]"])[0].image == ["a.png", "b.png"]
    config, _ = load_config("rlhf", ["checkpoint=c", "prompts=p", "reward.functions=r.py:f"])
    assert config.reward.functions == ["r.py:f"]
