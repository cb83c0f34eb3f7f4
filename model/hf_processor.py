"""`AutoProcessor` for `sailvl` folders: our processor behind the interface that transformers and TRL expect.

`apply_chat_template(tokenize=True)` and messages are encoded by parts, so that text cannot become a control token.
Calling the processor with a rendered string cannot know what was text: whatever the string spells counts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from model.hf_configuration import SailVLConfig
from model.interface import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Mode
from model.json_values import JsonObject
from model.processing.messages import shown, with_open_images
from model.processing.processor import Processor
from model.processing.settings import FILE

_IMAGE = f"{IMAGE_START}{IMAGE_CONTEXT}{IMAGE_END}"
_IMAGE_TYPES = ("image", "image_url")
_BLANK = Image.new("RGB", (1, 1))
_TEMPLATE_OPTIONS = (
    "add_generation_prompt",
    "padding",
    "padding_side",
    "return_dict",
    "return_tensors",
    "thinking",
    "tokenize",
)
_TEXT_OPTIONS = ("padding", "padding_side", "return_tensors")
_WITHOUT_EFFECT = ("add_special_tokens", "return_attention_mask")  # there are none to add, and a mask always comes


def _refuse(given: dict[str, Any], known: Sequence[str], remedy: str) -> None:
    """`ValueError` for an option that would be ignored. None and False ask for nothing."""
    for name, value in given.items():
        if name not in (*known, *_WITHOUT_EFFECT) and value is not None and value is not False:
            raise ValueError(f"{name}: expected none, found {value!r:.80}; {remedy}")


class SAILVLImageProcessor(BaseImageProcessor):
    """Images -> tiles."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers' custom)

    def __init__(self, processor: Processor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.processor = processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "SAILVLImageProcessor":
        return cls(Processor.from_folder(Path(pretrained_model_name_or_path)))

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> list[str]:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.processor.save(Path(save_directory))
        return [str(Path(save_directory) / FILE)]

    def to_dict(self) -> JsonObject:
        return {
            "image_processor_type": type(self).__name__,
            **self.processor.settings.to_published(self.processor.config),
        }

    def __call__(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """`images`: one, a list of the images of one prompt, or a list of such lists (None for a prompt without).

        Returns `pixel_values` [all tiles, 3, S, S] (AnyRes of several sizes: a list of [1, 3, height, width]) and
        `num_patches` [images], the tiles of each image. Other options are refused.
        """
        for name, value in kwargs.items():
            if value is not None and (name, value) != ("crop_to_patches", True):  # as TRL asks, and as is always done
                raise ValueError(f"{name}: expected none, found {value!r:.80}; the checkpoint says how images are cut")
        tiles = [image for prompt in _by_prompt(images) for image in self.processor.open_images(None, prompt)]
        counts = torch.tensor([len(image) for image in tiles], dtype=torch.long)
        return BatchFeature({"pixel_values": _joined(tiles), "num_patches": counts})


class SAILVLProcessor(ProcessorMixin):
    """Chat template, tokenizer and image processor of one checkpoint."""

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token = IMAGE_CONTEXT
        self.image_token_id = self.processor.placeholder_id
        self.chat_template = self.processor.chat_template  # for servers; here messages are encoded by parts

    @property
    def processor(self) -> Processor:
        return self.image_processor.processor

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "SAILVLProcessor":
        options = {name: kwargs[name] for name in ("padding_side", "truncation_side") if name in kwargs}
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **{"padding_side": "left", **options})
        return cls(SAILVLImageProcessor.from_pretrained(pretrained_model_name_or_path), tokenizer)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        if push_to_hub:
            raise ValueError("push_to_hub: expected False, found True; upload the folder that is saved")
        return self.image_processor.save_pretrained(save_directory)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Messages -> text, or ids and pixels with `tokenize=True`.

        `thinking=True` appends the published instruction, `thinking="if_needed"` that of `Mode.auto`. Other options
        that would change the result are refused.
        """
        kwargs |= kwargs.pop("processor_kwargs", None) or {}  # where transformers' pipelines put options
        remedy = "the published template has no such part, and nothing is cut"
        _refuse({**kwargs, "chat_template": chat_template}, _TEMPLATE_OPTIONS, remedy)
        if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
            raise ValueError(f"conversation: expected a list of messages, found {shown(conversation)}")
        single = isinstance(conversation[0], dict)
        conversations = [conversation] if single else list(conversation)
        mode = _mode_of(kwargs.get("thinking"))
        if not kwargs.get("tokenize"):
            texts = [
                self._text(messages, mode, kwargs.get("add_generation_prompt", False)) for messages in conversations
            ]
            return texts[0] if single else texts
        if not kwargs.get("add_generation_prompt") and any(not _is_answered(messages) for messages in conversations):
            raise ValueError("add_generation_prompt: expected True for messages that end with the user's, found False")
        side = kwargs.get("padding_side") or self.tokenizer.padding_side
        opened = [with_open_images(messages) for messages in conversations]
        batch = self.processor.batch(opened, mode, padding_side=side)
        if kwargs.get("return_tensors") or kwargs.get("padding"):
            ids, mask = batch.token_ids, batch.attention_mask
        else:
            ids = [row[real.bool()].tolist() for row, real in zip(batch.token_ids, batch.attention_mask, strict=True)]
            mask = [[1] * len(row) for row in ids]
        if not kwargs.get("return_dict", True):
            return ids[0] if single else ids
        features: JsonObject = {"input_ids": ids, "attention_mask": mask}
        if batch.pixels:
            features["pixel_values"] = _joined(batch.pixels)
        return BatchFeature(features)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Rendered text with one `<img><IMG_CONTEXT></img>` (or `<image>`) per image -> padded ids and pixels.

        Options beside `padding`, `padding_side` and `return_tensors` are refused: cutting could split an image.
        """
        _refuse(kwargs, _TEXT_OPTIONS, "nothing is cut, because that could split an image; shorten the text")
        if text is None:
            raise ValueError("text: expected a string or a list of strings, found none")
        texts = [text] if isinstance(text, str) else list(text)
        prompts = _by_prompt(images, len(texts)) if images is not None else [[] for _ in texts]
        if len(prompts) != len(texts):
            raise ValueError(f"images: expected a list of images for each of {len(texts)} texts, found {len(prompts)}")
        tiles, expanded = [], []
        for one, pictures in zip(texts, prompts, strict=True):
            opened = self.processor.open_images(None, pictures)
            expanded.append(self._expand(one.replace("<image>", _IMAGE), opened))
            tiles += opened
        options = {name: kwargs[name] for name in ("padding", "padding_side", "return_tensors") if name in kwargs}
        encoded = self.tokenizer(expanded, add_special_tokens=False, **options)
        features: JsonObject = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if tiles:
            features["pixel_values"] = _joined(tiles)
        return BatchFeature(features)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def _text(self, messages: Sequence[JsonObject], mode: Mode, generation: bool) -> str:
        messages = [_with_pictures(message) for message in messages]
        ends = _is_answered(messages)
        tokens = (self.processor.conversation if ends else self.processor.prompt)(messages, mode)
        text = self.processor.tokenizer.decode(tokens.placeholder_ids, keep_control=True)
        header = "<|im_start|>assistant\n"
        return text if ends or generation else text.removesuffix(header)

    def _expand(self, text: str, images: Sequence[Tensor]) -> str:
        parts = text.split(IMAGE_CONTEXT)
        if len(parts) != len(images) + 1:
            raise ValueError(
                f"text: expected {len(images)} image placeholders, found {len(parts) - 1}; give one per image"
            )
        side = self.processor.config.pixels_per_token
        pieces = [parts[0]]
        for image, part in zip(images, parts[1:], strict=True):
            count = len(image) * (image.shape[2] // side) * (image.shape[3] // side)
            pieces += [IMAGE_CONTEXT * count, part]
        return "".join(pieces)


def _mode_of(thinking: object) -> Mode:
    """The mode that the option `thinking` asks for. `ValueError` for a value that is none of the three."""
    if not isinstance(thinking, bool | None) and thinking != Mode.auto.template_value:
        raise ValueError(f"thinking: expected True, False or 'if_needed', found {shown(thinking)}")
    return Mode.auto if thinking == Mode.auto.template_value else Mode.think if thinking else Mode.direct


def _by_prompt(images: Any, num_prompts: int = 1) -> list[list[Image.Image]]:
    """Images as one list per prompt: a flat list belongs to one prompt, or gives one image to each of several."""
    if isinstance(images, Image.Image):
        return [[images]]
    nested = images if isinstance(images, list | tuple) else [images]
    if any(isinstance(image, list | tuple) or image is None for image in nested):
        prompts = [list(image or []) for image in nested]
    else:
        prompts = [[image] for image in nested] if num_prompts > 1 else [list(nested)]
    for image in (image for prompt in prompts for image in prompt):
        if not isinstance(image, Image.Image):
            raise ValueError(f"images: expected PIL images, found {type(image).__name__}; open files with PIL first")
    return prompts


def _joined(tiles: Sequence[Tensor]) -> Tensor | list[Tensor]:
    sizes = {tuple(image.shape[1:]) for image in tiles}
    return torch.cat(list(tiles)) if len(sizes) == 1 else list(tiles)


def _with_pictures(message: JsonObject) -> JsonObject:
    """A message whose image parts all have an image: the rendered text does not depend on which."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = [
        {"type": "image", "image": _BLANK} if isinstance(part, dict) and part.get("type") in _IMAGE_TYPES else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def _is_answered(messages: Sequence[Any]) -> bool:
    return bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"


AutoImageProcessor.register(SailVLConfig, slow_image_processor_class=SAILVLImageProcessor, exist_ok=True)
AutoProcessor.register(SailVLConfig, SAILVLProcessor, exist_ok=True)
