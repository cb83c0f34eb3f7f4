"""A run whose engine is one number, for tests of run folders."""

import json
import threading
from pathlib import Path

from model.run.config import RunConfig, StartMode
from model.run.durable import write_stream
from model.run.folder import RunFolder
from model.run.manifest import DamagedFolder, Digests, Manifest
from model.run.saving import ThreadWriting


class Counter:
    """An engine that is one number."""

    def __init__(self) -> None:
        self.value = 0
        self.gate = threading.Event()  # holds what is saved in the background up until it is set
        self.gate.set()

    def save(self, folder: Path) -> Digests:
        files = {"weights.bin": bytes([self.value]) * 1000, "value.json": json.dumps(self.value).encode()}
        return {name: write_stream(folder / name, [content]) for name, content in files.items()}

    def save_in_background(self, folder: Path) -> ThreadWriting:
        content = self.value

        def write() -> Digests:
            assert self.gate.wait(10)
            then = Counter()
            then.value = content
            return then.save(folder)

        return ThreadWriting(write)

    def load(self, folder: Path) -> None:
        self.value = json.loads((folder / "value.json").read_bytes())


def make_run(folder, start: StartMode = StartMode.resume, config: str = "a: 1\n") -> RunFolder:
    return RunFolder(RunConfig(dir=str(folder), save_every=2, keep_checkpoints=3, start=start), config)


def fill(folder, steps: int = 6) -> None:
    run, engine = make_run(folder), Counter()
    run.restore(engine)
    for step in range(1, steps + 1):
        engine.value = step
        run.log(step, {"loss": 1.0 / step})
        run.append("ledger.jsonl", step, [{"draw": step}])
        if run.is_due(step, steps):
            run.save(engine, {"step": step})
    run.__exit__()


def verify(folder: Path) -> str:
    """What is wrong with a folder, empty where nothing is."""
    try:
        Manifest.read(folder).verify()
    except DamagedFolder as error:
        return str(error)
    return ""
