"""Extra memory of saving, loading and exporting an engine, in a process of its own: peaks of resident memory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from model.checkpoint import build_flavour
from model.config import Flavour, flavour_config
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.run.durable import write_folder
from model.sail_vl2 import SailVL2

_MIB = 2**20


def measure(folder: Path, width: int = 512) -> dict[str, float]:
    """MiB by which a model of this width makes the process grow at most, beside its own size and largest tensor."""
    config = flavour_config(Flavour.tiny)
    language = dataclasses.replace(
        config.language, hidden_size=width, intermediate_size=8 * width, num_hidden_layers=3, head_dim=64
    )
    model = SailVL2(dataclasses.replace(config, language=language))
    model.initialise(0)
    _, processor = build_flavour(Flavour.tiny, 0)
    engine = LocalEngine(model, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 1)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    # A first round takes what is taken once: libraries, buffers of the allocator.
    write_folder(folder / "warm", {}, engine.save)
    engine.load(folder / "warm")
    engine.export(folder / "warm", processor)
    found = {"model_mib": sum(sizes) / _MIB, "largest_tensor_mib": max(sizes) / _MIB}
    found["save_mib"] = peak_of(lambda: write_folder(folder / "saved", {}, engine.save))
    found["load_mib"] = peak_of(lambda: engine.load(folder / "saved"))
    found["export_mib"] = peak_of(lambda: engine.export(folder / "exported", processor, "bfloat16"))
    return {name: round(value, 1) for name, value in found.items()}


def peak_of(work: Callable[[], None]) -> float:
    """MiB between what the process has now and its peak during the work."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident()
    work()
    return (_status("VmHWM") - before) / _MIB


def resident() -> int:
    """Bytes of memory that the process has now."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
