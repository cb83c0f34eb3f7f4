"""SAIL-VL2 inside vLLM: our vision tower and adapter before vLLM's own Qwen3 or Qwen3-MoE decoder.

A prompt has one placeholder for each image or frame, which vLLM expands. A server gives images as PIL images. A rollout
gives pixels [tiles, 3, height, width] that our processor has made, so that sampler and trainer see the same bytes.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.model_executor.models.vision import run_dp_sharded_vision_model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    TimingContext,
)
from vllm.sequence import IntermediateTensors

from model.checkpoint import StoredTensors, fitting_config, weight_files
from model.config import AnyResVisionConfig, MoeLanguageConfig, SailVL2Config
from model.interface import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from model.processing.processor import Processor
from model.projector import build_adapter, visual_tokens
from model.vision import VisionModel

_BARRED = float("-inf")


class _TileProcessor:
    """Turns the images of one prompt into tiles. It stands in place of a transformers processor."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt") -> BatchFeature:
        opened = [image for image in images if isinstance(image, Image.Image)]
        if opened and len(opened) != len(images):
            raise ValueError("images: expected PIL images or pixels of one prompt, found both together")
        tiles = list(self._processor.open_images(None, opened)) if opened else list(images)
        for pixels in tiles:
            if not isinstance(pixels, Tensor) or pixels.dim() != 4:
                raise ValueError(
                    f"images: expected PIL images or pixels [tiles, 3, height, width], found {type(pixels).__name__} "
                    f"of shape {list(getattr(pixels, 'shape', ()))}"
                )
        counts = torch.tensor([len(pixels) for pixels in tiles])
        is_anyres = isinstance(self._processor.config.vision, AnyResVisionConfig)
        return BatchFeature({"pixel_values": tiles if is_anyres else torch.cat(tiles), "num_patches": counts})


class _Info(BaseProcessingInfo):
    @cached_property
    def processor(self) -> Processor:
        return Processor.from_folder(Path(self.model_id))

    def get_hf_processor(self, **kwargs: object) -> _TileProcessor:
        return _TileProcessor(self.processor)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.max_tokens}

    @property
    def max_tokens(self) -> int:
        """Most visual tokens that one image can take."""
        config, settings = self.processor.config, self.processor.settings
        if isinstance(config.vision, AnyResVisionConfig):
            return config.vision.max_patches // config.merge_side**2
        return config.num_image_tokens * (settings.max_tiles + settings.use_thumbnail)


