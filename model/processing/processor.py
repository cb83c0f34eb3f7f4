"""Messages and images -> token ids and pixels, built by parts so that text can never become a control token.

Template (report section 1.6 facts): ChatML roles, no newline between turns; an image is
`<img>` + one `<IMG_CONTEXT>` per visual token + `</img>` + newline; a frame of a video is `Frame-k: ` + image;
thinking mode appends the published instruction, `Mode.auto` ours.
"""

import copy
import dataclasses
import json
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.batch import StoredImage
from model.config import SailVL2Config
from model.data.media import StoredSource
from model.data.media_error import MediaError
from model.interface import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    THINK_END,
    THINK_START,
    Mode,
    verify_interface_strings,
)
from model.json_values import JsonObject
from model.padded import PaddedBatch, pad_rows
from model.processing import chat_template
from model.processing.messages import ImageSource, Media, Turn, read_turns, require_last_role
from model.processing.settings import FILE, ProcessorSettings
from model.processing.tiling import normalised
from model.processing.tokenizer import THINK_TAGS, TOKENIZER_FILE, Script, Tokenizer
from model.processing.visuals import Visual, cut_visual, open_visual, plan_visuals
from model.run.manifest import verify_files


@dataclass(frozen=True)
class PromptTokens:
    """One prompt in both forms."""

    ids: list[int]  # expanded: one placeholder per visual token, for training and our own sampler
    placeholder_ids: list[int]  # one placeholder per image or frame, for samplers that expand themselves
    images: list[Visual]  # images and videos in order; `open_images` gives the pixels that `ids` was expanded for

    @property
    def files(self) -> list[str]:
        """Names of the image and video files, in order."""
        return [visual.source for visual in self.images if isinstance(visual.source, str)]


@dataclass(frozen=True)
class ConversationTokens(PromptTokens):
    """A whole conversation."""

    loss_weights: list[float]  # one an id: 1 over what assistants wrote and the end of their turns, else 0


@dataclass(frozen=True)
class StoredPicture:
    """An image in a file, or a frame of a video, which the process that needs its pixels opens.

    It was opened once where it was made, so the file is known to be good.
    """

    root: str
    visual: Visual
    settings: ProcessorSettings
    frame: int  # number within a video; 0 for an image

    @property
    def shape(self) -> torch.Size:
        """[tiles, 3, height, width]."""
        tiles, height, width = self.visual.shape
        return torch.Size((tiles, 3, height, width))

    @property
    def nbytes(self) -> int:
        return _BYTES_OF_STORED

    def bytes_of_all(self) -> "list[BytePicture]":
        """The image, or all frames of the video, as bytes. `MediaError` where they cannot be read."""
        return [BytePicture(tiles, self.settings) for tiles in cut_visual(self.visual, Path(self.root))]

    def open(self) -> Tensor:
        """Its pixels. `MediaError` names the file and the host where it cannot be read."""
        try:
            return torch.from_numpy(_frames(self.root, self.visual, self.settings)[self.frame])
        except MediaError as error:
            raise MediaError(
                f"{error}; on host {socket.gethostname()}: every process of an engine must see the data's folder"
            ) from None


@dataclass(frozen=True, eq=False)
class BytePicture:
    """An image, or a frame of a video, as the bytes of its tiles: a quarter of the memory of its pixels, which are made
    where they are needed."""

    tiles: np.ndarray  # [tiles, 3, height, width] bytes
    settings: ProcessorSettings

    @property
    def shape(self) -> torch.Size:
        """[tiles, 3, height, width]."""
        return torch.Size(self.tiles.shape)

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes

    def open(self) -> Tensor:
        """Its pixels, the same bits as `Processor.open_images` gives."""
        return torch.from_numpy(normalised(self.tiles, self.settings.image_mean, self.settings.image_std))


_BYTES_OF_STORED = 512
_latest = threading.local()
"""The file that this thread opened last: the frames of a video come one after the other."""


def _frames(root: str, visual: Visual, settings: ProcessorSettings) -> "list[np.ndarray]":
    if not visual.media.num_frames:
        return open_visual(visual, settings, Path(root))
    key = root, visual, settings
    if getattr(_latest, "key", None) != key:
        _latest.frames, _latest.key = open_visual(visual, settings, Path(root)), key
    return _latest.frames


