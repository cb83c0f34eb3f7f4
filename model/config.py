"""Shapes of the SAIL-VL2 towers, read from and written in the published `config.json` schema.

Torch-free. Source of every published value: SAIL-VL2 technical report, table 1, and the released 2B folder.
"""

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from model.json_values import JsonObject, member, read_json_config

FLAVOUR_FOLDER = Path(__file__).parent / "flavours"


class Flavour(Enum):
    """Named model shapes that can be built from nothing."""

    tiny = "tiny"
    tiny_moe = "tiny_moe"
    tiny_anyres = "tiny_anyres"
    tiny_base = "tiny_base"
    sailvl2_1b = "sailvl2_1b"
    sailvl2_2b = "sailvl2_2b"
    sailvl2_anyres_2b = "sailvl2_anyres_2b"
    sailvl2_8b = "sailvl2_8b"
    sailvl2_a3b = "sailvl2_a3b"


class Tower(Enum):
    """Parts that can be frozen; values are module names."""

    vision = "vision_model"
    adapter = "mlp1"
    language = "language_model"


class AttentionKernel(Enum):
    """The kernel that computes attention over packed rows.

    `auto`: on NVIDIA GPUs from Ampere on flash kernels for sequences of any length (`varlen`), in float32
    flex_attention; on CPU runs of tokens (`split`), or plain SDPA for short sequences without branches; SDPA elsewhere.
    """

    auto = "auto"
    sdpa = "sdpa"
    varlen = "varlen"
    flex = "flex"
    split = "split"


class Device(Enum):
    """Where weights and arithmetic are. `auto`: the GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class StoredDtype(Enum):
    """Number type of the weights in a folder that a command writes. `keep`: that of the folder that it started from,
    and float32 where it started from none."""

    keep = "keep"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Resolution(Enum):
    """`fixed`: images are cut into square tiles; `any`: an image keeps its shape (AnyRes)."""

    fixed = "fixed"
    any = "any"


@dataclass(frozen=True)
class VisionConfig:
    """SAIL-ViT: AIMv2 topology (report section 2.1.2). Every image is cut into square tiles of `image_size` pixels."""

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
        """Patches of one tile, and learned positions."""
        return self.patches_per_side**2


@dataclass(frozen=True)
class AnyResVisionConfig(VisionConfig):
    """SAIL-ViT-AnyRes: an image is one tile of its own size; the learned positions, stored for a square of `image_size`
    pixels, are interpolated to its grid (report section 2.1.2). The published figure draws 2-D RoPE instead; see
    DESIGN.md."""

    max_patches: int = 16384
    """largest input in patches: 1792 x 1792 pixels at patch 14 (report section 6.1)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_patches < 4:
            raise ValueError(f"vision_config.max_patches: expected at least 4, found {self.max_patches}")


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