class _DummyInputs(BaseDummyInputsBuilder[_Info]):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_CONTEXT * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: object
    ) -> dict[str, list[Tensor]]:
        """Return images that take as many visual tokens as any can."""
        config, count = self.info.processor.config, mm_counts.get("image", 0)
        side = config.pixels_per_token
        if isinstance(config.vision, AnyResVisionConfig):
            rows = int(self.info.max_tokens**0.5)
            shape = (1, 3, rows * side, self.info.max_tokens // rows * side)
        else:
            tiles = self.info.max_tokens // config.num_image_tokens
            shape = (tiles, 3, config.vision.image_size, config.vision.image_size)
        return {"image": [torch.zeros(shape) for _ in range(count)]} if count else {}


class _Processor(BaseMultiModalProcessor[_Info]):
    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        pixels = hf_inputs.get("pixel_values")
        if isinstance(pixels, list):
            field = MultiModalFieldConfig.batched("image")
        else:
            field = MultiModalFieldConfig.flat_from_sizes("image", hf_inputs.get("num_patches", torch.empty(0)))
        return {"pixel_values": field, "num_patches": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        placeholder, side = self.info.processor.placeholder_id, self.info.processor.config.pixels_per_token

        def expanded(index: int) -> list[int]:
            pixels: Any = out_mm_kwargs["image"][index]["pixel_values"].data
            tiles, _, height, width = pixels.shape
            return [placeholder] * (tiles * (height // side) * (width // side))

        return [PromptReplacement(modality="image", target=[placeholder], replacement=expanded)]

    def _cached_apply_hf_processor(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> object:
        # Multi-scale tiling depends on whether an image is alone in its prompt, which the cache does not know.
        if self.info.processor.settings.use_msac:
            return self._apply_hf_processor(inputs, timing_ctx)
        return super()._cached_apply_hf_processor(inputs, timing_ctx)


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=_DummyInputs)
class SailVL2ForVllm(nn.Module, SupportsMultiModal):
    """The model that vLLM runs. Its modules have the released names, and barred tokens have no probability."""

    packed_modules_mapping = {  # noqa: RUF012  (as vLLM's models have it)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    supports_encoder_tp_data = True

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality != "image":
            raise ValueError(f"media: expected images, found {modality}; give the frames of a video as images")
        return f"{IMAGE_START}{IMAGE_CONTEXT}{IMAGE_END}\n"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        hf_config = vllm_config.model_config.hf_config
        self.config = hf_config
        media = vllm_config.model_config.multimodal_config
        self._shares_images = media is not None and media.mm_encoder_tp_mode == "data"
        folder = Path(vllm_config.model_config.model)
        processor = Processor.from_folder(folder)
        self.shapes = shapes = _fitting_shapes(hf_config, folder)
        self.allow_patterns_overrides = _weight_patterns(folder)
        self.configure_mm_token_handling(shapes.language.vocab_size, [processor.placeholder_id])
        self._barred_ids = torch.tensor(processor.barred_ids, device=torch.get_default_device())
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_model = VisionModel(shapes.vision)
            self.mlp1 = build_adapter(shapes.vision.hidden_size, shapes.language.hidden_size, shapes.merge_side)
        is_moe = isinstance(shapes.language, MoeLanguageConfig)
        with self._mark_language_model(vllm_config):
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=hf_config.get_text_config(),
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["Qwen3MoeForCausalLM" if is_moe else "Qwen3ForCausalLM"],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Return [visual tokens, D] for each image."""
        pixels, counts = kwargs.get("pixel_values"), kwargs.get("num_patches")
        if pixels is None:
            return []
        if isinstance(pixels, Tensor) and pixels.dim() == 4:
            visual = self.visual_tokens(pixels)
            return [image.flatten(0, 1) for image in visual.split(torch.as_tensor(counts).flatten().tolist())]
        return [self.visual_tokens(image).flatten(0, 1) for image in pixels]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits = self.language_model.compute_logits(hidden_states)
        return None if logits is None else logits.index_fill_(-1, self._barred_ids, _BARRED)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights)

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """Return the visual tokens of an image. [tiles, tokens per tile, D]"""
        pixels = pixels.to(next(self.mlp1.parameters()).dtype)
        if self._shares_images and len(pixels) > 1:
            # The tower is whole on every device; each takes its share of the tiles.
            return run_dp_sharded_vision_model(pixels, self._own_tokens)  # pyright: ignore  (calls it)
        return self._own_tokens(pixels)

    def _own_tokens(self, pixels: Tensor) -> Tensor:
        shapes = self.shapes
        return visual_tokens(self.vision_model, self.mlp1, [pixels], shapes.vision.patch_size, shapes.merge_side)[0]


def _weight_patterns(folder: Path) -> list[str] | None:
    """Return the pattern by which vLLM's loader takes the weight files of a folder, and no others.

    By itself it takes every *.safetensors where there is no index, an old copy beside the model too, and files called
    consolidated before any other. None for a folder without weights. `ValueError` where no pattern tells them apart.
    """
    if not any(folder.glob("*.safetensors")):
        return None
    names = sorted(path.name for path in weight_files(folder)[0])
    begin = os.path.commonprefix(names)  # noqa: RUF071  (letter by letter is what is wanted)
    pattern = names[0] if len(names) == 1 else f"{begin}*.safetensors"
    if others := sorted({path.name for path in folder.glob(pattern)} - set(names)):
        raise ValueError(
            f"{folder}: expected the weight files {', '.join(names[:3])} ..., found {others[0]} too; remove it"
        )
    return [pattern]


def _fitting_shapes(hf_config: Any, folder: Path) -> SailVL2Config:
    """Return the folder's shapes, and tell vLLM whether the head is tied.

    It is tied exactly when it is stored equal to the embedding, or in a folder without weights, which is filled later,
    as its config says. `ValueError` names every tensor that does not fit.
    """
    shapes = hf_config.shapes()
    if any(folder.glob("*.safetensors")):
        shapes = fitting_config(shapes, StoredTensors(folder))
    hf_config.get_text_config().tie_word_embeddings = shapes.language.tie_word_embeddings
    return shapes
