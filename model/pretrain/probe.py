"""Probes of the vision tower before and after training: `python -m model.pretrain.probe checkpoints=[A,B] data=FILE`.

One line for each checkpoint: top-1 accuracy of a two-layer head on the mean of the last block's tokens, and how near
the visual tokens behind the adapter lie to the embedding table. docs/probes.md explains the figures.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.cli import launch
from model.pretrain.probes.config import ProbeConfig
from model.run.durable import write_file

if TYPE_CHECKING:
    from model.pretrain.probes.labelled import LabelledImages

_AFFINITY = ("nearest_neighbour", "wasserstein", "mean_distance")


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Measure every checkpoint, print one table, and write `config.output`. `ValueError` for rows that do not fit."""
    from model.pretrain.probes.labelled import LabelledImages

    data = LabelledImages(config)
    print(f"{len(data.train)} images train the head, {len(data.test)} test it, {len(data.classes)} classes", flush=True)
    found = {folder: _measure(config, folder, data) for folder in config.checkpoints}
    result = {
        "classes": len(data.classes),
        "train_images": len(data.train),
        "test_images": len(data.test),
        "seed": config.seed,
        "checkpoints": found,
    }
    columns = ["top1", *_AFFINITY] if config.affinity_images else ["top1"]
    width = max(len(folder) for folder in [*found, "checkpoint"])
    print("  ".join([f"{'checkpoint':{width}}", *(f"{column:>17}" for column in columns)]))
    for folder, figures in found.items():
        print("  ".join([f"{folder:{width}}", *(f"{figures[column]:17.4f}" for column in columns)]))
    if config.output:
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, (json.dumps(result, indent=2) + "\n").encode())
        print(f"result: {output}")
    return result


def _measure(config: ProbeConfig, folder: str, data: "LabelledImages") -> dict[str, float]:
    """The figures of one checkpoint."""
    import torch

    from model.checkpoint import load_model
    from model.engine.device import pick_device, prepare_cpu
    from model.pretrain.probes.affinity import affinity
    from model.pretrain.probes.tower_head import features_of, tiles_of, top1

    prepare_cpu(config.num_threads)
    device = pick_device(config.device)
    model, processor = load_model(Path(folder))
    model = model.to(device).requires_grad_(False)
    sets = data.train, data.test
    train, test = ((features_of(model, processor, rows, config.batch_size), data.labels_of(rows)) for rows in sets)
    found = {"top1": top1(train, test, len(data.classes), config)}
    if shown := data.test[: config.affinity_images]:
        tokens = [model.visual_tokens([tiles_of(row, processor, device)])[0].flatten(0, 1) for row in shown]
        found |= affinity(torch.cat(tokens), model.language_model.model.embed_tokens.weight, config.seed)
    return found


def run(config: ProbeConfig, resolved: str) -> None:
    probe(config)


def main() -> int:
    return launch("probe", ProbeConfig, run)


if __name__ == "__main__":
    sys.exit(main())
