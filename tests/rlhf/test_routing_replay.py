"""Whole runs of RL on a small MoE with routing replay: metrics, stopping and continuing, and models that have no routers."""

import os
import signal
from itertools import pairwise

import pytest

from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.run.interrupt import Interrupted
from tests.rlhf.test_train import LengthRubric, rows, run

REPLAY = [
    "algorithm.correction.routing_replay=true",
    "algorithm.group_size=2",
    "trainer.mini_batch_size=4",
    "run.save_every=1",
]
REPLAY += ["trainer.max_steps=6", "rollouts.pool.placement=trainer", "rollouts.pool.workers=1"]
KEPT = ["trainer.keep_surplus=always", "algorithm.correction.rule=token_truncate"]


class StoppedRubric(LengthRubric):
    """SIGTERM comes while a step samples whose first groups were kept by the step before."""

    stops_in = 0

    def score(self, inputs):
        if self.step == self.stops_in:
            type(self).stops_in = 0
            os.kill(os.getpid(), signal.SIGTERM)
        return super().score(inputs)


@pytest.fixture(scope="module")
def moe_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny_moe"
    save_model(folder, *build_flavour(Flavour.tiny_moe, 0))
    return folder


def test_a_run_that_was_stopped_continues_to_the_bit_and_says_how_routers_agree(
    moe_folder, digits_folder, tmp_path, monkeypatch, capsys
):
    """Groups wait for the step that is stopped, so their routes go through the checkpoint."""
    prompts = digits_folder / "train.jsonl"
    run(moe_folder, prompts, tmp_path / "straight", LengthRubric, *REPLAY, *KEPT)
    assert "routing replay: the trainer takes the experts that the samplers chose" in capsys.readouterr().out
    metrics = rows(tmp_path / "straight")
    for line in metrics:
        if line["policy_age/max"] == 0:  # the routers are the sampler's, up to rounding
            assert 0.99 < line["routing/agreement"] <= 1.0
            assert line["mismatch/present"] < 1e-4 and line["mismatch/present_own_routes"] < 1.0
    kept = next(
        line["step"]
        for line, after in pairwise(metrics)
        if line["groups/kept"] and after["groups/drawn"] and after["policy_age/max"]
    )
    assert metrics[kept]["routing/agreement"] < 1.0  # older routers chose otherwise
    monkeypatch.setattr(StoppedRubric, "stops_in", kept + 1)
    with pytest.raises(Interrupted, match="SIGTERM came"):
        run(moe_folder, prompts, tmp_path / "stopped", StoppedRubric, *REPLAY, *KEPT)
    assert len(rows(tmp_path / "stopped")) == kept
    run(moe_folder, prompts, tmp_path / "stopped", StoppedRubric, *REPLAY, *KEPT)
    assert rows(tmp_path / "stopped") == metrics
    found, expected = ((tmp_path / name / "final/model.safetensors").read_bytes() for name in ("stopped", "straight"))
    assert found == expected


def test_a_decoder_without_routers_trains_as_without_replay_and_the_run_says_so(
    tiny_folder, digits_folder, tmp_path, capsys
):
    prompts = digits_folder / "train.jsonl"
    small = ["trainer.max_steps=1", "rollouts.pool.placement=trainer", "rollouts.pool.workers=1"]
    run(tiny_folder, prompts, tmp_path / "asked", LengthRubric, *small, "algorithm.correction.routing_replay=true")
    assert (
        "algorithm.correction.routing_replay has no effect, because this model's decoder has no"
        in capsys.readouterr().out
    )
    run(tiny_folder, prompts, tmp_path / "plain", LengthRubric, *small)
    assert rows(tmp_path / "asked") == rows(tmp_path / "plain")
    assert "routing/agreement" not in rows(tmp_path / "asked")[0]
