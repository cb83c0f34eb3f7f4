"""Talk to a checkpoint: `python -m model.chat checkpoint=DIR image=FILE mode=think|direct`.

With `endpoint=URL` instead of a checkpoint, talk to the model of a server, such as `python -m rlhf.serve` starts.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.chat.config import ChatConfig
from model.interface import JUDGE_START, Mode
from model.json_values import JsonObject
from model.run.failpoints import reach

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from model.batch import Row
    from model.processing.processor import Processor
    from model.sail_vl2 import SailVL2

_SHOW = "/image "

Answers = Callable[[Sequence[JsonObject]], Iterator[str]]
"""Yields pieces of the answer to a conversation."""


def chat(config: ChatConfig, resolved: str) -> None:
    """Ask `config.question`, or what is typed until an empty line, and print answers as they are written."""
    from model.run.printable import printable_text

    pictures = [_picture(name) for name in config.image]
    answer = _of_server(config) if config.endpoint else _of_folder(config)
    messages: list[JsonObject] = []
    for question in [config.question] if config.question else _typed(pictures):
        shown_images = [{"type": "image", "image": picture} for picture in pictures]
        messages.append({"role": "user", "content": [*shown_images, {"type": "text", "text": question}]})
        pictures.clear()
        written = ""
        for piece in answer(messages):
            print(printable_text(piece), end="", flush=True)
            written += piece
        print()
        if config.mode is Mode.auto and not written.lstrip().startswith(JUDGE_START):
            print(
                f"mode: auto expects an answer that begins with {JUDGE_START}, found none; the model was not trained "
                "for it, or the chat template of the server does not know it",
                file=sys.stderr,
            )
        messages.append({"role": "assistant", "content": written})


def _of_server(config: ChatConfig) -> Answers:
    from model.chat.server import Server

    return Server(config).answer


def _of_folder(config: ChatConfig) -> Answers:
    from model.batch import Row
    from model.checkpoint import load_model
    from model.engine.config import ComputeDtype
    from model.engine.device import pick_device, pick_dtype

    device = pick_device(config.device)
    model, processor = load_model(Path(config.checkpoint), pick_dtype(ComputeDtype.auto, device))
    model = model.to(device)

    def answer(messages: Sequence[JsonObject]) -> Iterator[str]:
        prompt = processor.prompt(messages, config.mode)
        row = Row(prompt.ids, [], processor.open_images(None, prompt.images))
        ids: list[int] = []
        shown = ""
        for token in generate(model, processor, row, config):
            ids.append(token)
            reach("token")
            text = processor.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # half a character: wait for the rest
                yield text[len(shown) :]
                shown = text
        yield processor.tokenizer.decode(ids)[len(shown) :]

    return answer


def _typed(pictures: "list[Image.Image]") -> Iterator[str]:
    """Yield questions until an empty line. A line `/image FILE` adds a picture to the next one."""
    while line := _line():
        if not line.startswith(_SHOW):
            yield line
            continue
        try:
            pictures.append(_picture(line.removeprefix(_SHOW).strip()))
            print(f"{len(pictures)} for the next question")
        except ValueError as error:
            print(error, file=sys.stderr)


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _picture(name: str) -> "Image.Image":
    from model.data.media import open_image

    path = Path(name).expanduser()
    return open_image(path.parent, path.name)


def generate(model: "SailVL2", processor: "Processor", row: "Row", config: ChatConfig) -> Iterator[int]:
    """Token ids of one completion, without its end of turn. `ValueError` when the prompt leaves no room."""
    import torch

    from model.batch import pack_rows
    from model.decoding.decoder import PromptDecoder

    context = model.config.language.max_position_embeddings
    room = min(config.max_completion_tokens, context - len(row.prefix_ids))
    if room < 1:
        raise ValueError(
            f"prompt: expected fewer than max_position_embeddings = {context} tokens, found {len(row.prefix_ids)}; "
            "begin a new conversation"
        )
    generator = torch.Generator().manual_seed(config.seed)
    barred = torch.tensor(processor.barred_ids)
    decoder = PromptDecoder(model)
    with torch.inference_mode():
        inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
        logits, cache = decoder.prefill(inputs.to(model.device), 1, len(row.prefix_ids))
        for step in range(room):
            token = _pick(logits[0].float().cpu().index_fill(0, barred, float("-inf")), config.temperature, generator)
            if token == processor.tokenizer.end_id:
                return
            yield token
            if step + 1 < room:
                logits = decoder.decode(torch.tensor([token], device=model.device), [cache])


def _pick(logits: "torch.Tensor", temperature: float, generator: "torch.Generator") -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int((logits / temperature).softmax(-1).multinomial(1, generator=generator))


def main() -> int:
    return launch("chat", ChatConfig, chat)


if __name__ == "__main__":
    sys.exit(main())
