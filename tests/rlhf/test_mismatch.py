"""The watch over sampler and trainer: quiet when they agree, and right about the cause when they do not."""

import copy
import dataclasses

import pytest
import torch

from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.interface import Mode
from rewards.result import RewardResult
from rlhf.mismatch import MismatchWatch
from rlhf.prompts import PromptSet
from rlhf.trajectory import Group, Trajectory
from rlhf.update import Policy
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.probe import first_difference, probe_model
from rollouts.rollout import Prompt, generate
from rollouts.weights.sync import fill_worker


class Samplers:
    """What a collector lends its worker to."""

    def __init__(self, worker: EmbeddedWorker) -> None:
        self.worker = worker

    def probe(self, request):
        return self.worker.probe(request)


@pytest.fixture
def scene(tiny, digits_folder):
    """(policy, its model, worker, requests) that agree."""
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    engine = LocalEngine(
        model, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 1, 1.0, barred_ids=processor.barred_ids
    )
    worker = fill_worker(EmbeddedWorker(model, processor, RolloutConfig(max_completion_tokens=8), 0), model)
    prompts = PromptSet(digits_folder / "train.jsonl", processor, Mode.think, RolloutConfig())
    return Policy(engine, None, processor, 8192), model, worker, [prompts.build(i).request(i, 3) for i in range(3)]


def groups_of(worker, requests) -> list[Group]:
    reward = RewardResult(1.0, {"answer": 1.0})
    return [
        Group(
            one.group_index,
            dataclasses.replace(PROMPT, id=one.prompt_id),
            one.images,
            tuple(Trajectory(rollout, reward, 1.0) for rollout in rollouts),
        )
        for one, rollouts in zip(requests, generate(worker, requests), strict=True)
    ]


PROMPT = Prompt("p", [], "1")


def look(scene, step=1, limit=0.01, groups=None):
    policy, _, worker, requests = scene
    watch = MismatchWatch(policy, limit)
    return watch.look(step, groups or groups_of(worker, requests), Samplers(worker))


def test_it_is_quiet_when_they_agree(scene, capsys):
    metrics = look(scene)
    assert metrics["mismatch/present"] < 1e-4 and "mismatch/older_weights" not in metrics
    assert not [name for name in metrics if "cause" in name] and capsys.readouterr().err == ""


def test_another_weight_is_named(scene, capsys):
    with torch.no_grad():
        scene[2]._decoder.model.language_model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    metrics = look(scene)
    assert metrics["mismatch/cause_weights"] == 1.0
    error = capsys.readouterr().err
    assert "first differing tensor at sampler: weights.language_model.model.layers.1.mlp.down_proj.weight" in error
    assert "trainer.max_sampler_gap = 0.01" in error


def test_other_visual_tokens_are_named(scene, capsys, monkeypatch):
    model = scene[2]._decoder.model
    own = model.visual_tokens
    monkeypatch.setattr(model, "visual_tokens", lambda pixels: [tokens * 1.5 for tokens in own(pixels)])
    assert look(scene)["mismatch/cause_embeddings"] == 1.0
    assert "visual.0: largest difference" in capsys.readouterr().err


def test_another_dtype_is_named(scene):
    worker = scene[2]
    worker._decoder.model.to(torch.bfloat16)
    assert look(scene, limit=1e-4)["mismatch/cause_dtype"] == 1.0


def test_a_decoder_that_computes_otherwise_is_what_is_left(scene, capsys):
    layer = scene[2]._decoder.model.language_model.model.layers[0]
    layer.mlp.register_forward_hook(lambda module, inputs, output: output * 1.2)
    assert look(scene)["mismatch/cause_decoder"] == 1.0
    assert "the decoders do not" in capsys.readouterr().err


def test_tokens_of_older_weights_are_told_apart(scene, capsys):
    """Their gap is no fault: it is what the correction is for."""
    policy, model, worker, requests = scene
    groups = groups_of(worker, requests)
    with torch.no_grad():
        model.language_model.model.norm.weight.mul_(1.5)
    policy.engine._updates.step_count = 1
    metrics = look(scene, groups=groups)
    assert metrics["mismatch/older_weights"] > 0.01 and "mismatch/present" not in metrics
    assert capsys.readouterr().err == ""


def test_log_probs_that_are_no_numbers_are_a_gap(scene, capsys):
    groups = groups_of(*scene[2:])
    for trajectory in groups[1].trajectories:
        trajectory.rollout.rollout_logprobs[0] = float("nan")
    assert look(scene, groups=groups)["mismatch/cause_decoder"] == 1.0
    assert "differ by nan nats" in capsys.readouterr().err


def test_steps_take_turns_with_the_groups(scene):
    groups = groups_of(*scene[2:])
    spoilt = dataclasses.replace(groups[1].trajectories[0].rollout, rollout_logprobs=[-9.0] * 8)
    first = dataclasses.replace(groups[1].trajectories[0], rollout=spoilt)
    groups[1] = dataclasses.replace(groups[1], trajectories=(first, *groups[1].trajectories[1:]))
    length = len(spoilt.completion_ids)
    spoilt.rollout_logprobs[:] = [-9.0] * length
    found = [look(scene, step=step, limit=100.0, groups=groups)["mismatch/present"] > 1 for step in range(9)]
    # Two of its three completions each time: (0, 1), (1, 2), (2, 0).
    assert found == [False, True, False, False, False, False, False, True, False]


def test_first_difference_names_the_first_stage(tiny, scene):
    request = scene[3][0]
    ours = probe_model(tiny[0], request, tiny[1].placeholder_id)
    assert first_difference(ours, ours) == ""
    assert first_difference(ours, {}) == ""
    other_ids = {**ours, "ids": ours["ids"] + 1}
    assert first_difference(ours, other_ids) == "ids: other ids"
    assert first_difference(ours, {**ours, "ids": ours["ids"][:-1]}).startswith("ids: shapes")
    other_pixels = {**ours, "pixels.0": ours["pixels.0"] + 1e-3, "embeddings": ours["embeddings"] + 1}
    assert first_difference(ours, other_pixels).startswith("pixels.0: largest difference 0.001")
