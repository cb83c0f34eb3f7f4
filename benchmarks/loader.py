"""The loader without a model: `python -m benchmarks.loader [ROWS] [FOLDER]`.

`resume_seconds` is the time from a checkpoint's state at position 10^7 of a simulated corpus of 10^7 rows in four
sources to the rows of the next step: mixture, packer and plan, everything but reading. `cost_ratio` is the CPU time a
row of planning 20,000 rows takes in a corpus of 10^6 rows over that in one of 10^4. `samples_per_core_second` is how
many rows with a JPEG of 640 x 480 and a caption one process reads from a tar file of ROWS (2,000) at random places,
tokenises, decodes, cuts into tiles of 448 pixels as the 2B does, and normalises in a second of its CPU time;
`tiles_per_core_second` is their tiles. `random_read_ms` is the time to read one row at a random place, undecoded. The
last line is one JSON object.
"""

import io
import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

from benchmarks.parts.arguments import arguments

from benchmarks.parts.measure import environment  # isort: skip  (before torch)

import numpy as np
from PIL import Image

from model.checkpoint import flavour_processor
from model.config import Flavour, flavour_config
from model.corpus.corpus import Corpus
from model.corpus.mixture import MixedSource, Mixture
from model.corpus.reading import build_row, example_at
from model.data.config import LoaderConfig, SourceConfig, TableConfig
from model.data.packing import StreamPacker
from model.data.sources import DataFolders
from model.processing.processor import Processor

CAPACITY, BINS, CANDIDATES, PLANNED, POSITION = 8192, 32, 32, 20_000, 10**7
SHARES = {"captions": 4.0, "ocr": 2.0, "chat": 1.0, "text": 1.0}


class Simulated:
    """A corpus of lengths alone."""

    def __init__(self, num_rows: int) -> None:
        rng = np.random.default_rng(0)
        self.visual = 256 * rng.integers(0, 13, num_rows)
        self.tokens = np.minimum(self.visual + rng.integers(20, 900, num_rows), CAPACITY)
        own = max(1, num_rows // len(SHARES))
        self.mixture = Mixture({name: MixedSource(own, weight) for name, weight in SHARES.items()}, seed=0)
        self.own = own
        self.packer = StreamPacker(self.length, BINS, CAPACITY, CANDIDATES * BINS, 64)

    def length(self, position: int) -> tuple[int, int] | None:
        draw = self.mixture.at(position)
        if draw is None:
            return None
        row = draw.source * self.own + draw.row
        return int(self.tokens[row]), int(self.visual[row])


def resume_seconds() -> float:
    """Median of five."""
    corpus = Simulated(POSITION)
    waiting = [[POSITION - 1 - 3 * number, 0] for number in range(CANDIDATES * BINS - 1)][::-1]
    state = {"position": POSITION, "step": POSITION // 100, "waiting": waiting}
    found = []
    for _ in range(5):
        begin = time.perf_counter()
        mixture = Mixture({name: MixedSource(corpus.own, weight) for name, weight in SHARES.items()}, seed=0)
        corpus.mixture = mixture
        packer = StreamPacker(corpus.length, BINS, CAPACITY, CANDIDATES * BINS, 64)
        packer.restore(state)
        packer.next()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def seconds_a_row(corpus: Simulated) -> float:
    begin, count = time.process_time(), 0
    while count < PLANNED:
        count += sum(map(len, corpus.packer.next().bins))
    return (time.process_time() - begin) / count


def cost_ratio() -> float:
    """Median over seven rounds in turns."""
    small, large = Simulated(10**4), Simulated(10**6)
    for corpus in (small, large):
        seconds_a_row(corpus)
    ratios = [seconds_a_row(large) / seconds_a_row(small) for _ in range(7)]
    return statistics.median(ratios)


def write_tar(path: Path, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(16):
        small = Image.fromarray(rng.integers(0, 255, (15, 20, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    with tarfile.open(path, "w") as archive:
        for number in range(num_rows):
            words = " ".join(f"word{rng.integers(1000)}" for _ in range(40))
            for ending, content in (("jpg", pictures[number % 16]), ("txt", words.encode())):
                info = tarfile.TarInfo(f"{number:08}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def reading(num_rows: int, folder: Path) -> dict[str, float]:
    """Rows and tiles a second of CPU time, and the time of one undecoded row."""
    path = folder / "loader.tar"
    write_tar(path, num_rows)
    # The 2B's way to cut images, and a tokenizer that is at hand.
    processor = Processor(flavour_config(Flavour.sailvl2_2b), flavour_processor(Flavour.tiny).tokenizer)
    source = SourceConfig(paths=[str(path)], template="Describe the image.")
    corpus = Corpus("a", source, "", TableConfig(), LoaderConfig(0), processor, DataFolders(), CAPACITY)
    order = np.random.default_rng(1).permutation(len(corpus))[: min(len(corpus), 300)]
    tasks = [corpus.task(int(row), opens_images=True) for row in order]
    begin = time.process_time()
    tiles = sum(image.shape[0] for task in tasks for image in build_row(task, processor).images)
    built = time.process_time() - begin
    begin = time.perf_counter()
    for task in tasks:
        example_at(task.address)
    read = time.perf_counter() - begin
    return {
        "samples_per_core_second": len(tasks) / built,
        "tiles_per_core_second": tiles / built,
        "random_read_ms": 1000 * read / len(tasks),
    }


def main() -> None:
    given = arguments(__doc__)
    num_rows = int(given[0]) if given else 2000
    with tempfile.TemporaryDirectory(dir=given[1] if len(given) > 1 else None) as folder:
        figures = {"resume_seconds": resume_seconds(), "cost_ratio": cost_ratio(), **reading(num_rows, Path(folder))}
    print(json.dumps({**{key: float(f"{value:.4g}") for key, value in figures.items()}, "environment": environment(1)}))


if __name__ == "__main__":
    main()
