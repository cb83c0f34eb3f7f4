"""One process of a sharded engine for the benchmarks of engines: `launch` starts them, each prints what it measured."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.parts.checkpoint_memory import resident
from benchmarks.parts.update_cases import SIZES, case_groups, placeholder_id, policy_loss
from model.batch import Row, TrainBatch, pack_rows
from model.checkpoint import flavour_processor
from model.config import Flavour, SailVL2Config, flavour_config
from model.engine import link as links
from model.engine.base import TrainEngine
from model.engine.build import open_engine, run_on_ranks
from model.engine.config import FsdpConfig, OptimizerConfig
from model.engine.lead import Here, Lead
from model.engine.parts import Costs
from model.engine.source import Rows
from model.processing.messages import Media
from model.processing.processor import Processor
from model.processing.visuals import plan_visuals
from model.run.durable import write_folder
from model.sail_vl2 import SailVL2
from model.supervised import cross_entropy
from rlhf.trajectory import Packing

_MIB = 2**20
_PLACEHOLDER = 0


@dataclasses.dataclass(frozen=True)
class DrawnSource:
    """A model of a size with drawn weights, of which a process makes its own rows alone."""

    size: str

    def model(self) -> tuple[SailVL2, Processor]:
        model = SailVL2(SIZES[self.size])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(_drawn(name, parameter.shape, 0, parameter.shape[0]))
        return model, flavour_processor(Flavour.tiny)

    def open(self) -> tuple[SailVL2Config, Rows]:
        with torch.device("meta"):
            shapes = {name: one.shape for name, one in SailVL2(SIZES[self.size]).named_parameters()}
        return SIZES[self.size], lambda name, start, stop: _drawn(name, shapes[name], start, stop)

    def prepare(self, model: SailVL2) -> None:
        pass


def _drawn(name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + start)
    return 0.02 * torch.randn((stop - start, *shape[1:]), generator=generator)


def launch(num_ranks: int, work: str, *arguments: str) -> list[dict[str, Any]]:
    """Start processes of an engine, and return the figures of each."""
    with tempfile.TemporaryDirectory() as folder:
        starter = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        command = [sys.executable, "-m", *starter, "-m", "benchmarks.parts.engine_ranks", work, folder, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-3000:]}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(num_ranks)]


def memory(lead: Lead, folder: str, size: str) -> None:
    """Peaks of every process: building with one small update; saving; drawing all weights as a sampler gets them."""
    warm_up(lead)
    before = lead.on_all_alike("resident", read_resident)
    lead.on_all_alike("reset peak", reset_peak)
    engine = open_engine(lead, DrawnSource(size), lead.ranks.config, OptimizerConfig(learning_rate=1e-6), 10)
    built = lead.on_all_alike("peak", read_peak)
    lead.on_all_alike("reset peak", reset_peak)
    accumulate_little(engine, SIZES[size])
    update = lead.on_all_alike("peak", read_peak)
    lead.on_all_alike("reset peak", reset_peak)
    engine.step()
    stepped = lead.on_all_alike("peak", read_peak)
    lead.on_all_alike("reset peak", reset_peak)
    begin = lead.on_all_alike("resident", read_resident)
    write_folder(Path(folder) / "saved", {}, engine.save)
    saved = lead.on_all_alike("peak", read_peak)
    lead.on_all_alike("reset peak", reset_peak)
    start = lead.on_all_alike("resident", read_resident)
    deque(engine.weights(), maxlen=0)  # holds none of them
    drawn = lead.on_all_alike("peak", read_peak)
    for rank in range(lead.ranks.num_ranks):
        figures = {
            "held_mib": (max(built[rank], stepped[rank]) - before[rank]) / _MIB,
            "update_mib": (update[rank] - before[rank]) / _MIB,
            "save_mib": (saved[rank] - begin[rank]) / _MIB,
            "publish_mib": (drawn[rank] - start[rank]) / _MIB,
        }
        (Path(folder) / f"{rank}.json").write_text(json.dumps(figures))


def warm_up(lead: Lead) -> None:
    """Load libraries and take buffers with the smallest size, so that they are no part of a measure."""
    engine = open_engine(lead, DrawnSource("T"), lead.ranks.config, OptimizerConfig(learning_rate=1e-6), 10)
    accumulate_little(engine, SIZES["T"])
    engine.step()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "saved", {}, engine.save)
    deque(engine.weights(), maxlen=0)  # holds none of them


def accumulate_little(engine: TrainEngine, config: SailVL2Config) -> None:
    """Gradients of all weights from one image and two tokens for each process."""
    side, count = config.vision.image_size, config.num_image_tokens
    image = torch.zeros(1, 3, side, side)
    rows = [Row([_PLACEHOLDER] * count + [1, 2], [[3, 4]], (image,)) for _ in range(engine.num_parts)]
    made = [pack_rows([row], _PLACEHOLDER, config.pixels_per_token) for row in rows]
    batches = [TrainBatch(inputs, torch.ones(2)) for inputs in made]
    engine.accumulate(batches, cross_entropy, 4.0)


def read_resident(here: Here) -> int:
    return resident()


def reset_peak(here: Here) -> bool:
    Path("/proc/self/clear_refs").write_text("5")
    return True


def read_peak(here: Here) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


class Clock:
    """Adds up the seconds in which a process of the engine packs, sends and unpacks, and nothing else."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Any) -> Any:
        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


