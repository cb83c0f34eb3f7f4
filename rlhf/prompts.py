"""The RL data set: prompts, ready as token ids and pixels, in keyed order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from model.data.records import read_records
from model.interface import Mode
from model.processor import Processor, PromptTokens
from model.visuals import check_visuals
from rollouts.config import RolloutConfig
from rollouts.rollout import Prompt, RolloutRequest

_COLUMNS = ("id", "messages", "reference")


@dataclass(frozen=True)
class Task:
    """A prompt as the model reads it."""

    prompt: Prompt
    tokens: PromptTokens
    images: Sequence[Tensor]  # pixels of the prompt, each [tiles, 3, height, width]
    root: Path  # folder that image names are relative to

    def request(self, draw: int, group_size: int, greedy: bool = False) -> RolloutRequest:
        return RolloutRequest(draw, self.prompt.id, self.tokens.ids, self.images, group_size, greedy)


class PromptSet:
    """Rows of a JSONL file; token limits and image files are checked when the set is opened."""

    def __init__(self, path: Path, processor: Processor, mode: Mode, max_prompt_tokens: int) -> None:
        records = read_records(path, {"messages": list, "reference": str})
        self.root = Path(path).parent
        self.prompts = [
            Prompt(r["id"], r["messages"], r["reference"], {k: v for k, v in r.items() if k not in _COLUMNS})
            for r in records
        ]
        self._processor = processor
        self._tokens = []
        for prompt in self.prompts:
            if not prompt.reference.strip():
                raise ValueError(f"data: {path}: row {prompt.id}: reference: expected an answer, found nothing")
            tokens = processor.prompt(prompt.messages, mode, self.root)
            if len(tokens.ids) > max_prompt_tokens:
                raise ValueError(
                    f"rollouts.max_prompt_tokens: expected at least {len(tokens.ids)} for row {prompt.id} of {path}, "
                    f"found {max_prompt_tokens}"
                )
            self._tokens.append(tokens)
        check_visuals(self.root, (image for tokens in self._tokens for image in tokens.images))
        self._index = {prompt.id: index for index, prompt in enumerate(self.prompts)}
        self._task = cache(self._build)

    @property
    def ids(self) -> list[str]:
        return [prompt.id for prompt in self.prompts]

    @property
    def weights(self) -> list[float]:
        """How often each prompt is drawn, relative to the others."""
        return [1.0] * len(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Task:
        return self._task(index)

    def task(self, index: int) -> Task | None:
        """None for a row whose media cannot be read."""
        return self._task(index)

    def by_id(self, prompt_id: str) -> Task:
        return self._task(self._index[prompt_id])

    def _build(self, index: int) -> Task:
        tokens = self._tokens[index]
        return Task(self.prompts[index], tokens, self._processor.open_images(self.root, tokens.images), self.root)


def check_context(sampler: RolloutConfig, context: int) -> None:
    """`ValueError` unless prompt and completion fit the model's positions."""
    if sampler.max_prompt_tokens + sampler.max_completion_tokens > context:
        raise ValueError(
            f"rollouts.max_prompt_tokens + rollouts.max_completion_tokens: expected at most the model's "
            f"max_position_embeddings = {context}, found {sampler.max_prompt_tokens} + {sampler.max_completion_tokens}"
        )
