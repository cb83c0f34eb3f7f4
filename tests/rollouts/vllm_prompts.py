"""Prompts and comparisons for tests of vLLM against our own model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.batch import Row, pack_rows
from model.interface import Mode
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.rollout import Rollout, RolloutRequest


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def request(processor: Processor, draw: int, parts: Sequence[str | Image.Image], group_size: int) -> RolloutRequest:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    tokens = processor.prompt([{"role": "user", "content": content}], Mode.think)
    images = processor.open_images(None, tokens.images)
    return RolloutRequest(draw, f"p{draw}", tokens.ids, tokens.placeholder_ids, images, group_size)


def requests(processor: Processor, group_size: int = 4) -> list[RolloutRequest]:
    """Text alone, one image, an odd one, two images, images among text, many images."""
    prompts: list[list[str | Image.Image]] = [
        ["What is 2 + 3?"],
        [picture(0, 64, 64), "How many?"],
        [picture(1, 200, 90), "Which?"],
        [picture(2, 64, 64), picture(3, 90, 200), "Compare."],
        ["One", picture(4, 50, 50), "two", picture(5, 60, 60), "three?"],
        [*(picture(6 + n, 40 + n, 40) for n in range(6)), "What moves?"],
    ]
    return [request(processor, draw, parts, group_size) for draw, parts in enumerate(prompts)]


def disturb(model: SailVL2, seed: int) -> None:
    """Make every weight another one, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            spread = weight.std().nan_to_num(0.1).clamp(min=0.02)
            weight.add_(0.05 * spread * torch.randn(weight.shape, generator=generator))


class Scores(NamedTuple):
    """What our own model says of a completion: log-probs of its tokens, the most likely token at each place, and how
    far that one's logit is ahead of the second."""

    logprobs: Tensor
    best: Tensor
    lead: Tensor


@torch.no_grad()
def trainer_scores(
    model: SailVL2, processor: Processor, prompt: RolloutRequest, ids: list[int], temperature: float
) -> Scores:
    row = Row(prompt.prompt_ids, [ids], prompt.images)
    inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
    barred = torch.tensor(processor.barred_ids)
    hidden, _ = model.hidden_states(inputs)
    logits = hidden.index_select(0, inputs.source_index) @ model.language_model.lm_head.weight.T
    top = logits.index_fill(-1, barred, float("-inf")).topk(2)
    return Scores(model(inputs, temperature, barred).logprobs, top.indices[:, 0], top.values[:, 0] - top.values[:, 1])


def gap(model, processor, asked: Sequence[RolloutRequest], groups: Sequence[Sequence[Rollout]], temperature: float):
    """(largest difference of log-probs, tokens compared)."""
    largest, count = 0.0, 0
    for one, group in zip(asked, groups, strict=True):
        for rollout in group:
            own = trainer_scores(model, processor, one, rollout.completion_ids, temperature).logprobs
            largest = max(largest, float((own - torch.tensor(rollout.rollout_logprobs)).abs().max()))
            count += len(own)
    return largest, count


class BestTokens:
    """Makes vLLM say the most likely token at each place of what it samples, by draw and sample."""

    def __init__(self, worker: Any) -> None:
        self._worker, self._parameters, self._finish = worker, worker._parameters, worker._finish
        self.found: dict[tuple[int, int], list[int]] = {}

    def __enter__(self) -> "BestTokens":
        def parameters(request: RolloutRequest, sample: int) -> Any:
            asked = self._parameters(request, sample)
            asked.logprobs = 1
            return asked

        def finish(opened: Any, sample: int, output: Any, routes: np.ndarray | None) -> None:
            places = output.outputs[0].logprobs
            best = [max(place, key=lambda token: place[token].logprob) for place in places]
            self.found[opened.request.group_index, sample] = best
            self._finish(opened, sample, output, routes)

        self._worker._parameters, self._worker._finish = parameters, finish
        return self

    def __exit__(self, *error: object) -> None:
        del self._worker._parameters, self._worker._finish


def mismatches(model, processor, asked: Sequence[RolloutRequest], groups, best: BestTokens) -> tuple[int, int, int]:
    """(places where vLLM's most likely token is another than ours, those of them that are near-ties, all places)."""
    wrong = ties = count = 0
    for one, group in zip(asked, groups, strict=True):
        for rollout in group:
            scores = trainer_scores(model, processor, one, rollout.completion_ids, 1.0)
            differs = scores.best != torch.tensor(best.found[rollout.group_index, rollout.sample_index])
            wrong += int(differs.sum())
            ties += int((differs & (scores.lead < 1e-5)).sum())
            count += len(differs)
    return wrong, ties, count