CLOCK = Clock()


def time_links(here: Here) -> None:
    """From here on count what the link does on this rank."""
    links._pack = CLOCK.around(links._pack)
    links._Unpickler.load = CLOCK.around(links._Unpickler.load)
    here.ranks.link.send = CLOCK.around(here.ranks.link.send) if here.ranks.rank == 0 else here.ranks.link.send


def take_seconds(here: Here) -> float:
    found, CLOCK.seconds = CLOCK.seconds, 0.0
    return found


def overhead(lead: Lead, folder: str, size: str, rounds: str) -> None:
    """Seconds of updates, and of them those that dealing, sending and answering add."""
    config = SIZES[size]
    engine = open_engine(lead, DrawnSource(size), lead.ranks.config, OptimizerConfig(learning_rate=1e-6), 1000)
    groups, algorithm = case_groups(size, "1:1"), policy_loss()
    packing = Packing(8192, placeholder_id(config), config.pixels_per_token, engine.num_parts, Costs.of(config))
    steps, added = [], []
    for number in range(int(rounds) + 1):
        if number == 1:
            lead.on_all_alike("time links", time_links)
        begin = time.perf_counter()
        batches = packing.pack(groups)
        engine.accumulate(batches, algorithm.loss, algorithm.denominator(groups))
        engine.step()
        took = time.perf_counter() - begin
        seconds = lead.on_all_alike("take seconds", take_seconds)
        if number > 1:
            steps.append(took)
            added.append(sum(seconds))
    figures = {"step_seconds": steps, "added_seconds": added}
    for rank in range(lead.ranks.num_ranks):
        (Path(folder) / f"{rank}.json").write_text(json.dumps(figures))


def scatter(lead: Lead, folder: str, gigabytes: str) -> None:
    """Seconds to send micro-batches whose images decode to so many GiB, by reference and as pixels."""
    by_reference = stored_rows(Path(folder), float(gigabytes))
    parts = [[by_reference[rank :: lead.ranks.num_ranks]] for rank in range(lead.ranks.num_ranks)]
    figures = {}
    for name in ("reference", "pixels"):
        if name == "pixels":
            parts = [[[inputs.to(torch.device("cpu")) for inputs in part[0]]] for part in parts]
        begin = time.perf_counter()
        lead.on_all("scatter", count_tiles, [tuple(part) for part in parts])
        figures[f"{name}_seconds"] = time.perf_counter() - begin
    for rank in range(lead.ranks.num_ranks):
        (Path(folder) / f"{rank}.json").write_text(json.dumps(figures))


def count_tiles(here: Here, part: Sequence[Any]) -> int:
    return sum(inputs.num_tiles for inputs in part)


def stored_rows(folder: Path, gigabytes: float) -> list[Any]:
    """Micro-batches of images of 1344 x 1344 pixels in files, as the 2B model tiles them."""
    config = flavour_config(Flavour.sailvl2_2b)
    processor = Processor(config, flavour_processor(Flavour.tiny).tokenizer).storing_pictures()
    pixels = np.random.default_rng(0).integers(0, 255, (1344, 1344, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.jpg", quality=80)
    (visual,) = plan_visuals([Media("image.jpg")], config, processor.settings, folder, None)
    one = 4 * visual.shape[0] * 3 * visual.shape[1] * visual.shape[2]
    made = []
    for _ in range(max(1, round(gigabytes * 2**30 / one))):
        (picture,) = processor.pictures(folder, [visual])
        ids = [_PLACEHOLDER] * visual.tokens_each + [5, 6]
        made.append(pack_rows([Row(ids, [[7, 8]], (picture,))], _PLACEHOLDER, config.pixels_per_token))
    return made


WORK = {"memory": memory, "overhead": overhead, "scatter": scatter}


def main() -> None:
    work, folder, *arguments = sys.argv[1:]
    config = FsdpConfig(num_threads=1)

    def run(lead: Lead | None) -> None:
        assert lead is not None
        WORK[work](lead, folder, *arguments)

    run_on_ranks(config, work, dict, run)


if __name__ == "__main__":
    main()
