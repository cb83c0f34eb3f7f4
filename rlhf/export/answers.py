"""Greedy answers of a written folder: by our own model, by transformers, and by vLLM where they are installed.

Each computes in float32 what the folder stores. They add up in different orders, so two tokens whose logits differ by
less than `TIE` of the larger one may change places: that is a tie, and answers are compared up to it.
"""

import gc
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import load_model, load_processor
from model.decoding.decoder import PromptDecoder
from model.interface import Mode
from model.json_values import JsonObject
from model.processing.processor import Processor, PromptTokens
from model.run.durable import OUT_OF_SPACE
from model.run.parent import die_with_parent
from model.run.printable import printable
from model.sail_vl2 import SailVL2
from rollouts.vllm_folder import greedy_completions

TIE = 2e-4
_SIDE = 112  # pixels of a picture
_QUESTIONS = (
    ("What is 17 + 25?", ""),
    ("Name the capital of France.", ""),
    ("A train leaves at 9:40 and arrives at 11:05. How many minutes does it take?", ""),
    ("Which is larger: 3/7 or 2/5?", ""),
    ("What shape is in the picture?", "circle"),
    ("Which colour is the square?", "square"),
    ("How many bars are there?", "bars"),
    ("Is the circle left of the square?", "both"),
)
"""Question -> the picture that is drawn for it."""


class AnswersDiffer(RuntimeError):
    """A written folder does not answer as our own model does, or a program could not load it."""

    exit_code = 12


@dataclass(frozen=True)
class Question:
    messages: list[JsonObject]
    mode: Mode
    prompt: PromptTokens
    images: tuple[Tensor, ...]
    limit: int  # tokens of its answer that are compared


@dataclass(frozen=True)
class Answer:
    ids: list[int]  # without the end of the turn
    leads: list[float]  # [choices] how far the chosen logit was ahead, as a share of it; the last choice may be the end


@dataclass(frozen=True)
class Comparison:
    """How a program answered."""

    program: str  # with its version
    num_same: int
    num_tied: int  # the same up to a tie

    def __str__(self) -> str:
        tied = f", {self.num_tied} of them up to a tie" if self.num_tied else ""
        return f"{self.program}: {self.num_same + self.num_tied} greedy answers as ours{tied}"


def questions_for(processor: Processor, num_tokens: int) -> list[Question]:
    """Eight questions in thinking mode and in direct mode. `ValueError` where the model's context has no room for
    one."""
    context = processor.config.language.max_position_embeddings
    found: list[Question] = []
    for mode in (Mode.think, Mode.direct):
        for text, shape in _QUESTIONS:
            pictures = [{"type": "image", "image": _picture(shape)}] if shape else []
            messages: list[JsonObject] = [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]
            prompt = processor.prompt(messages, mode)
            limit = min(num_tokens, context - len(prompt.ids))
            if limit < 1:
                raise ValueError(
                    f"check: expected a model with more positions than the {len(prompt.ids)} tokens of a question, "
                    f"found max_position_embeddings = {context}; check=false writes the folder unchecked"
                )
            images = processor.open_images(None, prompt.images)
            found.append(Question(messages, mode, prompt, images, limit))
    return found


def _picture(shape: str) -> Image.Image:
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw, unit = ImageDraw.Draw(image), _SIDE // 8
    if shape in ("circle", "both"):
        draw.ellipse((unit, 2 * unit, 3 * unit, 4 * unit), fill="red")
    if shape in ("square", "both"):
        draw.rectangle((5 * unit, 2 * unit, 7 * unit, 4 * unit), fill="blue")
    if shape == "bars":
        for number in range(3):
            draw.rectangle((2 * unit * number + unit, (5 - number) * unit, 2 * unit * (number + 1), 7 * unit), fill=0)
    return image


def check_answers(folder: Path, num_tokens: int, device: torch.device) -> tuple[list[Comparison], list[str]]:
    """(how the programs that are installed answered, the names of those that are not). `AnswersDiffer` names the first
    question with another answer."""
    questions = questions_for(load_processor(folder), num_tokens)
    ours = own_answers(folder, questions, device)
    done: list[Comparison] = []
    absent: list[str] = []
    for program, answer in (("transformers", answers_in_transformers), ("vllm", answers_in_vllm)):
        if importlib.util.find_spec(program) is None:
            absent.append(program)
            continue
        gc.collect()  # the model before it is gone, before the next one is loaded
        try:
            done.append(compared(folder, program, questions, ours, answer(folder, questions, device)))
        except AnswersDiffer:
            raise
        except (BrokenProcessPool, RuntimeError, ValueError, AssertionError, OSError) as error:
            if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
                raise
            raise AnswersDiffer(
                f"{program} could not answer from the folder: {printable(str(error), 600)}; nothing was written. "
                "check=false writes the folder unchecked"
            ) from error
    return done, absent


