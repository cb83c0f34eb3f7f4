"""Runs commands in forked children, ends them at a failpoint, and looks at what they leave behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDS = {"": -signal.SIGKILL, "term": 5, "full": 6}
"""The act of a failpoint -> the exit code, or minus the signal, that a command ends with."""


class Runner:
    """One forking process for all tests of a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_runner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # torch keeps a cache of its own in TMPDIR, meant to stay.
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder)},
        )
        self._number = 0
        self.log = folder / "none"

    def run(self, module: str, arguments: list[str], failpoint: str = "", ends: tuple[int, ...] = ()) -> int:
        """Run a command, which must end as its failpoint says, or with 0, or else with one of `ends`.

        The failpoint `disk:BYTES` is a disk that takes so much of a file. Nothing may outlive the command; only one
        that was killed may leave temporary files.
        """
        assert self.process.stdin and self.process.stdout
        self._number += 1
        self.log, scratch = self.folder / f"{self._number}.txt", self.folder / f"{self._number}"
        scratch.mkdir()
        name, _, rest = failpoint.partition(":")
        act = "full" if name == "disk" else rest.partition(":")[2]
        environment = {"TMPDIR": str(scratch), "SAILVL2_FAILPOINT": "" if name == "disk" else failpoint}
        job = {"module": module, "arguments": arguments, "environment": environment, "log": str(self.log)}
        self.process.stdin.write(json.dumps({**job, "disk": int(rest) if name == "disk" else 0}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        said = f"{module} {failpoint} {answer}\n{self.log.read_text()[-3000:]}"
        assert answer["status"] in (ends or ((0, ENDS[act]) if failpoint else (0,))), said
        assert answer["left"] == [], said
        assert answer["status"] < 0 or not list(scratch.iterdir()), said
        return answer["status"]


@pytest.fixture(scope="session")
def runner(tmp_path_factory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runs"))
    yield runner
    runner.process.kill()
    runner.process.wait()