@dataclass(frozen=True, kw_only=True)
class MoeLanguageConfig(LanguageConfig):
    """Qwen3-MoE decoder: every layer routes each token to `num_experts_per_tok` of `num_experts` (no shared expert);
    the weights of a token's experts are made to sum to 1."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"llm_config.num_experts_per_tok: expected 1 to num_experts = {self.num_experts}, "
                f"found {self.num_experts_per_tok}"
            )


_VISION_KINDS = {"sailvit": VisionConfig, "sailvit_anyres": AnyResVisionConfig}
_LANGUAGE_KINDS = {"qwen3": LanguageConfig, "qwen3_moe": MoeLanguageConfig}
_LANGUAGE_CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
# The code builds exactly this; a config that asks for anything else describes another model.
_FIXED = {
    "": {"ps_version": "v2", "select_layer": -1, "pad2square": False},
    "vision_config": {"qkv_bias": False, "use_bias": False},
    "llm_config": {
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "rope_scaling": None,
    },
    "qwen3_moe": {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
}
_OWN = ("downsample_ratio", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail")


@dataclass(frozen=True)
class SailVL2Config:
    """The whole model. `downsample_ratio` 0.5 is the 2x2 pixel-shuffle (version v2)."""

    vision: VisionConfig
    language: LanguageConfig
    downsample_ratio: float = 0.5
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    use_thumbnail: bool = True
    published: JsonObject = field(default_factory=dict, compare=False)
    """The dictionary this was read from; an export keeps its keys that this code does not read."""

    def __post_init__(self) -> None:
        if self.downsample_ratio != 0.5:
            raise ValueError(f"downsample_ratio: expected 0.5, found {self.downsample_ratio}")
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            raise ValueError(
                f"min_dynamic_patch: expected 1 to max_dynamic_patch = {self.max_dynamic_patch}, "
                f"found {self.min_dynamic_patch}"
            )

    @property
    def merge_side(self) -> int:
        return round(1 / self.downsample_ratio)

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels behind one visual token: 28 at patch 14."""
        return self.vision.patch_size * self.merge_side

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of one square tile: 256 at 448 pixels and patch 14."""
        return self.vision.num_patches // self.merge_side**2

    def to_published(self) -> JsonObject:
        """The `config.json` dictionary of a checkpoint folder."""
        vision_kind = _kind(_VISION_KINDS, self.vision)
        language_kind = _kind(_LANGUAGE_KINDS, self.language)
        written = {
            **_FIXED[""],
            "architectures": ["SAILVLModel"],
            "model_type": "sailvl",
            "force_image_size": self.vision.image_size,
            "dynamic_image_size": True,
            "template": "univl-chat",
            "dtype": "float32",
            "use_backbone_lora": 0,
            "use_llm_lora": 0,
            **_kept({k: v for k, v in self.published.items() if k not in ("vision_config", "llm_config")}),
            **{name: getattr(self, name) for name in _OWN},
            "vision_config": {
                "architectures": ["SAILViTModel"],
                "model_type": vision_kind,
                **_FIXED["vision_config"],
                **_kept(self.published.get("vision_config", {})),
                **asdict(self.vision),
            },
            "llm_config": {
                "architectures": [_LANGUAGE_CLASSES[language_kind]],
                "model_type": language_kind,
                **_FIXED["llm_config"],
                **_FIXED.get(language_kind, {}),
                **_kept(self.published.get("llm_config", {})),
                **asdict(self.language),
            },
        }
        return deepcopy(written)

    def stored_dtype(self, wanted: StoredDtype | str = StoredDtype.keep) -> str:
        """Name of the type that weights are written in: `wanted`, or for `keep` that of the folder this was read from.

        `ValueError` for a name that is no `StoredDtype`.
        """
        wanted = member(StoredDtype, wanted, "dtype")
        if wanted is not StoredDtype.keep:
            return wanted.value
        found = self.published.get("dtype", self.published.get("torch_dtype"))
        return found if found in (StoredDtype.bfloat16.value, StoredDtype.float16.value) else StoredDtype.float32.value

    @classmethod
    def from_published(cls, raw: JsonObject, where: str = "config.json") -> "SailVL2Config":
        """Parse a published `config.json`; `where` names the file in errors."""
        found = raw.get("model_type") if isinstance(raw, dict) else raw
        if found != "sailvl":
            raise ValueError(
                f"{where}: model_type: expected 'sailvl', found {found!r}; give the folder of a SAIL-VL2 checkpoint"
            )
        for key in _OWN:
            if key in raw:
                _require_kind(f"{where}: {key}", raw[key], cls.__annotations__[key].__name__)
        _check_fixed(raw, "", where)
        try:
            return cls(
                vision=_section(_VISION_KINDS, raw, "vision_config", where),
                language=_section(_LANGUAGE_KINDS, raw, "llm_config", where),
                published=deepcopy(raw),
                **{key: raw[key] for key in _OWN if key in raw},
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}" if where not in str(error) else str(error)) from None

    @classmethod
    def from_folder(cls, folder: Path) -> "SailVL2Config":
        """Read `folder/config.json`. `ValueError` if it is missing or describes another model."""
        return cls.from_published(read_json_config(folder), str(Path(folder) / "config.json"))


def flavour_config(flavour: Flavour) -> SailVL2Config:
    """Shapes of a named flavour."""
    return SailVL2Config.from_folder(FLAVOUR_FOLDER / flavour.value)


def language_section(raw: JsonObject, where: str) -> LanguageConfig:
    """A decoder's own published dictionary (a Qwen3 or Qwen3-MoE `config.json`)."""
    return _section(_LANGUAGE_KINDS, {"llm_config": raw}, "llm_config", where)


