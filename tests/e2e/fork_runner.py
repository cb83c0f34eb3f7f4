"""Runs entry points in forked children, so that dozens of killed runs cost one import of torch.

Reads JSON lines {"module", "arguments", "failpoint", "log"} on stdin; answers {"status": exit code, or -signal}.
"""

import importlib
import json
import os
import sys

import torch

torch.set_num_threads(1)
for name in ("model.pretrain.train", "sft.train", "rlhf.train", "model.pretrain.stage", "sft.stage", "rlhf.stage"):
    importlib.import_module(name)
for name in ("rlhf.trainer", "rollouts.embedded", "sft.data", "model.pretrain.documents", "hydra", "rich.progress"):
    importlib.import_module(name)
importlib.import_module("torch.utils.tensorboard")


def child(job: dict) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job["failpoint"]:
        os.environ["SAILVL2_FAILPOINT"] = job["failpoint"]
    sys.argv = [job["module"], *job["arguments"]]
    code = 70
    try:
        code = importlib.import_module(job["module"]).main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        child(request)
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
