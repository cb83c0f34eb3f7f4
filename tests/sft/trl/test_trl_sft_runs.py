"""`trainer=trl` of an SFT stage: runs that are stopped go on to the same bytes; what TRL lacks is refused."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.cli import load_config
from model.batch import Row
from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.data.sources import StepContent
from model.engine.base import NonFiniteError
from model.run.interrupt import Interrupted
from sft.stage import run_stage
from sft.trl.batches import padded_batch
from sft.trl.settings import check, trl_arguments
from tests.conftest import require_extra
from tests.e2e.test_kill_resume import contents
from tests.test_architecture import MODULES, all_imports, module_level_imports


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [{"question": f"{n}+1?", "thinking": "I add.", "answer": str(n + 1)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


@pytest.fixture(scope="module")
def start(tiny_folder, rows):
    """A config of an SFT stage through TRL, and its YAML."""

    def compose(folder: Path, *overrides: str):
        paths = [f"checkpoint='{tiny_folder}'", f"data.demonstrations='{rows}'", f"run.dir='{folder}'", "trainer=trl"]
        sizes = ["batch_size=3", "max_steps=4", "engine.num_threads=1", "run.save_every=2", "run.trackers=[]"]
        return load_config("sft", [*paths, *sizes, "optimizer.learning_rate=1e-3", *overrides])

    return compose


@pytest.fixture
def at_step(monkeypatch) -> Callable[[int, Callable[[], None]], None]:
    """Has something happen when the update behind so many finished ones is read."""
    require_extra("trl", "trl")
    from sft.trl.trl_trainer import UpdateReader

    read = UpdateReader.read

    def change(step: int, act: Callable[[], None]) -> None:
        def reading(self, now: int):
            if now == step:
                act()
            return read(self, now)

        monkeypatch.setattr(UpdateReader, "read", reading)

    return change


def test_a_run_that_was_stopped_and_killed_goes_on_to_the_same_bytes(start, tmp_path, at_step, capsys):
    run_stage(*start(tmp_path / "straight"))
    own = ["run.save_in_background=true"]
    at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"SIGTERM came; the state is saved"):
        run_stage(*start(tmp_path / "broken", *own))
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == ["step_00000001"]

    def fail() -> None:
        raise OSError("the power is gone")

    at_step(3, fail)  # the newest checkpoint is then that of step 2, and a line of step 3 is cut
    with pytest.raises(OSError, match="the power is gone"):
        run_stage(*start(tmp_path / "broken", *own))
    assert len((tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()) == 3
    at_step(-1, fail)
    run_stage(*start(tmp_path / "broken", *own))
    assert same(tmp_path / "broken") == same(tmp_path / "straight")
    capsys.readouterr()
    run_stage(*start(tmp_path / "broken", *own))
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"trainer\.name: 'trl' in the folder, absent now"):
        run_stage(*start(tmp_path / "broken", "trainer=sailvl2"))


def same(folder: Path) -> dict[str, object]:
    """What does not depend on where a run lies, and which checkpoints it had before."""
    left = contents(folder)
    return {name: one for name, one in left.items() if name == "metrics.jsonl" or name.endswith(".safetensors")}


def test_a_gradient_that_is_not_finite_ends_the_run(start, tmp_path):
    require_extra("trl", "trl")
    rate = ["optimizer.learning_rate=1e30", "optimizer.schedule=constant", "batch_size=1"]
    with pytest.raises(NonFiniteError, match="step 2: the norm of the gradient is nan, and trainer=trl has applied it"):
        run_stage(*start(tmp_path / "run", *rate))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_loss_that_is_not_finite_ends_the_run_before_its_update(monkeypatch):
    """The trainer's own step is what comes before transformers' optimizer; TRL's is replaced by one that overflows."""
    require_extra("trl", "trl")
    from sft.trl.trl_trainer import RowsTrainer, SFTTrainer, Update

    trained = []

    def overflow(self, model, batch, denominator) -> torch.Tensor:
        trained.append(batch["labels"].tolist())
        return torch.tensor(float("inf"))

    monkeypatch.setattr(SFTTrainer, "training_step", overflow)
    trainer = object.__new__(RowsTrainer)
    rows = [Row([5, 6], [[7]]), Row([5], []), Row([5], [[8, 9]])]
    trainer._read, trainer._pad_id = lambda: Update(StepContent(rows), [[0], [1], [2]], 3, 0.0), 1
    with pytest.raises(NonFiniteError, match=r"the loss of an update is inf, .*the weights are those before it"):
        trainer.training_step(None, {})
    assert trained == [[[-100, -100, 7]], [[-100, 8, 9]]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=lora"], r"adapter: trainer=trl trains whole models here, found lora; set adapter=none, or trainer="),
        (["engine=fsdp"], r"engine: trainer=trl has local, found fsdp; set that, or trainer=sailvl2"),
        (["engine=deepspeed"], r"engine: trainer=trl has local, found deepspeed"),
        (["engine.device=cuda"], r"engine\.device: trainer=trl has auto or cpu, found cuda"),
        (["engine.compute_dtype=bfloat16"], r"engine\.compute_dtype: trainer=trl has auto or float32, found bfloat16"),
        (["engine.attention_kernel=sdpa"], r"engine\.attention_kernel: trainer=trl has auto, found sdpa"),
        (["adalrs.window=5"], r"adalrs\.window: trainer=trl has 0, found 5"),
        (["evaluation.data=held.jsonl"], r"evaluation\.data: .*expects none, found 'held\.jsonl'.*rlhf\.evaluate"),
    ],
)
def test_refused_before_anything_is_read(start, tmp_path, overrides, message):
    require_extra("trl", "trl")
    with pytest.raises(ValueError, match=message):
        run_stage(*start(tmp_path / "never", "checkpoint=nowhere", *overrides))
    assert not (tmp_path / "never").exists()


