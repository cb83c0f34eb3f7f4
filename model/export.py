"""A model folder in another number type: `python -m model.export checkpoint=DIR out=DIR dtype=bfloat16`.

With `adapter=DIR` low-rank adapters are added to the weights. Tensors are read and written one by one, so a model of
any size is converted within the memory of its largest tensor.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.config import ExportConfig, SailVL2Config
from model.run.durable import require_new_folder

if TYPE_CHECKING:
    from torch import Tensor

    from model.checkpoint import StoredTensors
    from model.lora.merge import ReleasedTensor


def export(config: ExportConfig, says: bool = True) -> None:
    """Write `config.out`, and say so. `ValueError` when the checkpoint is no model folder, or `out` has files in it."""
    from model.checkpoint import StoredTensors, fitting_config, load_processor, write_checkpoint

    checkpoint, out = Path(config.checkpoint), Path(config.out)
    processor = load_processor(checkpoint)
    stored = StoredTensors(checkpoint)
    shapes = fitting_config(SailVL2Config.from_folder(checkpoint), stored)
    parts = _parts(shapes, config.adapter)
    require_new_folder(out, "out")
    write_checkpoint(out, shapes, processor, _tensors(parts, stored), dtype=config.dtype)
    if not says:
        return
    added = f" with the adapters of {config.adapter}" if config.adapter else ""
    written = shapes.stored_dtype(config.dtype)
    print(f"{out}: the model of {checkpoint}{added} as {written}; it was stored as {stored.dtype}")


def _parts(config: SailVL2Config, adapter: str) -> "dict[str, ReleasedTensor]":
    """Released name -> where it stands in a model without memory, whose adapters alone are real."""
    import torch

    from model.lora.merge import released_parts
    from model.lora.peft_files import add_stored_adapters
    from model.sail_vl2 import SailVL2

    with torch.device("meta"):
        model = SailVL2(config)
    if adapter:
        add_stored_adapters(model, Path(adapter))
    return released_parts(model)


def _tensors(parts: "dict[str, ReleasedTensor]", stored: "StoredTensors") -> Iterator[tuple[str, "Tensor"]]:
    """Yield (released name, tensor with its adapter), sorted by name. A tied head that is not stored is the
    embedding."""
    from model.checkpoint import EMBEDDING, HEAD
    from model.lora.merge import whole

    for name, part in parts.items():
        weight = stored.get(EMBEDDING if name == HEAD and HEAD not in stored.shapes else name)
        yield name, part.merged(weight, whole).detach()


def main() -> int:
    return launch("export", ExportConfig, lambda config, resolved: export(config))


if __name__ == "__main__":
    sys.exit(main())
