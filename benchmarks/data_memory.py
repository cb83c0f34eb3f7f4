"""Memory of SFT's data on many rows with images: `python -m benchmarks.data_memory [rows=20000] [cache_mib=64]`.

Every row has an image of its own. Measured is the resident memory of the process: before the rows are opened, when they
are, and the peak while every row was built twice. The last line is one JSON object.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.parts.arguments import arguments
from benchmarks.parts.checkpoint_memory import peak_of, resident
from benchmarks.parts.measure import environment
from model.checkpoint import build_flavour
from model.config import Flavour
from model.data.sources import DataFolders
from sft.config import SftConfig, SftDataConfig
from sft.data import open_samples

BATCH = 64


def write_rows(folder: Path, count: int) -> Path:
    """Demonstrations as JSONL, each with a grey image of 32 x 32 that no other row has."""
    rng = np.random.default_rng(0)
    path = folder / "demonstrations.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            name = f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / name, compress_level=1)
            content = [{"type": "image", "image": name}, {"type": "text", "text": f"What is in image {number}?"}]
            messages = [{"role": "user", "content": content}]
            completion = f"<think>It shows {number}.</think>\\\\boxed{{{number}}}"
            row = {"id": str(number), "mode": "think", "messages": messages, "completions": [completion]}
            file.write(json.dumps(row) + "\n")
    return path


def measure(folder: Path, count: int, cache_mib: int) -> dict[str, float]:
    """MiB and seconds."""
    path = write_rows(folder, count)
    _, processor = build_flavour(Flavour.tiny, 0)
    data = SftDataConfig(demonstrations=str(path), cache_mib=cache_mib)
    config = SftConfig(checkpoint="-", batch_size=BATCH, data=data)
    before, begin = resident(), time.monotonic()
    rows_of_step = open_samples(config, processor, DataFolders())
    opened, opening = resident(), time.monotonic() - begin
    pixels = 0

    def two_passes() -> None:
        nonlocal pixels
        for step in range(2 * rows_of_step.steps_per_pass):
            pixels += sum(image.nbytes for row in rows_of_step(step) for image in row.images)

    begin = time.monotonic()
    peak = peak_of(two_passes)
    return {
        "rows": count,
        "cache_mib": cache_mib,
        "pixels_of_all_rows_mib": round(pixels / 2 / 2**20, 1),
        "opening_mib": round((opened - before) / 2**20, 1),
        "opening_seconds": round(opening, 1),
        "peak_while_building_mib": round(peak, 1),
        "building_seconds": round(time.monotonic() - begin, 1),
    }


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in arguments(__doc__))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), int(settings.get("rows", "20000")), int(settings.get("cache_mib", "64")))
    print(json.dumps({**environment(1), **found}))


if __name__ == "__main__":
    main()