def test_load_balancing_is_refused_for_a_decoder_with_experts(start, tmp_path):
    require_extra("trl", "trl")
    save_model(tmp_path / "moe", *build_flavour(Flavour.tiny_moe, seed=0))
    with pytest.raises(ValueError, match=r"balance_coefficient: .* expects 0 for .*moe.*, found 0\.001; set balance_c"):
        run_stage(*start(tmp_path / "never", f"checkpoint='{tmp_path / 'moe'}'"))
    assert not (tmp_path / "never").exists()


def test_without_trl(start, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"trainer=trl: expected the package trl, found none; pip install 'sailvl2-rl\[t"
    ):
        run_stage(*start(tmp_path))


def test_our_own_trainer_needs_no_trl():
    """The files that import TRL are known to the architecture's test; none of ours imports one of them at its head."""
    own = [name for name in MODULES if name.startswith(("sft", "model.trl", "model.supervised"))]
    assert not [name for name in own if any(one.endswith("trl_trainer") for one in module_level_imports(name))]
    assert "sft.trl.trl_trainer" in all_imports("sft.stage")


def test_settings(start, tmp_path):
    require_extra("trl", "trl")
    config, _ = start(tmp_path, "run.seed=7", "optimizer.max_grad_norm=0.3", "engine.gradient_checkpointing=true")
    check(config)
    arguments = trl_arguments(config, 3)
    expected = {"max_steps": 3, "seed": 7, "max_grad_norm": 0.3, "gradient_checkpointing": True, "max_length": None}
    assert {key: arguments[key] for key in expected} == expected


class TestBatches:
    def test_what_a_row_does_not_score_is_not_trained(self):
        scored = [np.array([True, False, True]), np.array([True])]
        batch = padded_batch([Row([5, 6], [[7, 8, 9], [4]], scored=scored), Row([5], [[3, 2]])], pad_id=1)
        assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 4, 1, 1], [5, 3, 2, 1, 1]]
        assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
        no = -100
        assert batch["labels"].tolist() == [[no, no, 7, no, 9], [no, no, 4, no, no], [no, 3, 2, no, no]]
        assert "pixel_values" not in batch

    def test_completions_of_a_prompt_have_its_images_each(self):
        image, other = torch.zeros(2, 3, 4, 4), torch.ones(1, 3, 4, 4)
        batch = padded_batch([Row([5], [[7], [8]], [image]), Row([5], [[7]], [other])], pad_id=1)
        assert torch.equal(batch["pixel_values"], torch.cat([image, image, other]))

    def test_images_of_several_sizes_stay_apart(self):
        images = [torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 8, 4)]
        batch = padded_batch([Row([5], [[7]], images)], pad_id=1)
        assert [list(tiles.shape) for tiles in batch["pixel_values"]] == [[1, 3, 4, 4], [1, 3, 8, 4]]
