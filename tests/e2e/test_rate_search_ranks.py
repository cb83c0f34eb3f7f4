"""AdaLRS over two processes: the same trials, and a kill within one."""

import json
from pathlib import Path

import pytest

from examples.digits.write import write
from tests.parity.ranks import ends, start

SEARCH = [
    *("recipe=quickstart", "data.mixture={caption: 2, worked: 2, direct: 2}", "max_steps=20", "engine=fsdp"),
    *("engine.num_threads=1", "engine.patience_s=5", "optimizer.learning_rate=1e-4", "run.save_every=7"),
    *("adalrs.window=3", "adalrs.begin=0.1", "adalrs.end=0.9", "adalrs.up=30"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write(folder, seed=0, share=0.02)
    return folder / "pretrain.jsonl"


def train(num_ranks: int, data: Path, folder: Path, **variables: str) -> list[int]:
    folder.mkdir(exist_ok=True)
    command = ["-m", "model.pretrain.train", *SEARCH, f"data.path={data}", f"run.dir={folder / 'run'}"]
    return ends(start(num_ranks, command, folder, **variables), 150)


def figures(folder: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


@pytest.mark.slow
def test_two_processes_try_what_one_tries_and_survive_a_kill_in_a_trial(data, tmp_path):
    """One process and two sum in another order, so their losses agree to 1e-4; a run that was killed agrees to the bit
    with the run of two that was not."""
    assert train(1, data, tmp_path / "one") == [0]
    assert train(2, data, tmp_path / "two") == [0, 0]
    trials, alone = (figures(tmp_path / name, "adalrs.jsonl") for name in ("two", "one"))
    assert "rolled_back" in {trial["verdict"] for trial in trials}
    assert [trial["verdict"] for trial in trials] == [trial["verdict"] for trial in alone]
    assert [trial["losses"] for trial in trials] == [pytest.approx(trial["losses"], rel=1e-4) for trial in alone]
    failed = next(trial for trial in trials if trial["verdict"] == "rolled_back")
    inside = f"log:{failed['start'] + 1}"
    assert train(2, data, tmp_path / "killed", SAILVL2_FAILPOINT=inside, SAILVL2_FAILPOINT_RANK="0") != [0, 0]
    assert train(2, data, tmp_path / "killed") == [0, 0]
    for name in ("metrics.jsonl", "adalrs.jsonl"):
        assert figures(tmp_path / "killed", name) == figures(tmp_path / "two", name)
    weights = [(tmp_path / name / "run/final/model.safetensors").read_bytes() for name in ("two", "killed")]
    assert weights[0] == weights[1]
