"""SAIL-VL2 for transformers: importing this module makes the Auto classes know `sailvl` folders.

The modules are our own; key and value caching, generation and loading are transformers'. On disk the names are the
released ones, in memory they follow transformers' custom: `model` is the backbone, `lm_head` the head.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "model.hf: expected transformers, found none; install the extra: pip install 'sailvl2-rl[hf]'",
        name="transformers",
    ) from None
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils.generic import ModelOutput

import model.hf_processor  # noqa: F401  (registers image processor and processor)
from model.checkpoint import StoredTensors, fitting_config
from model.config import REPORT_COMPLETION_TOKENS
from model.hf_configuration import SailVLConfig
from model.json_values import JsonObject
from model.kernels.sdpa_attention import sdpa
from model.language import Decoder
from model.moe import Experts
from model.processing.processor import Processor
from model.processing.tokenizer import TOKENIZER_FILE
from model.projector import build_adapter, visual_tokens
from model.vision import Preprocessor, VisionModel


@dataclass
class SailVLOutput(ModelOutput):
    """`last_hidden_state` [B, L, D] of the backbone; `loss` (mean over labels that are not -100) and `logits` of the
    whole model."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None  # not collected
    attentions: tuple[Tensor, ...] | None = None  # not collected


class SailVLPreTrainedModel(PreTrainedModel):
    config_class = SailVLConfig
    base_model_prefix = "model"
    input_modalities: ClassVar[list[str]] = ["image", "text"]
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer", "VisionBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.get_text_config().initializer_range
        if isinstance(module, Preprocessor):
            nn.init.normal_(module.pos_embed, std=std)
        elif isinstance(module, Experts):
            nn.init.normal_(module.gate_up_proj, std=std)
            nn.init.normal_(module.down_proj, std=std)


