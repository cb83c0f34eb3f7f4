"""A saved state is read by any number of processes and by every engine: weights and moments to the bit.

After that the same number of processes goes on to the bit, another one by 1e-6 of all weights together.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import Flavour
from model.engine.config import EngineConfig
from model.engine.local import LocalEngine
from tests.conftest import require_extra
from tests.parity.engine_cases import OPTIMIZER, Setting
from tests.parity.ranks import launch
from tests.parity.saving_cases import run, saved_tensors
from tests.parity.test_engine_contract import distance


def local(setting: Setting) -> LocalEngine:
    class Packing(LocalEngine):  # `run` sets how many parts there are
        pass

    return Packing(setting.model(), EngineConfig(num_threads=1), OPTIMIZER, 10)


def go(num_ranks: int, folder: Path, **job: object) -> dict[str, Tensor]:
    """Run a job by `num_ranks` processes; 0 is the engine of one process."""
    folder.mkdir()
    if "save" in job:
        Path(str(job["save"])).mkdir()
    if not num_ranks:
        return run(job, local, folder)
    return launch(num_ranks, "tests.parity.saving_cases", {"engine": "fsdp", **job}, folder / "ranks")


@pytest.mark.slow
@pytest.mark.parametrize("flavour", [Flavour.tiny_moe, Flavour.tiny], ids=lambda one: one.value)
def test_processes_come_and_go(tmp_path, flavour):
    """2 -> 1 -> 2, 2 -> 3, and to the engine of one process and back."""
    kind = {"flavour": flavour.value}
    straight = go(2, tmp_path / "straight", **kind, steps=[0, 4])
    go(2, tmp_path / "a", **kind, steps=[0, 2], save=str(tmp_path / "saved"))
    state = saved_tensors(tmp_path / "saved")
    assert sum(path.name.endswith("-of-00002.safetensors") for path in (tmp_path / "saved").iterdir()) == 4
    again = go(2, tmp_path / "b", **kind, other_seed=1, load=str(tmp_path / "saved"), steps=[2, 4])
    assert all(torch.equal(again[name], tensor) for name, tensor in straight.items())
    for number, num_ranks in enumerate((0, 1, 3)):
        out = tmp_path / f"saved-{num_ranks}"
        load = {"load": str(tmp_path / "saved"), "other_seed": 1}
        go(num_ranks, tmp_path / f"c{number}", **kind, **load, steps=[2, 2], save=str(out))
        found = saved_tensors(out)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items()), num_ranks
        on = go(2, tmp_path / f"d{number}", **kind, other_seed=1, load=str(out), steps=[2, 4])
        assert all(torch.equal(on[name], tensor) for name, tensor in straight.items()), num_ranks
    for number, num_ranks in enumerate((0, 3)):
        load = {"load": str(tmp_path / "saved"), "other_seed": 1}
        on = go(num_ranks, tmp_path / f"e{number}", **kind, **load, steps=[2, 4])
        assert distance(on, straight) <= (1e-6 if num_ranks == 0 else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_reads_and_writes_what_the_others_do(tmp_path, stage):
    """local -> deepspeed -> fsdp -> local, each of which saves what it read; and deepspeed trains on from it."""
    require_extra("deepspeed", "deepspeed")
    kind = {"flavour": "tiny"}
    zero = {"engine": "deepspeed", "overrides": {"stage": stage}}
    straight = go(2, tmp_path / "straight", **kind, **zero, steps=[0, 4])
    go(0, tmp_path / "a", **kind, steps=[0, 2], save=str(tmp_path / "saved"))
    state = saved_tensors(tmp_path / "saved")
    last = tmp_path / "saved"
    for number, (num_ranks, engine) in enumerate([(2, zero), (2, {}), (3, zero), (0, {}), (1, zero)]):
        out = tmp_path / f"saved{number}"
        load = {"load": str(last), "other_seed": 1}
        go(num_ranks, tmp_path / f"b{number}", **kind, **engine, **load, steps=[2, 2], save=str(out))
        found = saved_tensors(out)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items()), (number, engine)
        last = out
    on = go(2, tmp_path / "c", **kind, **zero, load=str(last), other_seed=1, steps=[2, 4])
    assert distance(on, straight) <= 1e-6
