"""A model folder in another number type: `python -m model.export checkpoint=DIR out=DIR dtype=bfloat16`.

Tensors are read and written one by one, so a model of any size is converted within the memory of its largest tensor.
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


def export(config: ExportConfig) -> None:
    """Write `config.out`. `ValueError` when the checkpoint is no model folder, or `out` has files in it."""
    from model.checkpoint import StoredTensors, fitting_config, load_processor, write_checkpoint

    checkpoint, out = Path(config.checkpoint), Path(config.out)
    processor = load_processor(checkpoint)
    stored = StoredTensors(checkpoint)
    shapes = fitting_config(SailVL2Config.from_folder(checkpoint), stored)
    require_new_folder(out, "out")
    write_checkpoint(out, shapes, processor, _tensors(shapes, stored), dtype=config.dtype)
    print(f"{out}: the model of {checkpoint} as {shapes.stored_dtype(config.dtype)}; it was stored as {stored.dtype}")


def _tensors(config: SailVL2Config, stored: "StoredTensors") -> Iterator[tuple[str, "Tensor"]]:
    """Yield (released name, tensor), sorted by name. A tied head that is not stored is the embedding."""
    from model.checkpoint import EMBEDDING, HEAD, released_shapes

    for name in released_shapes(config):
        yield name, stored.get(EMBEDDING if name == HEAD and HEAD not in stored.shapes else name)


def main() -> int:
    return launch("export", ExportConfig, lambda config, resolved: export(config))


if __name__ == "__main__":
    sys.exit(main())
