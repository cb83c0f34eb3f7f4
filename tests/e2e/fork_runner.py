"""Runs commands in forked children, so that dozens of them, killed or not, cost one import of torch.

Reads JSON lines {"module", "arguments", "environment", "log", "disk"} on stdin; a `disk` is the most bytes that a file
may have, 0: any number. Answers {"status": exit code or minus the signal, "left": what outlives the command}.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch

PATIENCE_SECONDS = 30.0
"""How long after a command's end its processes may be there: a sampler that is still importing torch notices late."""
SET_CHILD_SUBREAPER = 36

torch.set_num_threads(1)
for name in ("model.pretrain.stage", "sft.stage", "rlhf.stage", "rlhf.trainer", "rollouts.embedded", "sft.data"):
    importlib.import_module(name)
for name in ("model.pretrain.documents", "rollouts.batch_inference", "rlhf.evaluation.stage", "rewards.rubric"):
    importlib.import_module(name)
for name in ("hydra", "rich.progress", "rich.table", "sklearn.datasets", "torch.utils.tensorboard", "torch._dynamo"):
    importlib.import_module(name)
gc.freeze()  # collections of a child leave what it shares alone
ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of a command become children of this process


def child(job: dict) -> None:
    """Be `python -m MODULE ARGUMENTS`."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= job["environment"]
    tempfile.tempdir = None  # chosen anew
    if job["disk"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["disk"], job["disk"]))
    sys.argv = [job["module"], *job["arguments"]]
    code: object = 70
    try:
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:  # the interpreter's end, without taking all of torch down
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def outliving() -> list[str]:
    """Wait for what a command started; the command lines of processes that are still there, which are killed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if pid == 0 and time.monotonic() > deadline:
            break
        time.sleep(0.0 if pid else 0.01)
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids]
    for pid in pids:
        os.kill(int(pid), 9)
        os.waitpid(int(pid), 0)
    return found


def shared_memory() -> set[str]:
    """Names of what there is, without the semaphores that joblib makes when any process of the machine imports it."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.loky-")}


def leaked(before: set[str]) -> list[str]:
    """Shared memory that was not there before, and that no process uses: other tests of this machine may run."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while new := shared_memory() - before:
        used = "".join(text_of(path) for path in Path("/proc").glob("[0-9]*/maps"))
        new = {name for name in new if f"/dev/shm/{name}" not in used}
        if not new or time.monotonic() > deadline:
            return sorted(new)
        time.sleep(0.1)
    return []


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


for line in sys.stdin:
    request = json.loads(line)
    memory = shared_memory()
    pid = os.fork()
    if pid == 0:
        child(request)
    _, status = os.waitpid(pid, 0)
    left = [*outliving(), *leaked(memory)]
    print(json.dumps({"status": os.waitstatus_to_exitcode(status), "left": left}), flush=True)
