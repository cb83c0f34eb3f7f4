"""What a killed process leaves behind ends too, also what was stopped before."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SAMPLER = "from rollouts.pool.processes import ProcessMember\nmade = ProcessMember(0, '').process"
ZYGOTE = "from rewards.sandbox.zygote_client import ZygoteClient\nmade = ZygoteClient('functions', 1000)._process"
STAGE = (
    "from model.run.parent import die_with_parent\nimport subprocess\n"
    "made = subprocess.Popen(['sleep', '600'], preexec_fn=die_with_parent)"
)


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("made", "seconds"), [(SAMPLER, 10), (ZYGOTE, 10), (STAGE, 1)], ids=["sampler", "zygote", "stage"]
)
def test_a_stopped_child_ends_with_its_parent(made, seconds):
    script = f"{made}\nimport time\nprint(made.pid, flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            time.sleep(seconds)  # it imports, and asks the kernel for the signal
            os.kill(pid, signal.SIGSTOP)
            parent.kill()
            parent.wait()
            until = time.monotonic() + 10
            while is_there(pid) and time.monotonic() < until:
                time.sleep(0.05)
            assert not is_there(pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
