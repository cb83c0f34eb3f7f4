"""The settings in `preprocessor_config.json`: how images are cut and normalised. Torch-free.

The released 2B folder caps an image at 10 tiles here and at 12 in `config.json`; its processor follows this file.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from model.config import AnyResVisionConfig, SailVL2Config
from model.interface import DEFAULT_SYSTEM_TEXT, THINKING_INSTRUCTION
from model.json_values import JsonObject, read_json_object
from model.processing.tiling import Cutter, OwnSize, Tiling

FILE = "preprocessor_config.json"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ProcessorSettings:
    """How a processor treats images, and where it puts the thinking instruction."""

    max_tiles: int
    min_tiles: int = 1
    use_thumbnail: bool = True
    use_msac: bool = False
    """multi-scale tiling of prompts with a single image, as in the authors' evaluation runs"""
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    upscale: int = 1
    """bilinear enlargement before tiling; the authors evaluate MMMU with 2"""
    instruction_on_new_line: bool = False
    """put a newline before the thinking instruction, as the authors' evaluation code does; the model card has none"""

    def __post_init__(self) -> None:
        for name in ("max_tiles", "min_tiles", "upscale"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a positive whole number, found {value!r}")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise ValueError(f"{name}: expected three numbers, found {values!r}")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std: expected positive numbers, found {self.image_std}")
        Tiling(1, self.max_tiles, min(self.min_tiles, self.max_tiles))  # refuses caps beyond reason

    @classmethod
    def from_config(cls, config: SailVL2Config) -> "ProcessorSettings":
        return cls(config.max_dynamic_patch, config.min_dynamic_patch, config.use_thumbnail)

    @classmethod
    def from_folder(cls, folder: Path, config: SailVL2Config) -> "ProcessorSettings":
        """Those of `folder/preprocessor_config.json`; what it leaves out, or all without it, is the config's."""
        path = Path(folder) / FILE
        if not path.is_file():
            return cls.from_config(config)
        try:
            raw = read_json_object(path)
        except OSError as error:
            raise ValueError(f"{path}: expected a file that can be read, found: {error}") from None
        try:
            return cls._from_published(raw, config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _from_published(cls, raw: JsonObject, config: SailVL2Config) -> "ProcessorSettings":
        size = raw.get("image_size", config.vision.image_size)
        if size != config.vision.image_size:
            raise ValueError(
                f"image_size: expected {config.vision.image_size} as in config.json, found {size!r}; "
                "the two files belong to different checkpoints"
            )
        base = cls.from_config(config)
        for name in ("use_thumbnail", "use_msac", "instruction_on_new_line"):
            if not isinstance(raw.get(name, False), bool):
                raise ValueError(f"{name}: expected true or false, found {raw[name]!r}")
        max_tiles = raw.get("max_dynamic_patch", base.max_tiles)
        return cls(
            max_tiles=max_tiles,
            min_tiles=raw.get("min_dynamic_patch", base.min_tiles),
            use_thumbnail=raw.get("use_thumbnail", base.use_thumbnail),
            use_msac=raw.get("use_msac", False),
            image_mean=tuple(raw.get("image_mean", IMAGENET_MEAN)),
            image_std=tuple(raw.get("image_std", IMAGENET_STD)),
            upscale=raw.get("upscale", 1),
            instruction_on_new_line=raw.get("instruction_on_new_line", False),
        )

    def to_published(self, config: SailVL2Config) -> JsonObject:
        """The released keys, then ours."""
        return {
            "image_size": config.vision.image_size,
            "patch_size": config.vision.patch_size,
            "max_dynamic_patch": self.max_tiles,
            "use_msac": self.use_msac,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "min_dynamic_patch": self.min_tiles,
            "use_thumbnail": self.use_thumbnail,
            "upscale": self.upscale,
            "instruction_on_new_line": self.instruction_on_new_line,
            "num_image_token": config.num_image_tokens,
            "thinking_instruction": THINKING_INSTRUCTION,
            "default_system_text": DEFAULT_SYSTEM_TEXT,
        }

    def cutter(self, config: SailVL2Config, max_tiles: int | None, single: bool) -> Cutter:
        """How to cut an image; `max_tiles` lowers or raises the cap, `single` says that a prompt has no other."""
        cap = self.max_tiles if max_tiles is None else max_tiles
        if type(cap) is not int or cap < 1:
            raise ValueError(f"max_tiles: expected a positive whole number, found {cap!r}")
        if isinstance(config.vision, AnyResVisionConfig):
            return OwnSize(config.pixels_per_token, config.vision.max_patches // config.merge_side**2, self.upscale)
        return Tiling(
            tile_size=config.vision.image_size,
            max_tiles=cap,
            min_tiles=min(self.min_tiles, cap),
            thumbnail=self.use_thumbnail,
            msac=self.use_msac and single,
            upscale=self.upscale,
        )
