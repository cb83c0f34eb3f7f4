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


def measure(folder: Path, verb: str, width: int = 512) -> dict[str, float]:
    """MiB by which save, load or export make the process grow at most, for a model of this width.

    Measure one verb a process: what one frees stays with the process, and hides what the next one takes.
    """
    config = flavour_config(Flavour.tiny)
    language = dataclasses.replace(
        config.language, hidden_size=width, intermediate_size=8 * width, num_hidden_layers=3, head_dim=64
    )
    model = SailVL2(dataclasses.replace(config, language=language))
    model.initialise(0)
    small, processor = build_flavour(Flavour.tiny, 0)
    optimizer = OptimizerConfig(learning_rate=1e-3)
    engine = LocalEngine(model, EngineConfig(num_threads=1), optimizer, 1)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    # The same with a small model first: libraries and buffers are taken once, and are no part of the measure.
    warm = LocalEngine(small, EngineConfig(num_threads=1), optimizer, 1)
    write_folder(folder / "small", {}, warm.save)
    warm.load(folder / "small")
    warm.export(folder / "small_export", processor, "bfloat16")
    if verb == "load":
        write_folder(folder / "saved", {}, engine.save)
    work: dict[str, Callable[[], None]] = {
        "save": lambda: write_folder(folder / "saved", {}, engine.save),
        "load": lambda: engine.load(folder / "saved"),
        "export": lambda: engine.export(folder / "exported", processor, "bfloat16"),
    }
    peak = peak_of(work[verb])
    return {
        "model_mib": round(sum(sizes) / _MIB, 1),
        "largest_tensor_mib": round(max(sizes) / _MIB, 1),
        "peak_mib": round(peak, 1),
    }


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
