"""One process of an update whose memory and time are measured: `python -m benchmarks.parts.measured_update CASE`.

CASE is a JSON object with the fields of `Case`. With several ranks each is started by `measure`, as torchrun would. The
last line of rank 0 is one JSON object: bytes of resident memory of this process at the peak beyond those before the
model was built, seconds of its processor that an update takes (median), and FLOP/s of a square product in turns with
it. They are seconds of the processor, because others may use it too.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.parts import measure as _  # noqa: F401  (before torch: it sets how long idle threads spin)
from benchmarks.parts.update_cases import SIZES, build_group, build_model, placeholder_id, policy_loss
from model.config import SailVL2Config
from model.engine.build import open_engine, run_on_ranks
from model.engine.config import EngineConfig, FsdpConfig, OptimizerConfig
from model.engine.source import AdaptedSource, Rows
from model.lora.config import AdapterConfig, LoraConfig
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rlhf.trajectory import Packing

if TYPE_CHECKING:
    from model.engine.lead import Lead

SIDE = 1536


@dataclass(frozen=True)
class Case:
    """One group of `group` completions about an image, for each process."""

    size: str
    text: int  # tokens of the prompt beside its 256 visual ones
    completion: int
    group: int
    checkpointing: bool = False
    ranks: int = 1  # 1: the engine of one process; more: FSDP
    adapter_rank: int = 0
    rounds: int = 3

    @property
    def adapter(self) -> AdapterConfig:
        return LoraConfig(rank=self.adapter_rank) if self.adapter_rank else AdapterConfig()


@dataclass(frozen=True)
class SizeSource:
    """A model of the benchmark's sizes, as every process can make it."""

    size: str

    def shapes(self) -> SailVL2Config:
        return SIZES[self.size]

    def model(self) -> tuple[SailVL2, Processor]:
        return build_model(SIZES[self.size]), None  # pyright: ignore[reportReturnType]  (nobody asks for it)

    def open(self) -> tuple[SailVL2Config, Rows]:
        shapes = {name: parameter.shape for name, parameter in _on_meta(SIZES[self.size]).named_parameters()}

        def rows(name: str, start: int, stop: int) -> torch.Tensor:
            return torch.randn(stop - start, *shapes[name][1:]) * 0.02

        return SIZES[self.size], rows

    def prepare(self, model: SailVL2) -> None:
        pass


def _on_meta(config: SailVL2Config) -> SailVL2:
    with torch.device("meta"):
        return SailVL2(config)


def measure(case: Case) -> dict[str, float]:
    """Start the processes of a case, and return what rank 0 found. `RuntimeError` where one fails."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.parts.measured_update", json.dumps(asdict(case))]
    places = {"WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(case.ranks):
        own = {**places, "RANK": str(rank), "LOCAL_RANK": str(rank)} if case.ranks > 1 else {}
        environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise RuntimeError(f"{case}: exit codes {[one.returncode for one in started]}")
    return json.loads(said[0].splitlines()[-1])


def measure_here(case: Case, lead: "Lead | None") -> dict[str, float]:
    """Measure this process, where `lead` leads others."""
    torch.set_num_threads(1)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    torch.mm(a, b)
    _on_meta(SIZES["T"])  # libraries that the first such model loads count as there before
    before = resident()
    settings = {"num_threads": 1, "gradient_checkpointing": case.checkpointing}
    config = FsdpConfig(**settings) if lead else EngineConfig(**settings)
    shapes = SIZES[case.size]
    source = AdaptedSource(SizeSource(case.size), case.adapter, 0)
    engine = open_engine(lead, source, config, OptimizerConfig(learning_rate=1e-30), 10**9)
    groups = [build_group(shapes, n, [case.completion] * case.group, case.text) for n in range(case.ranks)]
    length = 256 + case.text + case.group * case.completion
    batches = Packing(length, placeholder_id(shapes), shapes.pixels_per_token).pack(groups)
    algorithm = policy_loss()
    denominator = algorithm.denominator(groups)
    seconds, rates = [], []
    for _round in range(case.rounds + 1):
        begin = time.process_time()
        torch.mm(a, b)
        rates.append(2 * SIDE**3 / (time.process_time() - begin))
        begin = time.process_time()
        engine.accumulate(batches, algorithm.loss, denominator)
        engine.step()
        seconds.append(time.process_time() - begin)
    return {
        "bytes": resident("VmHWM") - before,
        "seconds": statistics.median(seconds[1:]),
        "flops": max(rates),
    }


def resident(kind: str = "VmRSS") -> int:
    """Bytes of memory of this process now (VmRSS) or at most (VmHWM)."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(f"{kind}:"):
                return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: expected a line {kind}, found none")


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))

    def run(lead: "Lead | None") -> None:
        print(json.dumps(measure_here(case, lead)), flush=True)

    config = FsdpConfig(num_threads=1) if case.ranks > 1 else EngineConfig(num_threads=1)
    run_on_ranks(config, sys.argv[1], dict, run)


if __name__ == "__main__":
    main()
