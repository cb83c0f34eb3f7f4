"""Count a model's parameters without building it: `python -m model.describe model=sailvl2_2b` (or checkpoint=DIR).

A table by tower, counted on the meta device; where stdout is no terminal, one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.config import DescribeConfig, SailVL2Config, Tower, flavour_config
from model.json_values import JsonObject
from model.run.failpoints import reach
from model.run.manifest import verify_files

if TYPE_CHECKING:
    from model.sail_vl2 import SailVL2

_BF16_BYTES = 2


def describe(config: SailVL2Config) -> JsonObject:
    """Parameter counts of the model and of each tower.

    *Stored*: every tensor of a checkpoint, so both head and embedding. *Trainable*: a tied pair once. *Active*: what
    one token uses, with `num_experts_per_tok` experts a layer, of the stored ones.
    """
    import torch

    from model.sail_vl2 import SailVL2

    with torch.device("meta"):
        model = SailVL2(config)
    towers = {tower.name: _count(model, tower.value) for tower in Tower}
    total, trainable, active = (sum(t[key] for t in towers.values()) for key in ("total", "trainable", "active"))
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        "active_parameters": active,
        "total_bytes_bf16": total * _BF16_BYTES,
        "visual_tokens_per_tile": config.num_image_tokens,
        "towers": towers,
    }


def _count(model: "SailVL2", tower: str) -> dict[str, int]:
    from model.checkpoint import released_tensors
    from model.config import MoeLanguageConfig

    stored = {n: t.numel() for n, t in released_tensors(model).items() if n.startswith(f"{tower}.")}
    total = sum(stored.values())
    # A tied head is the same parameter as the embedding, and `parameters` names it once.
    trainable = sum(p.numel() for n, p in model.named_parameters() if n.startswith(f"{tower}."))
    language = model.config.language
    idle = 0
    if isinstance(language, MoeLanguageConfig):
        experts = sum(count for name, count in stored.items() if ".experts." in name)
        idle = experts - experts * language.num_experts_per_tok // language.num_experts
    return {
        "total": total,
        "trainable": trainable,
        "active": total - idle,
        "bytes_bf16": total * _BF16_BYTES,
    }


def run_describe(config: DescribeConfig, resolved: str) -> None:
    from rich.console import Console
    from rich.table import Table

    named = config.checkpoint or config.model.value
    if config.checkpoint:
        verify_files(Path(config.checkpoint), ["config.json"])
    shapes = SailVL2Config.from_folder(Path(config.checkpoint)) if config.checkpoint else flavour_config(config.model)
    reach("count")
    facts = describe(shapes)
    if not sys.stdout.isatty():
        print(json.dumps(facts))
        return
    table = Table("tower", "stored", "trainable", "active", "bf16 bytes", title=f"{named}: parameters")
    for name, tower in facts["towers"].items():
        table.add_row(name, *(f"{tower[key]:,}" for key in ("total", "trainable", "active", "bytes_bf16")))
    totals = [facts[f"{key}_parameters"] for key in ("total", "trainable", "active")]
    table.add_row("all", *(f"{count:,}" for count in [*totals, facts["total_bytes_bf16"]]), end_section=True)
    console = Console(width=100)
    console.print(table)
    console.print(f"visual tokens of one {shapes.vision.image_size}-pixel tile: {shapes.num_image_tokens}")
    which = f"checkpoint={config.checkpoint}" if config.checkpoint else f"model={named}"
    console.print(f"what training it takes: python -m rlhf.estimate {which}")


def main() -> int:
    return launch("describe", DescribeConfig, run_describe)


if __name__ == "__main__":
    sys.exit(main())
