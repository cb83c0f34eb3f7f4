"""Shapes of the SAIL-VL2 towers, read from and written in the published `config.json` schema.

Torch-free. Source of every published value: SAIL-VL2 technical report, table 1, and the released 2B folder.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

FLAVOUR_FOLDER = Path(__file__).parent / "flavours"


class Flavour(Enum):
    """Named model shapes that can be built from nothing."""

    tiny = "tiny"


@dataclass(frozen=True)
class VisionConfig:
    """SAIL-ViT: AIMv2 topology at a fixed image size (report section 2.1.2)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    image_size: int
    num_channels: int = 3
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _require_multiple("vision_config.hidden_size", self.hidden_size, self.num_attention_heads)
        _require_multiple("vision_config.image_size", self.image_size, 2 * self.patch_size)

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.patches_per_side**2


@dataclass(frozen=True)
class LanguageConfig:
    """Qwen3 dense decoder (report section 2.2)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _require_multiple("llm_config.num_attention_heads", self.num_attention_heads, self.num_key_value_heads)
        _require_multiple("llm_config.head_dim", self.head_dim, 2)


@dataclass(frozen=True)
class SailVL2Config:
    """The whole model. `downsample_ratio` 0.5 is the 2x2 pixel-shuffle (version v2)."""

    vision: VisionConfig
    language: LanguageConfig
    downsample_ratio: float = 0.5
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    use_thumbnail: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    """Published keys this code does not read; kept so that an export loses nothing."""

    @property
    def merge_side(self) -> int:
        return round(1 / self.downsample_ratio)

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of one tile: 256 at 448 pixels and patch 14."""
        return self.vision.num_patches // self.merge_side**2

    def to_published(self) -> dict[str, Any]:
        """The `config.json` dictionary of a checkpoint folder."""
        return {
            "architectures": ["SAILVLModel"],
            "model_type": "sailvl",
            "force_image_size": self.vision.image_size,
            "dynamic_image_size": True,
            "pad2square": False,
            "ps_version": "v2",
            "select_layer": -1,
            "template": "univl-chat",
            "torch_dtype": "float32",
            "use_backbone_lora": 0,
            "use_llm_lora": 0,
            **self.extra,
            "downsample_ratio": self.downsample_ratio,
            "min_dynamic_patch": self.min_dynamic_patch,
            "max_dynamic_patch": self.max_dynamic_patch,
            "use_thumbnail": self.use_thumbnail,
            "vision_config": {
                "architectures": ["SAILViTModel"],
                "model_type": "sailvit",
                "qkv_bias": False,
                "use_bias": False,
                **asdict(self.vision),
            },
            "llm_config": {
                "architectures": ["Qwen3ForCausalLM"],
                "model_type": "qwen3",
                "hidden_act": "silu",
                "attention_bias": False,
                **asdict(self.language),
            },
        }

    @classmethod
    def from_published(cls, raw: dict[str, Any], where: str = "config.json") -> "SailVL2Config":
        """Parse a published `config.json`; `where` names the file in errors."""
        found = raw.get("model_type") if isinstance(raw, dict) else raw
        if found != "sailvl":
            raise ValueError(
                f"{where}: model_type: expected 'sailvl', found {found!r}; give the folder of a SAIL-VL2 checkpoint"
            )
        llm_kind = (raw.get("llm_config") or {}).get("model_type", "qwen3")
        if llm_kind != "qwen3":
            raise ValueError(f"{where}: llm_config.model_type: expected 'qwen3' (dense), found {llm_kind!r}")
        own = ("downsample_ratio", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail")
        known = {*own, "vision_config", "llm_config"}
        return cls(
            vision=_section(VisionConfig, raw, "vision_config", where),
            language=_section(LanguageConfig, raw, "llm_config", where),
            extra={key: value for key, value in raw.items() if key not in known},
            **{key: raw[key] for key in own if key in raw},
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "SailVL2Config":
        """Read `folder/config.json`. `ValueError` if it is missing or describes another model."""
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: expected a checkpoint folder, found no config.json; "
                "give the folder that holds config.json and *.safetensors"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: expected JSON, found: {error}") from None
        return cls.from_published(raw, str(path))


def flavour_config(flavour: Flavour) -> SailVL2Config:
    """Shapes of a named flavour."""
    return SailVL2Config.from_folder(FLAVOUR_FOLDER / flavour.value)


def _section(cls: type, raw: dict[str, Any], name: str, where: str) -> Any:
    section = raw.get(name)
    if not isinstance(section, dict):
        raise ValueError(f"{where}: {name}: expected an object, found {type(section).__name__}")
    try:
        return cls(**{f.name: section[f.name] for f in fields(cls) if f.name in section})
    except TypeError as error:
        raise ValueError(f"{where}: {name}: {error}") from None


def _require_multiple(name: str, value: int, of: int) -> None:
    if of <= 0 or value % of:
        raise ValueError(f"{name}: expected a multiple of {of}, found {value}")
