"""Starts processes of one engine without torchrun, runs cases of `engine_cases` in them, and keeps what rank 0 found.

Run as a program it is one of the processes; `launch` starts them all.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from model.engine.base import TrainEngine
from model.engine.build import open_engine, run_on_ranks
from model.engine.config import ENGINE_CONFIGS, EngineConfig, ShardedConfig

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(num_ranks: int, rank: int, port: int) -> dict[str, str]:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    own = {name: str(value) for name, value in values.items()}
    return {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(num_ranks: int, command: list[str], folder: Path, **variables: str) -> list[subprocess.Popen]:
    """Start a command on every rank; each writes to a log of its own."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**environment(num_ranks, rank, port), **variables},
            cwd=ROOT,
            stdout=(folder / f"rank{rank}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(num_ranks)
    ]


def ends(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Exit codes. Whoever is left after so many seconds is killed, and counts as -9."""
    end = time.monotonic() + seconds
    try:
        for one in processes:
            one.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for one in processes:
            if one.poll() is None:
                one.send_signal(signal.SIGKILL)
    return [one.wait() for one in processes]


def launch(
    num_ranks: int, module: str, job: dict[str, object], folder: Path, seconds: float = 300
) -> dict[str, Tensor]:
    """What `MODULE.run(job, build)` gives on rank 0."""
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps({"module": module, **job}))
    codes = ends(start(num_ranks, [str(Path(__file__)), str(folder)], folder), seconds)
    said = "\n".join((folder / f"rank{rank}.txt").read_text()[-3000:] for rank in range(num_ranks))
    assert codes == [0] * num_ranks, f"{codes}\n{said}"
    return torch.load(folder / "found.pt", weights_only=False)


def config_of(name: str, overrides: dict[str, object], given: EngineConfig) -> ShardedConfig:
    """The settings of an engine by name, with those of a case."""
    fields = {key: value for key, value in vars(given).items() if key != "name"}
    return ENGINE_CONFIGS[name](**{**fields, **overrides})  # pyright: ignore[reportReturnType]


def main(folder: Path) -> None:
    sys.path.insert(0, str(ROOT))
    import importlib

    job = json.loads((folder / "job.json").read_text())
    work = importlib.import_module(job["module"])
    engine, overrides = job["engine"], job.get("overrides", {})

    def run(lead: object) -> None:
        def build(setting: object) -> TrainEngine:
            config = config_of(engine, overrides, setting.config)
            return open_engine(lead, setting.source, config, setting.optimizer, setting.total_steps)

        torch.save(work.run(job, build, folder), folder / "found.pt")

    run_on_ranks(config_of(engine, overrides, EngineConfig(num_threads=1)), json.dumps(job), dict, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