def compared(
    folder: Path, program: str, questions: Sequence[Question], ours: Sequence[Answer], theirs: Iterable[Sequence[int]]
) -> Comparison:
    """Compare answers. `AnswersDiffer` shows both of the first question whose answers part where there is no tie."""
    same = tied = 0
    for question, own, given in zip(questions, ours, theirs, strict=True):
        if list(given) == own.ids:
            same += 1
            continue
        pairs = zip(own.ids, given, strict=False)
        place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(own.ids), len(given)))
        if place < len(own.leads) and own.leads[place] < TIE:
            tied += 1
            continue
        decode = load_processor(folder).tokenizer.decode
        asked = question.messages[0]["content"][-1]["text"]
        raise AnswersDiffer(
            f"{program} answers otherwise than our model, from token {place} on: mode {question.mode.value}, question "
            f"{asked!r}: ours {printable(decode(own.ids), 200)!r}, {program} {printable(decode(given), 200)!r}; "
            "nothing was written. check=false writes the folder unchecked"
        )
    return Comparison(f"{program} {_version(program)}", same, tied)


def _version(program: str) -> str:
    for name in (program, f"{program}-cpu"):  # vLLM's distribution for CPUs has a name of its own
        with suppress(PackageNotFoundError):
            return version(name)
    return "of an unknown version"


def own_answers(folder: Path, questions: Sequence[Question], device: torch.device) -> list[Answer]:
    """The answers of our own model."""
    model, processor = load_model(folder)
    decoder = PromptDecoder(model.to(device))
    with torch.inference_mode():
        return [_answer(decoder, model, processor, question) for question in questions]


def _answer(decoder: PromptDecoder, model: SailVL2, processor: Processor, question: Question) -> Answer:
    barred = torch.tensor(processor.barred_ids)
    answer = Answer([], [])
    row = Row(question.prompt.ids, [], question.images)
    inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
    logits, cache = decoder.prefill(inputs.to(model.device), 1, len(row.prefix_ids))
    while True:
        best = logits[0].float().cpu().index_fill(0, barred, float("-inf")).topk(2)
        first, second = best.values.tolist()
        token = int(best.indices[0])
        answer.leads.append((first - second) / max(abs(first), abs(second), 1e-30))
        if token == processor.tokenizer.end_id:
            return answer
        answer.ids.append(token)
        if len(answer.ids) == question.limit:
            return answer
        logits = decoder.decode(torch.tensor([token], device=model.device), [cache])


def answers_in_transformers(folder: Path, questions: Sequence[Question], device: torch.device) -> Iterator[list[int]]:
    """Yield the answers of the folder as transformers loads it, by `generate` with the folder's own settings."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import model.hf  # noqa: F401  (tells the Auto classes our folders)

    processor = AutoProcessor.from_pretrained(folder)
    policy: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    policy = policy.to(device)
    for question in questions:
        inputs = processor.apply_chat_template(
            [question.messages],
            tokenize=True,
            return_tensors="pt",
            add_generation_prompt=True,
            thinking=question.mode.template_value,
        ).to(device)
        written = policy.generate(**inputs, max_new_tokens=question.limit, do_sample=False)[0].tolist()
        yield _until_end(written[inputs["input_ids"].shape[1] :], processor.processor.tokenizer.end_id)


def answers_in_vllm(folder: Path, questions: Sequence[Question], device: torch.device) -> list[list[int]]:
    """The answers of the folder as vLLM loads it, in a process of its own: a start that fails would leave this one
    without use. Raises what vLLM raises."""
    end_id = load_processor(folder).tokenizer.end_id
    asked = [(question.prompt.placeholder_ids, question.images) for question in questions]
    limits = [question.limit for question in questions]
    context = max(len(question.prompt.ids) + question.limit for question in questions)
    with ProcessPoolExecutor(1, get_context("spawn"), die_with_parent) as pool:
        found = pool.submit(greedy_completions, str(folder), asked, limits, context).result()
    return [_until_end(ids, end_id) for ids in found]


def _until_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
