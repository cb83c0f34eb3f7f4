"""A checkpoint from trained towers: `python -m model.assemble vision=DIR language=DIR out=DIR`.

The vision folder holds an AIMv2 (as published by its authors, or as transformers writes it) or the vision tower of a
SAIL-VL2 checkpoint, whose tiles then stay as they are; the language folder a Qwen3 or Qwen3-MoE with its tokenizer, or
the decoder of a SAIL-VL2 checkpoint. The adapter starts fresh.
"""

import itertools
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.config import (
    AnyResVisionConfig,
    AssembleConfig,
    Resolution,
    SailVL2Config,
    language_section,
    vision_section,
)
from model.json_values import read_json_config
from model.run.durable import require_new_folder
from model.run.failpoints import reach
from model.run.manifest import verify_files

if TYPE_CHECKING:  # torch takes seconds, which --help need not
    import torch

    from model.checkpoint import StoredTensors

# transformers' Aimv2VisionModel -> the authors' names, which are ours; q, k, v are joined separately.
_AIMV2_NAMES = {
    r"^embeddings\.patch_embed\.": "preprocessor.patchifier.proj.",
    r"^embeddings\.rms_norm\.": "preprocessor.patchifier.norm.",
    r"^embeddings\.position_embedding\.weight$": "preprocessor.pos_embed",
    r"^rms_norm\.": "trunk.post_trunk_norm.",
    r"^encoder\.layers\.(\d+)\.attention\.out_proj\.": r"trunk.blocks.\1.attn.proj.",
    r"^encoder\.layers\.(\d+)\.attention\.([qkv])_proj\.": r"trunk.blocks.\1.attn.\2.",
    r"^encoder\.layers\.(\d+)\.ffn\.gate_proj\.": r"trunk.blocks.\1.mlp.fc1.",
    r"^encoder\.layers\.(\d+)\.ffn\.up_proj\.": r"trunk.blocks.\1.mlp.fc3.",
    r"^encoder\.layers\.(\d+)\.ffn\.down_proj\.": r"trunk.blocks.\1.mlp.fc2.",
    r"^encoder\.layers\.(\d+)\.rms_norm(\d)\.": r"trunk.blocks.\1.norm_\2.",
}
_UNUSED = ("head.", "classifier.")  # a pooling head that some AIMv2 folders carry


def vision_name(name: str) -> str:
    """Released name of a tensor of a vision folder."""
    name = re.sub(r"^(vision_model\.|model\.)", "", name)
    for pattern, ours in _AIMV2_NAMES.items():
        name = re.sub(pattern, ours, name)
    return f"vision_model.{name}"


def assemble(config: AssembleConfig) -> None:
    """Write `config.out`. `ValueError` when a folder is not what it should be, or `out` exists."""
    import torch

    from model.checkpoint import HEAD, check_names, empty_model, fill, released_tensors, save_model
    from model.processing.processor import Processor
    from model.processing.settings import ProcessorSettings
    from model.processing.tokenizer import Tokenizer

    out = Path(config.out)
    require_new_folder(out, "out")
    shapes = _joined_config(config)
    settings = ProcessorSettings.from_folder(Path(config.vision), shapes) if _keeps_cutting(config) else None
    processor = Processor(shapes, Tokenizer.from_folder(Path(config.language), add_missing=True), settings)
    vision, language = _vision_tensors(Path(config.vision)), _language_tensors(Path(config.language))
    shapes = replace(shapes, language=replace(shapes.language, tie_word_embeddings=language.is_tied(shapes)))
    reach("read")
    shapes = replace(shapes, published={"dtype": language.dtype})
    dtype = shapes.stored_dtype(config.dtype)
    model = empty_model(shapes, getattr(torch, dtype))  # as it is stored: 30B in float32 is 125 GB
    wanted = {name: tensor.shape for name, tensor in released_tensors(model).items()}
    check_names({n: t.shape for n, t in vision.items()}, _part(wanted, "vision_model."), config.vision, set())
    tied = {HEAD} if shapes.language.tie_word_embeddings else set()
    check_names(language.shapes, _part(wanted, "language_model."), config.language, tied)
    model.initialise(config.seed)
    fill(model, itertools.chain(vision.items(), language.read()))
    reach("filled")
    save_model(out, model, processor, dtype=dtype)
    print(f"wrote {out}: vision tower of {config.vision}, decoder of {config.language}, fresh adapter")


def _part(shapes: "dict[str, torch.Size]", prefix: str) -> "dict[str, torch.Size]":
    return {name: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _joined_config(config: AssembleConfig) -> SailVL2Config:
    for folder in (config.vision, config.language):
        if (Path(folder) / "config.json").exists():
            verify_files(Path(folder), ["config.json"])
    vision_raw, language_raw = read_json_config(Path(config.vision)), read_json_config(Path(config.language))
    vision = vision_section(vision_raw.get("vision_config", vision_raw), f"{config.vision}/config.json")
    language = language_section(language_raw.get("llm_config", language_raw), f"{config.language}/config.json")
    if config.resolution is Resolution.any:
        vision = AnyResVisionConfig(**{"max_patches": AnyResVisionConfig.max_patches, **asdict(vision)})
    elif _keeps_cutting(config):
        return replace(SailVL2Config.from_folder(Path(config.vision)), language=language)
    tiles = 1 if isinstance(vision, AnyResVisionConfig) else SailVL2Config.max_dynamic_patch
    return SailVL2Config(vision, language, max_dynamic_patch=tiles, use_thumbnail=tiles > 1)


def _keeps_cutting(config: AssembleConfig) -> bool:
    """Whether the tower was trained in a model, whose way to cut and normalise images it keeps."""
    from_model = read_json_config(Path(config.vision)).get("model_type") == "sailvl"
    return from_model and config.resolution is not Resolution.any


def _vision_tensors(folder: Path) -> "dict[str, torch.Tensor]":
    """Released name -> tensor, with q, k and v joined and positions as [1, P, D]."""
    import torch

    from model.checkpoint import StoredTensors

    def rename(name: str) -> str | None:
        foreign = name.startswith(("mlp1.", "language_model.", *_UNUSED))
        return None if foreign else vision_name(name)

    tensors = dict(StoredTensors(folder, rename).read())
    for name in [name for name in tensors if name.endswith(".attn.q.weight")]:
        stem = name.removesuffix("q.weight")
        parts = [f"{stem}{letter}.weight" for letter in "qkv"]
        if all(part in tensors for part in parts):
            tensors[f"{stem}qkv.weight"] = torch.cat([tensors.pop(part) for part in parts])
    positions = tensors.get("vision_model.preprocessor.pos_embed")
    if positions is not None and positions.dim() == 2:
        tensors["vision_model.preprocessor.pos_embed"] = positions[None]
    return tensors


def _language_tensors(folder: Path) -> "StoredTensors":
    from model.checkpoint import StoredTensors

    def rename(name: str) -> str | None:
        if name.startswith(("vision_model.", "mlp1.")):
            return None
        return name if name.startswith("language_model.") else f"language_model.{name}"

    return StoredTensors(folder, rename)


def main() -> int:
    return launch("assemble", AssembleConfig, lambda config, resolved: assemble(config))


if __name__ == "__main__":
    sys.exit(main())
