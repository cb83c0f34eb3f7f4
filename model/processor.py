"""Messages and images -> token ids and pixels, built by parts so that text can never become a control token.

Template (report section 1.6 facts): ChatML roles, no newline between turns; an image is
`<img>` + one `<IMG_CONTEXT>` per visual token + `</img>` + newline; thinking mode appends the published instruction.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.config import SailVL2Config
from model.data.media import open_image
from model.interface import (
    DEFAULT_SYSTEM_TEXT,
    END_OF_TEXT,
    IM_END,
    IM_START,
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    THINK_END,
    THINK_START,
    THINKING_INSTRUCTION,
    Mode,
    verify_interface_strings,
)
from model.tokenizer import THINK_TAGS, Tokenizer

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

Part = str | int
"""Plain text, or one control token's id."""


@dataclass(frozen=True)
class PromptTokens:
    """One prompt in both forms."""

    ids: list[int]  # expanded: one placeholder per visual token, for training and our own sampler
    placeholder_ids: list[int]  # one placeholder per image, for samplers that expand themselves
    images: list[str]  # file names in order


class Processor:
    """Tokenizer, template and image preprocessing of one checkpoint."""

    def __init__(self, config: SailVL2Config, tokenizer: Tokenizer) -> None:
        verify_interface_strings()
        if tokenizer.num_entries > config.language.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most llm_config.vocab_size = {config.language.vocab_size} entries, "
                f"found {tokenizer.num_entries}"
            )
        if config.max_dynamic_patch > 1:
            raise ValueError(
                f"max_dynamic_patch: expected 1, found {config.max_dynamic_patch}; this release feeds each image as "
                "one tile, dynamic tiling is not built yet"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.placeholder_id = tokenizer.control[IMAGE_CONTEXT]
        self.image_size = config.vision.image_size

    @classmethod
    def from_folder(cls, folder: Path) -> "Processor":
        return cls(SailVL2Config.from_folder(folder), Tokenizer.from_folder(folder))

    @property
    def barred_ids(self) -> list[int]:
        """Ids a policy never samples: placeholders, other control tokens and unused rows of the vocabulary.

        What is left is text, the think tags and the end of a turn.
        """
        control = self.tokenizer.control
        spoken = {control[THINK_START], control[THINK_END], control[IM_END]}
        unused = range(self.tokenizer.num_entries, self.config.language.vocab_size)
        return sorted({*control.values(), *unused} - spoken)

    def prompt(self, messages: Sequence[dict[str, Any]], mode: Mode) -> PromptTokens:
        """Token ids up to and including the assistant's header.

        `messages`: role system | user | assistant, content a string or parts {"type": "text", "text": ...} and
        {"type": "image", "image": file name}. The last message must be the user's. `ValueError` otherwise.
        """
        for index, message in enumerate(messages):
            if not isinstance(message, dict):
                raise ValueError(f"messages[{index}]: expected an object with role and content, found {message!r:.80}")
        turns = [dict(message) for message in messages]
        if not turns or turns[-1].get("role") != "user":
            raise ValueError("messages: expected a list that ends with a user message")
        if turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": DEFAULT_SYSTEM_TEXT})
        parts: list[Part] = []
        images: list[str] = []
        for index, turn in enumerate(turns):
            parts += [self._control(IM_START), f"{_role(turn, index)}\n"]
            parts += self._content(turn, index, images)
            if index == len(turns) - 1 and mode is Mode.think:
                parts += self._with_think_tags(THINKING_INSTRUCTION)
            parts.append(self._control(IM_END))
        parts += [self._control(IM_START), "assistant\n"]
        placeholder_ids = self._encode(parts)
        return PromptTokens(self._expand(placeholder_ids), placeholder_ids, images)

    def completion(self, text: str) -> list[int]:
        """Ids of an assistant text with its end of turn; think tags in it are control tokens."""
        return [*self.tokenizer.encode_with_think_tags(text), self.tokenizer.end_id]

    def document(self, prefix: str, texts: Sequence[str], images: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """(prefix ids, scored ids of each text) of a pre-training document, delimited by end-of-text, without roles.

        All texts continue the same images and prefix; each is scored on its own.
        """
        parts: list[Part] = [self._control(END_OF_TEXT)]
        for _ in images:
            parts += self._image()
        ids = self._expand(self._encode([*parts, prefix]))
        end = self._control(END_OF_TEXT)
        return ids, [[*self.tokenizer.encode_with_think_tags(text), end] for text in texts]

    def tiles(self, root: Path, images: Iterable[str]) -> Tensor | None:
        """Pixels [I, 3, S, S] of image files under `root`, or None when there are none."""
        pixels = [self.pixels(open_image(root, name)) for name in images]
        return torch.cat(pixels) if pixels else None

    def pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, S, S] float32: bicubic resize, [0, 1], ImageNet normalisation."""
        if image.size != (self.image_size, self.image_size):
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        array = np.asarray(image, np.float32) / 255.0
        array = (array - np.asarray(PIXEL_MEAN, np.float32)) / np.asarray(PIXEL_STD, np.float32)
        return torch.from_numpy(array.transpose(2, 0, 1).copy())[None]

    def save(self, folder: Path) -> None:
        """Write tokenizer and preprocessor files beside the weights."""
        self.tokenizer.save(folder)
        preprocessor = {
            "image_size": self.image_size,
            "image_mean": PIXEL_MEAN,
            "image_std": PIXEL_STD,
            "min_dynamic_patch": self.config.min_dynamic_patch,
            "max_dynamic_patch": self.config.max_dynamic_patch,
            "num_image_token": self.config.num_image_tokens,
            "thinking_instruction": THINKING_INSTRUCTION,
            "default_system_text": DEFAULT_SYSTEM_TEXT,
        }
        text = json.dumps(preprocessor, indent=2, ensure_ascii=False)
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def _control(self, name: str) -> int:
        return self.tokenizer.control[name]

    def _image(self) -> list[Part]:
        return [self._control(IMAGE_START), self.placeholder_id, self._control(IMAGE_END), "\n"]

    def _with_think_tags(self, text: str) -> list[Part]:
        """Trusted text in which the think tags are tokens, each where it stands."""
        return [self._control(part) if part in (THINK_START, THINK_END) else part for part in THINK_TAGS.split(text)]

    def _content(self, turn: dict[str, Any], index: int, images: list[str]) -> list[Part]:
        content = turn.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise ValueError(f"messages[{index}].content: expected text or a list of parts, found {content!r}")
        parts: list[Part] = []
        for part in content:
            match part:
                case {"type": "text", "text": str(text)}:
                    # An assistant turn of the history was written by a policy: its think tags are tokens.
                    assistant = turn["role"] == "assistant" and THINK_START in text and THINK_END in text
                    parts += self._with_think_tags(text) if assistant else [text]
                case {"type": "image", "image": str(name)}:
                    images.append(name)
                    parts += self._image()
                case _:
                    raise ValueError(f"messages[{index}].content: expected parts of type text or image, found {part!r}")
        return parts

    def _encode(self, parts: Sequence[Part]) -> list[int]:
        """Adjacent texts are joined first, so that merges cross part borders as in the published template."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            ids += [*self.tokenizer.encode(text), part] if text else [part]
            text = ""
        return ids + self.tokenizer.encode(text) if text else ids

    def _expand(self, ids: list[int]) -> list[int]:
        expanded: list[int] = []
        for index in ids:
            expanded += [index] * (self.config.num_image_tokens if index == self.placeholder_id else 1)
        return expanded


def _role(turn: dict[str, Any], index: int) -> str:
    role = turn.get("role")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"messages[{index}].role: expected system, user or assistant, found {role!r}")
    return role
