"""Models by their folders, and completions by their messages."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_model
from model.config import REPORT_COMPLETION_TOKENS, Device
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype
from model.interface import Mode
from model.processing.messages import with_open_images
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rewards.answers import parse_completion
from rewards.sections import parse_sections
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import Rollout, RolloutRequest, generate

Messages = str | Sequence[Mapping[str, Any]]
"""A question, or chat messages: docs/api.md shows the parts that they may have."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Completion:
    """A completion taken apart."""

    text: str  # think tags are kept, the end of the turn is dropped
    thinking: str  # text inside the think tags; empty where there are none
    answer: str | None  # content of the last complete box behind the thinking; None: there is none
    finish_reason: str  # stop: the model ended its turn; length: the limit came first
    token_ids: list[int]
    logprobs: list[float]  # one a token, at the temperature that it was sampled with
    requires_reasoning: bool | None = None  # the decision of a completion of mode auto; None: there is none

    def __str__(self) -> str:
        return self.text


def load(
    path: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> tuple[SailVL2, Processor]:
    """Read the model and the processor of a folder.

    `device` auto is the GPU if there is one; `dtype` auto is bfloat16 on a GPU and float32 on a CPU. `ValueError` names
    the file that does not fit.
    """
    place = _device(device)
    model, processor = load_model(Path(path).expanduser(), _dtype(dtype, place))
    return model.to(place).requires_grad_(False), processor


def sample(
    model: SailVL2,
    processor: Processor,
    messages: Messages,
    mode: Mode | str = Mode.think,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    max_completion_tokens: int = 0,
    seed: int = 0,
    root: str | Path | None = None,
) -> list[Completion]:
    """Sample completions of one conversation by our own sampler.

    `temperature` 0 takes the most likely token each time. `max_completion_tokens` 0 stands for 4,096, or what the
    context leaves. Image files are relative to the working directory, or inside `root` where one is given; videos need
    a `root`. The same seed gives the same completions. `ValueError` says what does not fit.
    """
    given = {"num_samples": num_samples, "temperature": temperature, "seed": seed, "root": root}
    return sample_batch(model, processor, [messages], mode, max_completion_tokens=max_completion_tokens, **given)[0]


def sample_batch(
    model: SailVL2,
    processor: Processor,
    conversations: Sequence[Messages],
    mode: Mode | str = Mode.think,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    max_completion_tokens: int = 0,
    seed: int = 0,
    root: str | Path | None = None,
) -> list[list[Completion]]:
    """Do what `sample` does for several conversations side by side; the limit is that of the longest one."""
    if num_samples < 1 or not 0 <= temperature < float("inf") or seed < 0:
        raise ValueError(
            "num_samples, temperature, seed: expected at least 1, a number from 0 on, and at least 0, found "
            f"{num_samples}, {temperature} and {seed}"
        )
    folder = None if root is None else Path(root).expanduser()
    requests = [
        _request(processor, number, messages, mode, folder, num_samples, greedy=temperature == 0)
        for number, messages in enumerate(conversations)
    ]
    if not requests:
        return []
    longest = max(len(request.prompt_ids) for request in requests)
    room = _room(model.config.language.max_position_embeddings, longest, max_completion_tokens)
    limits = RolloutConfig(max_prompt_tokens=longest, max_completion_tokens=room, temperature=temperature or 1.0)
    with closing(EmbeddedWorker.sharing(model, processor, limits, seed)) as worker:
        return [[_completion(one, processor) for one in group] for group in generate(worker, requests)]


def _request(
    processor: Processor,
    number: int,
    messages: Messages,
    mode: Mode | str,
    root: Path | None,
    num_samples: int,
    greedy: bool,
) -> RolloutRequest:
    if isinstance(messages, Mapping):
        raise ValueError("messages: expected a list of messages or a text, found a single message; put it in a list")
    listed: Sequence[Any] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    prompt = processor.prompt(with_open_images(listed) if root is None else listed, mode, root)
    images = processor.open_images(root, prompt.images)
    return RolloutRequest(number, str(number), prompt.ids, prompt.placeholder_ids, images, num_samples, greedy)


def _room(context: int, length: int, wanted: int) -> int:
    """The limit of completions behind a prompt of `length` tokens. `ValueError` where they do not fit."""
    room = context - length
    if room < 1:
        raise ValueError(f"messages: expected fewer than the model's {context} positions, found {length} tokens")
    if not 0 <= wanted <= room:
        raise ValueError(
            f"max_completion_tokens: expected 0 to {room}, which the context of {context} leaves behind the prompt of "
            f"{length}, found {wanted}"
        )
    return wanted or min(REPORT_COMPLETION_TOKENS, room)


def _completion(rollout: Rollout, processor: Processor) -> Completion:
    if rollout.finish_reason.is_failure:
        raise RuntimeError(
            f"the sampler failed ({rollout.finish_reason.value}): expected finite logits; look at the model's weights"
        )
    text = processor.tokenizer.decode(rollout.completion_ids)
    parsed = parse_completion(text)
    reason, ids, logprobs = rollout.finish_reason.value, rollout.completion_ids, rollout.rollout_logprobs
    decision = parse_sections(text).requires_reasoning
    return Completion(text, parsed.thinking, parsed.answer, reason, ids, logprobs, decision)


def _device(given: str | torch.device) -> torch.device:
    if isinstance(given, torch.device):
        return given
    names = [device.value for device in Device]
    if given in names:
        return pick_device(Device(given))
    try:
        return torch.device(given)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected {', '.join(names)} or a device of torch, found {given!r:.80}") from None


def _dtype(given: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(given, torch.dtype):
        return given
    if given == "auto":
        return pick_dtype(ComputeDtype.auto, device)
    if given not in _DTYPES:
        raise ValueError(f"dtype: expected auto, {', '.join(_DTYPES)} or a dtype of torch, found {given!r:.80}")
    return _DTYPES[given]
