"""The published `config.json` as transformers' configuration classes."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from model.config import SailVL2Config
from model.json_values import JsonObject


@strict
class SailViTConfig(PreTrainedConfig):
    """The published `vision_config`."""

    model_type = "sailvit"
    base_config_key = "vision_config"

    hidden_size: int = 1536
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    rms_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    projection_dropout: float | int = 0.0
    qkv_bias: bool = False
    use_bias: bool = False


@strict
class SailViTAnyResConfig(SailViTConfig):
    """Our schema of the AnyRes tower: none is published."""

    model_type = "sailvit_anyres"
    max_patches: int = 16384


_VISION_CONFIGS = {"sailvit": SailViTConfig, "sailvit_anyres": SailViTAnyResConfig}


@strict
class SailVLConfig(PreTrainedConfig):
    """The published `config.json`; `llm_config` is the text config.

    `image_token_id` is not published; our exports write it.
    """

    model_type = "sailvl"
    sub_configs: ClassVar[JsonObject] = {"vision_config": AutoConfig, "llm_config": AutoConfig}
    auto_map: ClassVar[dict[str, str]] = {}  # TRL asks for it when it loads a reference model

    vision_config: dict | PreTrainedConfig | None = None
    llm_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151671
    downsample_ratio: float = 0.5
    dynamic_image_size: bool = True
    force_image_size: int = 448
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    pad2square: bool = False
    ps_version: str = "v2"
    select_layer: int = -1
    template: str = "univl-chat"
    use_thumbnail: bool = True
    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            raw = dict(self.vision_config or {})
            kind = raw.pop("model_type", "sailvit")
            if kind not in _VISION_CONFIGS:
                raise ValueError(f"vision_config.model_type: expected {' or '.join(_VISION_CONFIGS)}, found {kind!r}")
            self.vision_config = _VISION_CONFIGS[kind](**raw)
        if not isinstance(self.llm_config, PreTrainedConfig):
            raw = dict(self.llm_config or {})
            kind = raw.pop("model_type", "qwen3")
            if kind not in ("qwen3", "qwen3_moe"):
                raise ValueError(f"llm_config.model_type: expected qwen3 or qwen3_moe, found {kind!r}")
            self.llm_config = CONFIG_MAPPING[kind](**raw)
        self.tie_word_embeddings = self.llm_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self.llm_config  # pyright: ignore

    def shapes(self) -> SailVL2Config:
        """Our own description of the same model."""
        return SailVL2Config.from_published({**self.to_dict(), "model_type": "sailvl"})


for _config in (SailViTConfig, SailViTAnyResConfig, SailVLConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