def vision_section(raw: JsonObject, where: str) -> VisionConfig:
    """A vision tower's own published dictionary (an AIMv2 or SAIL-ViT `config.json`)."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: vision_config: expected an object, found {raw!r:.80}")
    kind = raw.get("model_type", "")
    if kind not in (*_VISION_KINDS, "aimv2", "aimv2_vision_model"):
        raise ValueError(f"{where}: model_type: expected aimv2 or sailvit, found {kind!r}")
    own = raw if kind in _VISION_KINDS else {**raw, "model_type": "sailvit"}
    return _section(_VISION_KINDS, {"vision_config": own}, "vision_config", where)


def _section(kinds: dict[str, type], raw: JsonObject, name: str, where: str) -> Any:
    section = raw.get(name)
    if not isinstance(section, dict):
        raise ValueError(f"{where}: {name}: expected an object, found {type(section).__name__}")
    kind = section.get("model_type", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: {name}.model_type: expected {' or '.join(kinds)}, found {kind!r}")
    _check_fixed(section, name, where)
    if kind == "qwen3_moe":
        # Absent means false to transformers.
        _check_fixed({"norm_topk_prob": False, **section}, name, where, _FIXED[kind])
    cls = kinds[kind]
    values = {f.name: section[f.name] for f in fields(cls) if f.name in section}
    rope = section.get("rope_parameters") or {}  # where transformers 5 writes it
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: {name}.rope_parameters: expected an object, found {rope!r}")
    if name == "llm_config" and "rope_theta" in rope:
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"{where}: {name}.rope_parameters: expected no scaling, found {rope}")
        values["rope_theta"] = rope["rope_theta"]
    if kind == "qwen3_moe" and "num_local_experts" in section:  # its other name in transformers 5
        values.setdefault("num_experts", section["num_local_experts"])
    for f in fields(cls):
        if f.name in values:
            _require_kind(f"{where}: {name}.{f.name}", values[f.name], getattr(f.type, "__name__", ""))
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {name}: {error}") from None


def _check_fixed(section: JsonObject, name: str, where: str, fixed: JsonObject | None = None) -> None:
    for key, expected in (_FIXED[name] if fixed is None else fixed).items():
        if key in section and section[key] != expected and not (expected is None and not section[key]):
            dotted = f"{name}.{key}".lstrip(".")
            raise ValueError(f"{where}: {dotted}: expected {expected!r}, found {section[key]!r}; this is another model")


def _kept(section: JsonObject) -> JsonObject:
    """Keys that stay true in an export: not who wrote the folder, in which dtype, nor code that is not beside it."""
    return {k: v for k, v in section.items() if k not in ("auto_map", "torch_dtype", "dtype", "transformers_version")}


def _kind(kinds: dict[str, type], section: Any) -> str:
    return next(name for name, cls in kinds.items() if type(section) is cls)


_MOST = {
    "num_hidden_layers": 1024,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "moe_intermediate_size": 2**20,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 2**14,
    "vocab_size": 2**23,
    "max_position_embeddings": 2**31,
    "num_experts": 8192,
    "num_experts_per_tok": 8192,
    "patch_size": 1024,
    "image_size": 2**14,
    "num_channels": 64,
    "max_patches": 2**22,
}
"""Bounds of the numbers that a model is built from: some ten times the largest model known, so that a damaged file is
refused at once instead of being built until memory ends."""


def _require_kind(name: str, value: Any, kind: str) -> None:
    """`ValueError` unless `value` is what a field of this annotation holds; numbers are positive and bounded."""
    most = _MOST.get(name.rpartition(".")[2], math.inf)
    if kind == "bool":
        good = isinstance(value, bool)
    else:
        kinds = int if kind == "int" else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < math.inf
    if not good:
        wanted = {"bool": "true or false", "int": "a positive whole number"}.get(kind, "a positive number")
        raise ValueError(f"{name}: expected {wanted}, found {value!r:.80}")
    if value > most:
        raise ValueError(f"{name}: expected at most {most}, found {value!r:.80}")


def _require_multiple(name: str, value: int, of: int) -> None:
    if of <= 0 or value % of:
        raise ValueError(f"{name}: expected a multiple of {of}, found {value}")


REPORT_COMPLETION_TOKENS = 4096
"""Longest completion where no limit is given, if the model's context leaves so many: SAIL-VL2 report, table 4."""


@dataclass
class DescribeConfig:
    model: Flavour = Flavour.sailvl2_2b
    """which shapes to describe"""
    checkpoint: str = ""
    """folder whose config.json to describe instead"""

    def __post_init__(self) -> None:
        self.model = member(Flavour, self.model, "model")


@dataclass
class ExportConfig:
    checkpoint: str = ""
    """folder of a model: a released one, or RUN/final or RUN/best of a run"""
    out: str = ""
    """folder to write"""
    dtype: StoredDtype = StoredDtype.keep
    """number type of the weights that are written; keep: that of the checkpoint"""
    adapter: str = ""
    """folder of adapters in PEFT's format to add to the weights, such as RUN/final_adapter; empty: none"""

    def __post_init__(self) -> None:
        self.dtype = member(StoredDtype, self.dtype, "dtype")
        for name in ("checkpoint", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a folder, found nothing")


@dataclass
class AssembleConfig:
    vision: str = ""
    """folder of an AIMv2 or SAIL-ViT vision tower, or of a SAIL-VL2 checkpoint"""
    language: str = ""
    """folder of a Qwen3 or Qwen3-MoE decoder, with its tokenizer, or of a SAIL-VL2 checkpoint"""
    out: str = ""
    """checkpoint folder to write"""
    seed: int = 0
    """seed of the adapter's fresh weights"""
    dtype: StoredDtype = StoredDtype.keep
    """number type of the weights that are written; keep: that of the decoder"""
    resolution: Resolution = Resolution.fixed
    """fixed: cut images into tiles, unless the tower is AnyRes already; any (AnyRes): interpolate the tower's positions
    to each image's own grid"""

    def __post_init__(self) -> None:
        self.dtype = member(StoredDtype, self.dtype, "dtype")
        self.resolution = member(Resolution, self.resolution, "resolution")
        for name in ("vision", "language", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a folder, found nothing")