class Processor:
    """Tokenizer, template and image preprocessing of one checkpoint."""

    def __init__(self, config: SailVL2Config, tokenizer: Tokenizer, settings: ProcessorSettings | None = None) -> None:
        """`settings` default to those that `config` implies; a folder's own come with `from_folder`."""
        verify_interface_strings()
        if tokenizer.num_entries > config.language.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most llm_config.vocab_size = {config.language.vocab_size} entries, "
                f"found {tokenizer.num_entries}"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.settings = settings or ProcessorSettings.from_config(config)
        self.placeholder_id = tokenizer.control[IMAGE_CONTEXT]
        self._stores_pictures = self._keeps_bytes = False
        self._known_pictures: set[tuple[str, ImageSource, int]] = set()

    @property
    def stores_pictures(self) -> bool:
        """Whether `pictures` gives references instead of pixels."""
        return self._stores_pictures

    def storing_pictures(self) -> "Processor":
        """A processor whose `pictures` are references instead of pixels, for images in files.

        Each file is opened once, so that a damaged one is known before it is used.
        """
        other = copy.copy(self)
        other._stores_pictures = True
        other._known_pictures = set()
        return other

    def keeping_bytes(self) -> "Processor":
        """A processor whose `pictures` are bytes instead of pixels, where they are not references."""
        other = copy.copy(self)
        other._keeps_bytes = True
        return other

    @classmethod
    def from_folder(cls, folder: Path) -> "Processor":
        """The processor of a checkpoint folder. `ValueError` for files that are wrong, or are not what the folder's
        manifest says."""
        folder = Path(folder)
        files = ("config.json", TOKENIZER_FILE, FILE)
        present = [name for name in files if (folder / name).exists()]
        for name in present:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: expected a file, found a folder, a pipe or a device")
        verify_files(folder, present)
        config = SailVL2Config.from_folder(folder)
        return cls(config, Tokenizer.from_folder(folder), ProcessorSettings.from_folder(folder, config))

    def with_settings(self, **changes: Any) -> "Processor":
        """A processor that differs in these `ProcessorSettings`, for example `use_msac=True`."""
        return Processor(self.config, self.tokenizer, dataclasses.replace(self.settings, **changes))

    @property
    def chat_template(self) -> str:
        """The template as Jinja source."""
        return chat_template.chat_template(self.settings.instruction_on_new_line)

    @property
    def barred_ids(self) -> list[int]:
        """Ids a policy never samples: placeholders, other control tokens and unused rows of the vocabulary.

        What is left is text, the think tags and the end of a turn.
        """
        control = self.tokenizer.control
        spoken = {control[THINK_START], control[THINK_END], control[IM_END]}
        unused = range(self.tokenizer.num_entries, self.config.language.vocab_size)
        return sorted({*control.values(), *unused} - spoken)

    @property
    def generation_settings(self) -> JsonObject:
        """Content of `generation_config.json`: with it, programs that read the file end a turn and bar ids as our
        sampler does, and take the most likely token unless they are asked for something else."""
        end_of_text = self._control(END_OF_TEXT)
        return {
            "eos_token_id": [self.tokenizer.end_id, end_of_text],
            "pad_token_id": end_of_text,
            "do_sample": False,
            "suppress_tokens": self.barred_ids,
        }

    def prompt(
        self, messages: Sequence[JsonObject], mode: Mode | str, root: Path | None = None, max_tiles: int | None = None
    ) -> PromptTokens:
        """Token ids up to and including the assistant's header.

        `messages`: role system | user | assistant, content a string or parts {"type": "text", "text": ...},
        {"type": "image", "image": an image}, OpenAI's {"type": "image_url", "image_url": {"url": an image}} and
        {"type": "video", "video": file name under `root`, "num_frames": 16 unless given}. An image is a file name or
        file: address under `root`, a data: address, a PIL image or a numpy array. The last message must be the user's.
        `mode` may be given by its name. `max_tiles` replaces the cap of tiles per image for this prompt (AnyRes knows
        no cap). `ValueError` otherwise, `MediaError` for files that cannot be used.
        """
        mode = Mode.of(mode)
        require_last_role(messages, "user")
        turns = read_turns(messages)
        script = Script(self.tokenizer)
        for index, turn in enumerate(turns):
            self._write_turn(script, turn, mode.instruction if index == len(turns) - 1 else "")
        script.add(self._control(IM_START))
        script.add("assistant\n")
        placeholder_ids, _ = script.finish()
        images = self._plan(turns, root, max_tiles)
        return PromptTokens(self._expand(placeholder_ids, images), placeholder_ids, images)

    def conversation(
        self, messages: Sequence[JsonObject], mode: Mode | str, root: Path | None = None, max_tiles: int | None = None
    ) -> ConversationTokens:
        """Token ids of a whole conversation that ends with the assistant, and which of them train.

        Each assistant turn is encoded apart from its header, as it is when it is sampled, so that a weight of 1 covers
        its content and its end of turn exactly. The mode's instruction stands in the last user turn.
        """
        mode = Mode.of(mode)
        require_last_role(messages, "assistant")
        turns = read_turns(messages)
        asked = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=-1)
        if asked < 0:
            raise ValueError("messages: expected a user message for the assistant to answer, found none")
        script = Script(self.tokenizer)
        for index, turn in enumerate(turns):
            self._write_turn(script, turn, mode.instruction if index == asked else "", answer_weight=1.0)
        placeholder_ids, weights = script.finish()
        images = self._plan(turns, root, max_tiles)
        ids = self._expand(placeholder_ids, images)
        lengths = iter(_lengths(images))
        spread = [
            weight
            for index, weight in zip(placeholder_ids, weights, strict=True)
            for _ in range(next(lengths) if index == self.placeholder_id else 1)
        ]
        return ConversationTokens(ids, placeholder_ids, images, spread)

    def batch(
        self,
        conversations: Sequence[Sequence[Any]],
        mode: Mode | str,
        root: Path | None = None,
        padding_side: str = "left",
        max_tiles: int | None = None,
    ) -> PaddedBatch:
        """Conversations as one padded batch with their pixels.

        One that ends with a user message becomes a prompt with the assistant's header, one that ends with an assistant
        message is taken whole. Pad on the left to generate, on the right to train.
        """
        tokens: list[PromptTokens] = []
        for messages in conversations:
            ends = bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
            build = self.conversation if ends else self.prompt
            tokens.append(build(messages, mode, root, max_tiles))
        return pad_rows(
            [t.ids for t in tokens],
            [t.loss_weights if isinstance(t, ConversationTokens) else [0.0] * len(t.ids) for t in tokens],
            [self.open_images(root, t.images) for t in tokens],
            pad_id=self._control(END_OF_TEXT),
            padding_side=padding_side,
        )

    def refuse_long(self, texts: Sequence[str], most: int = 0, limit: str = "the model's positions") -> None:
        """`ValueError` for texts that surely have more than `most` tokens (0: the model's positions; `limit` says what
        it is), found without encoding all of them. What passes is measured exactly once it is encoded."""
        most = most or self.config.language.max_position_embeddings
        length = sum(map(len, texts))
        if length > most and self.tokenizer.exceeds(texts, most):
            raise ValueError(f"expected at most {limit} = {most} tokens, found more in {length} characters")

    def check_length(self, prefix: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        """`ValueError` where the prefix and its longest completion have more tokens than the model has positions."""
        limit = self.config.language.max_position_embeddings
        if (found := len(prefix) + max(map(len, completions), default=0)) > limit:
            raise ValueError(f"expected at most the model's {limit} positions, found {found} tokens; shorten the row")

    def completion(self, text: str) -> list[int]:
        """Ids of an assistant text with its end of turn; think tags in it are control tokens."""
        return [*self.tokenizer.encode_with_think_tags(text), self.tokenizer.end_id]

    def document(
        self, prefix: str, texts: Sequence[str], images: Sequence[ImageSource], root: Path | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """(prefix ids, scored ids of each text) of a pre-training document, delimited by end-of-text, without roles.

        All texts continue the same images and prefix; each is scored on its own. `open_images(root, images)` gives the
        pixels.
        """
        script = Script(self.tokenizer)
        script.add(self._control(END_OF_TEXT))
        for _ in images:
            self._write_image(script)
        script.add(prefix)
        ids = self._expand(script.finish()[0], self.plan_images(images, root))
        end = self._control(END_OF_TEXT)
        return ids, [[*self.tokenizer.encode_with_think_tags(text), end] for text in texts]

    def open_images(
        self, root: Path | None, images: Iterable[Visual | ImageSource], max_tiles: int | None = None
    ) -> tuple[Tensor, ...]:
        """Pixels, each [tiles, 3, height, width]: one tensor per image and per frame of a video, in order.

        Of a prompt's `images` they are exactly those that its ids were expanded for; `max_tiles` then changes nothing.
        Plain names and PIL images are taken as the only images of one prompt.
        """
        visuals = self._planned(images, root, max_tiles)
        arrays = [array for visual in visuals for array in open_visual(visual, self.settings, root)]
        return tuple(torch.from_numpy(array) for array in arrays)

    def pictures(self, root: Path | None, images: Iterable[Visual | ImageSource]) -> tuple[Tensor | StoredImage, ...]:
        """`open_images`; after `storing_pictures`, references to those in files instead of their pixels, and after
        `keeping_bytes` their bytes."""
        if not self._stores_pictures and not self._keeps_bytes:
            return self.open_images(root, images)
        planned = self._planned(images, root, None)
        if self._stores_pictures:
            return tuple(picture for visual in planned for picture in self._stored(visual, root))
        return tuple(BytePicture(tiles, self.settings) for visual in planned for tiles in cut_visual(visual, root))

    def _planned(
        self, images: Iterable[Visual | ImageSource], root: Path | None, max_tiles: int | None
    ) -> list[Visual]:
        given = list(images)
        visuals = [image for image in given if isinstance(image, Visual)]
        if len(visuals) != len(given):
            if visuals:
                raise ValueError("images: expected a prompt's images or plain names, found both together")
            visuals = self.plan_images([i for i in given if not isinstance(i, Visual)], root, max_tiles)
        return visuals

    def _stored(self, visual: Visual, root: Path | None) -> list[Tensor | StoredPicture]:
        key = str(root), visual.source, visual.media.num_frames
        is_known = isinstance(visual.source, StoredSource) or key in self._known_pictures
        if isinstance(visual.source, str | StoredSource) and is_known:
            return [StoredPicture(str(root), visual, self.settings, frame) for frame in range(visual.num_pictures)]
        arrays = open_visual(visual, self.settings, root)
        if not isinstance(visual.source, str):
            return [torch.from_numpy(array) for array in arrays]
        self._known_pictures.add(key)
        return [StoredPicture(str(root), visual, self.settings, frame) for frame in range(len(arrays))]

    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Tensor:
        """[tiles, 3, height, width] float32 of an image that is alone in its prompt."""
        return self.open_images(None, [image], max_tiles)[0]

    def save(self, folder: Path) -> None:
        """Write tokenizer and preprocessor files beside the weights."""
        self.tokenizer.save(folder)
        text = json.dumps(self.settings.to_published(self.config), indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text, encoding="utf-8")
        (folder / chat_template.FILE).write_text(self.chat_template, encoding="utf-8")

    def _control(self, name: str) -> int:
        return self.tokenizer.control[name]

    def _plan(self, turns: Sequence[Turn], root: Path | None, max_tiles: int | None) -> list[Visual]:
        media = [part for turn in turns for part in turn.parts if isinstance(part, Media)]
        return plan_visuals(media, self.config, self.settings, root, max_tiles)

    def plan_images(
        self, images: Sequence[ImageSource], root: Path | None, max_tiles: int | None = None
    ) -> list[Visual]:
        """How each of a document's images is cut, and how many tokens it takes. `MediaError` for a damaged header."""
        return plan_visuals([Media(image) for image in images], self.config, self.settings, root, max_tiles)

    def _write_turn(self, script: Script, turn: Turn, instruction: str, answer_weight: float = 0.0) -> None:
        script.add(self._control(IM_START))
        script.add(f"{turn.role}\n")
        weight = answer_weight if turn.role == "assistant" else 0.0
        for part in turn.parts:
            if isinstance(part, Media):
                self._write_media(script, part)
            elif turn.role == "assistant":
                # A policy wrote it: its think tags are tokens.
                self._write_with_think_tags(script, part, weight)
            else:
                script.add(part)
        if instruction:
            script.add("\n" if self.settings.instruction_on_new_line else "")
            self._write_with_think_tags(script, instruction)
        script.add(self._control(IM_END), weight)

    def _write_media(self, script: Script, media: Media) -> None:
        if not media.num_frames:
            self._write_image(script)
        for number in range(1, media.num_frames + 1):
            script.add(f"Frame-{number}: ")
            self._write_image(script)

    def _write_image(self, script: Script) -> None:
        for part in (self._control(IMAGE_START), self.placeholder_id, self._control(IMAGE_END), "\n"):
            script.add(part)

    def _write_with_think_tags(self, script: Script, text: str, weight: float = 0.0) -> None:
        """Trusted text in which the think tags are tokens, each where it stands."""
        for part in THINK_TAGS.split(text):
            script.add(self._control(part) if part in (THINK_START, THINK_END) else part, weight)

    def _expand(self, ids: list[int], images: Sequence[Visual]) -> list[int]:
        lengths = iter(_lengths(images))
        expanded: list[int] = []
        for index in ids:
            expanded += [index] * next(lengths) if index == self.placeholder_id else [index]
        return expanded


def _lengths(images: Sequence[Visual]) -> list[int]:
    """Visual tokens of each placeholder."""
    return [visual.tokens_each for visual in images for _ in range(visual.num_pictures)]
