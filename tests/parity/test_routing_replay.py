"""Routing replay: sampler and trainer round differently, so where two experts are nearly as likely they may choose
different ones, and everything after that is another number. Replayed routes leave rounding alone."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from model.checkpoint import build_flavour
from model.config import Flavour
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.moe import MoeMLP
from rewards.result import RewardResult
from rlhf.collect import require_routes
from rlhf.trajectory import Group, Packing, Trajectory
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import Prompt, RolloutRequest, generate
from rollouts.weights.sync import fill_worker
from tests.rollouts.vllm_prompts import requests

CONFIG = RolloutConfig(max_prompt_tokens=400, max_completion_tokens=48, temperature=0.8)
ROUNDING = 1e-5  # float32: the same sums in another order, measured 3e-6


def near_ties(seed: int):
    """tiny_moe whose experts come in threes that a router tells apart by its last bits only: two of three are taken."""
    model, processor = build_flavour(Flavour.tiny_moe, 0)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mlp in (module for module in model.modules() if isinstance(module, MoeMLP)):
            alike = mlp.gate.weight[torch.tensor([0, 0, 0, 3, 3, 3, 6, 6])]
            mlp.gate.weight.copy_(alike * (1 + 1e-7 * torch.randn(alike.shape, generator=generator)))
    return model, processor


@pytest.fixture(scope="module")
def sampled():
    model, processor = near_ties(3)
    asked = [replace(one, returns_routes=True) for one in requests(processor)]
    worker = fill_worker(EmbeddedWorker(model, processor, CONFIG, 7), model)
    return model, processor, asked, generate(worker, asked)


def as_group(request: RolloutRequest, rollouts) -> Group:
    trajectories = tuple(Trajectory(r, RewardResult(1.0, {}), 1.0) for r in rollouts)
    return Group(request.group_index, Prompt(request.prompt_id, [], ""), request.images, trajectories)


def test_the_trainer_agrees_with_the_sampler_only_when_it_replays(sampled):
    model, processor, asked, found = sampled
    engine = LocalEngine(model, EngineConfig(), OptimizerConfig(1e-6), 1, CONFIG.temperature, processor.barred_ids)
    packing = Packing(4096, processor.placeholder_id, model.config.pixels_per_token)
    groups = [as_group(*pair) for pair in zip(asked, found, strict=True)]
    gaps = {}
    for replays in (True, False):
        logprobs = packing.logprobs(engine, groups, replays)
        gaps[replays] = max(
            float((ours - torch.tensor(t.rollout.rollout_logprobs)).abs().max())
            for group, of_group in zip(groups, logprobs, strict=True)
            for t, ours in zip(group.scored, of_group, strict=True)
        )
    assert gaps[True] <= ROUNDING
    assert gaps[False] > 1e-2
    routings = [scores.routing for scores in engine.logprobs([batch.inputs for batch in packing.pack(groups)])]
    replayed, agreed = (sum(int(getattr(r, name).sum()) for r in routings) for name in ("replayed", "agreed"))
    fed = sum(len(g.trajectories[0].rollout.prompt_ids) for g in groups)
    fed += sum(len(t.rollout.completion_ids) - 1 for g in groups for t in g.scored)
    assert replayed == fed * model.config.language.num_hidden_layers  # the prompt once, and all but the last tokens
    assert 0.5 < agreed / replayed < 1.0


def test_a_group_whose_sampler_told_no_routes_does_not_train(sampled):
    _, _, asked, found = sampled
    lacking = [dataclasses.replace(r, routes=None) if r.sample_index == 2 else r for r in found[0]]
    require_routes([as_group(asked[0], found[0])])
    with pytest.raises(
        RuntimeError, match=r"prompt p0: algorithm\.correction\.routing_replay: .* found none for samples \[2\]"
    ):
        require_routes([as_group(asked[0], lacking)])
