"""Talk to a checkpoint: `python -m model.chat checkpoint=DIR image=FILE mode=think|direct`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.config import ChatConfig
from model.json_values import JsonObject
from model.run.failpoints import reach

if TYPE_CHECKING:
    import torch

    from model.batch import Row
    from model.processing.processor import Processor
    from model.sail_vl2 import SailVL2


def chat(config: ChatConfig, resolved: str) -> None:
    """Ask `config.question`, or what is typed until an empty line, and print answers as they are written."""
    from model.checkpoint import load_model
    from model.run.printable import printable_text

    model, processor = load_model(Path(config.checkpoint))
    messages: list[JsonObject] = []
    question = config.question or _typed()
    while question:
        content: list[JsonObject] = [{"type": "text", "text": question}]
        if config.image and not messages:
            content.insert(0, {"type": "image", "image": Path(config.image).name})
        messages.append({"role": "user", "content": content})
        ids: list[int] = []
        shown = ""
        for token in generate(model, processor, _row(config, processor, messages), config):
            ids.append(token)
            reach("token")
            text = processor.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # half a character: wait for the rest
                print(printable_text(text[len(shown) :]), end="", flush=True)
                shown = text
        print()
        messages.append({"role": "assistant", "content": processor.tokenizer.decode(ids)})
        question = "" if config.question else _typed()


def _typed() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _row(config: ChatConfig, processor: "Processor", messages: list[JsonObject]) -> "Row":
    from model.batch import Row

    root = Path(config.image).parent
    prompt = processor.prompt(messages, config.mode, root)
    return Row(prompt.ids, [], processor.open_images(root, prompt.images))


def generate(model: "SailVL2", processor: "Processor", row: "Row", config: ChatConfig) -> Iterator[int]:
    """Token ids of one completion, without its end of turn. `ValueError` when the prompt leaves no room."""
    import torch

    from model.batch import pack_rows
    from model.decoding.decoder import PromptDecoder

    context = model.config.language.max_position_embeddings
    room = min(config.max_completion_tokens, context - len(row.prefix_ids))
    if room < 1:
        raise ValueError(
            f"prompt: expected fewer than max_position_embeddings = {context} tokens, found {len(row.prefix_ids)}"
        )
    generator = torch.Generator().manual_seed(config.seed)
    barred = torch.tensor(processor.barred_ids)
    decoder = PromptDecoder(model)
    with torch.inference_mode():
        inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
        logits, cache = decoder.prefill(inputs, 1, len(row.prefix_ids))
        for step in range(room):
            token = _pick(logits[0].float().index_fill(0, barred, float("-inf")), config.temperature, generator)
            if token == processor.tokenizer.end_id:
                return
            yield token
            if step + 1 < room:
                logits = decoder.decode(torch.tensor([token]), [cache])


def _pick(logits: "torch.Tensor", temperature: float, generator: "torch.Generator") -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int((logits / temperature).softmax(-1).multinomial(1, generator=generator))


def main() -> int:
    return launch("chat", ChatConfig, chat)


if __name__ == "__main__":
    sys.exit(main())