class SailVLModel(SailVLPreTrainedModel):
    """Vision tower, adapter and decoder without the head."""

    def __init__(self, config: SailVLConfig) -> None:
        super().__init__(config)
        shapes = config.shapes()
        self.shapes = shapes
        self.vision_model = VisionModel(shapes.vision)
        self.mlp1 = build_adapter(shapes.vision.hidden_size, shapes.language.hidden_size, shapes.merge_side)
        self.language_model = Decoder(shapes.language)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value  # pyright: ignore

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Tiles [I, 3, height, width] -> visual tokens [I, tokens per tile, D]."""
        if pixel_values.dim() != 4:
            raise ValueError(f"pixel_values: expected [tiles, 3, height, width], found {list(pixel_values.shape)}")
        pixels, shapes = pixel_values.to(self.dtype), self.shapes
        return visual_tokens(self.vision_model, self.mlp1, [pixels], shapes.vision.patch_size, shapes.merge_side)[0]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | list[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        num_patches: Tensor | None = None,
        **kwargs: Any,
    ) -> SailVLOutput:
        """input_ids [B, L], attention_mask [B, past + L] (1 where real, left or right padding), `pixel_values` tiles
        [I, 3, S, S] in the order of the placeholders; AnyRes: one [1, 3, height, width] per image. `num_patches`, the
        tiles of each image, is taken and not needed."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if self.language_model.gradient_checkpointing and torch.is_grad_enabled():
            use_cache, past_key_values = False, None  # the second forward pass would append to the cache again
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.get_text_config())
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        batch, length = inputs_embeds.shape[:2]
        limit = self.shapes.language.max_position_embeddings
        if past + length > limit:
            raise ValueError(f"input_ids: expected at most max_position_embeddings = {limit}, found {past + length}")
        if pixel_values is not None and len(pixel_values):
            inputs_embeds = self._insert_images(inputs_embeds, input_ids, pixel_values)
        elif input_ids is not None and not past and bool((input_ids == self.config.image_token_id).any()):
            raise ValueError("pixel_values: expected the pixels of the image placeholders in input_ids, found none")
        if attention_mask is None:
            attention_mask = torch.ones(batch, past + length, dtype=torch.long, device=inputs_embeds.device)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, layer)
            return sdpa(q, k, v, visible(k.shape[2]), is_causal=False).transpose(1, 2)

        masks: dict[int, Tensor] = {}

        def visible(num_slots: int) -> Tensor:
            if num_slots not in masks:
                masks[num_slots] = _causal_mask(attention_mask, past, length, num_slots)
            return masks[num_slots]

        hidden, _ = self.language_model(inputs_embeds, position_ids, attend)
        return SailVLOutput(last_hidden_state=hidden, past_key_values=past_key_values)

    def _insert_images(self, embeddings: Tensor, ids: Tensor | None, pixel_values: Tensor | list[Tensor]) -> Tensor:
        if ids is None:
            raise ValueError("pixel_values: expected input_ids beside them, found inputs_embeds")
        groups = [pixel_values] if isinstance(pixel_values, Tensor) else pixel_values
        self.tiles_by_row(ids, pixel_values)
        if not all(bool(torch.isfinite(tiles).all()) for tiles in groups):
            raise ValueError("pixel_values: expected finite numbers, found NaN or infinity")
        features = torch.cat([self.get_image_features(tiles).flatten(0, 1) for tiles in groups])
        mask = ids == self.config.image_token_id
        return embeddings.masked_scatter(mask.unsqueeze(-1), features.to(embeddings.dtype))

    def tiles_by_row(self, ids: Tensor, pixel_values: Tensor | list[Tensor]) -> list[list[Tensor]]:
        """The tiles [1, 3, height, width] of each row. `ValueError` unless they fill its placeholders exactly."""
        groups = [pixel_values] if isinstance(pixel_values, Tensor) else pixel_values
        if any(tiles.dim() != 4 for tiles in groups):
            raise ValueError(
                f"pixel_values: expected [tiles, 3, height, width], found {[list(tiles.shape) for tiles in groups]}"
            )
        side = self.shapes.pixels_per_token
        waiting = [tile for tiles in groups for tile in tiles.split(1)]
        rows: list[list[Tensor]] = []
        for number, count in enumerate((ids == self.config.image_token_id).sum(1).tolist()):
            row: list[Tensor] = []
            missing = count
            while missing > 0 and waiting:
                row.append(waiting.pop(0))
                missing -= (row[-1].shape[2] // side) * (row[-1].shape[3] // side)
            if missing:
                raise ValueError(
                    f"input_ids: row {number}: expected image placeholders for whole tiles of pixel_values, "
                    f"found {count} for the {count - missing} tokens of its {len(row)} tiles"
                )
            rows.append(row)
        if waiting:
            raise ValueError(f"pixel_values: expected tiles for the placeholders alone, found {len(waiting)} left over")
        return rows


def _causal_mask(attention_mask: Tensor, past: int, length: int, num_slots: int) -> Tensor:
    """[B, 1, length, num_slots]: real slots up to the query's own; padding sees itself, so that no row is empty."""
    real = F.pad(attention_mask.bool(), (0, num_slots - attention_mask.shape[1]))
    slots = torch.arange(num_slots, device=attention_mask.device)
    queries = torch.arange(past, past + length, device=attention_mask.device)[:, None]
    return ((slots <= queries) & real[:, None, None, :]) | (slots == queries)


class SailVLForConditionalGeneration(SailVLPreTrainedModel, GenerationMixin):
    """The whole model, with `generate`."""

    accepts_loss_kwargs = False  # the loss is a plain mean: Trainer divides by its accumulation steps
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # PEFT reads this; its use of the mapping that is registered below misses mlp1 and the tower (PEFT 0.21).
    _checkpoint_conversion_mapping: ClassVar[dict[str, str]] = {
        r"^language_model\.model\.": "model.language_model.",
        r"^mlp1\.": "model.mlp1.",
        r"^vision_model\.": "model.vision_model.",
    }

    def __init__(self, config: SailVLConfig) -> None:
        super().__init__(config)
        language = config.get_text_config()
        self.model = SailVLModel(config)
        self.lm_head = nn.Linear(language.hidden_size, language.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: SailVLConfig | None = None,
        **kwargs: Any,
    ) -> "SailVLForConditionalGeneration":
        """As transformers does it, of a folder whose tensors fit: it would draw missing ones at random. The head is
        tied exactly when it is stored equal to the embedding. `ValueError` names the file or every wrong tensor."""
        if pretrained_model_name_or_path is not None and Path(pretrained_model_name_or_path).is_dir():
            folder = Path(pretrained_model_name_or_path)
            config = config or SailVLConfig.from_pretrained(folder)
            language = fitting_config(config.shapes(), StoredTensors(folder)).language
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = language.tie_word_embeddings
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model: SailVLForConditionalGeneration = loaded[0] if isinstance(loaded, tuple) else loaded
        model._complete_generation_settings(Path(str(pretrained_model_name_or_path)))
        return loaded

    def _complete_generation_settings(self, folder: Path) -> None:
        """Take what the folder's generation_config.json leaves out from its tokenizer: end of turn, barred ids."""
        found = self.generation_config
        names = ("eos_token_id", "pad_token_id", "suppress_tokens")
        if (folder / TOKENIZER_FILE).is_file() and any(getattr(found, name, None) is None for name in names):
            for name, value in Processor.from_folder(folder).generation_settings.items():
                if getattr(found, name, None) is None:
                    setattr(found, name, value)

    def _prepare_generated_length(self, **given: Any) -> Any:
        """Where no limit is given, it is the report's, or what the model's context leaves; transformers' own is 20."""
        config = given["generation_config"]
        if given["has_default_max_length"] and config.max_new_tokens is None:
            room = self.model.shapes.language.max_position_embeddings - given["input_ids_length"]
            config.max_new_tokens = max(1, min(REPORT_COMPLETION_TOKENS, room))
        return super()._prepare_generated_length(**given)  # pyright: ignore

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | list[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_patches: Tensor | None = None,
        **kwargs: Any,
    ) -> SailVLOutput:
        """See `SailVLModel.forward`. `labels` [B, L], -100 where nothing is predicted; `logits_to_keep` last logits."""
        out = self.model(
            input_ids, pixel_values, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        hidden = out.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        out.logits = self.lm_head(hidden[:, kept])
        if labels is not None:
            logits = out.logits if out.logits.shape[1] == hidden.shape[1] else self.lm_head(hidden)
            shifted = logits[:, :-1].flatten(0, 1).float()
            out.loss = F.cross_entropy(shifted, labels[:, 1:].flatten().to(shifted.device), ignore_index=-100)
        return out

    def prepare_inputs_for_generation(self, input_ids: Tensor, pixel_values: Any = None, **kwargs: Any) -> dict:
        """Images belong to the prompt: the first call of a generation sees them, and every call without a cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)  # pyright: ignore
        past = kwargs.get("past_key_values")
        if kwargs.get("is_first_iteration") or past is None or not past.get_seq_length():
            inputs["pixel_values"] = pixel_values
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """The mask stays [B, L]: the backbone makes its own from it, for any cache."""
        return attention_mask

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, JsonObject]:
        """Repeat prompts with their images: transformers would repeat single tiles."""
        pixels = model_kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1:
            rows = self.model.tiles_by_row(input_ids, pixels)
            tiles = [tile for row in rows for _ in range(expand_size) for tile in row]
            pixels = torch.cat(tiles) if isinstance(pixels, Tensor) else tiles
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # pyright: ignore
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "pixel_values": pixels} if pixels is not None else model_kwargs


def _register() -> None:
    renames = [
        WeightRenaming(r"^vision_model\.", "model.vision_model."),
        WeightRenaming(r"^mlp1\.", "model.mlp1."),
        WeightRenaming(r"^language_model\.lm_head\.", "lm_head."),
        WeightRenaming(r"^language_model\.model\.", "model.language_model."),
    ]
    experts = get_checkpoint_conversion_mapping("qwen3_moe") or []
    register_checkpoint_conversion_mapping("sailvl", [*renames, *experts], overwrite=True)
    AutoModel.register(SailVLConfig, SailVLModel, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        auto.register(SailVLConfig, SailVLForConditionalGeneration, exist_ok=True)


_register()
