"""The experts that a sampler took: for every token that was fed, in any company, over processes and through JSON."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from model.batch import Row, RowRoutes, pack_rows
from model.checkpoint import build_flavour
from model.config import Flavour
from rollouts.build import build_worker
from rollouts.config import Placement, PoolConfig, RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.pool.worker_pool import _problem
from rollouts.rollout import Rollout, RolloutRequest, generate
from rollouts.routes import Routes, compact_dtype, restored_array, stored_array
from rollouts.weights.sync import fill_worker
from tests.rollouts.vllm_prompts import requests

CONFIG = RolloutConfig(max_prompt_tokens=400, max_completion_tokens=12, temperature=0.8)


@pytest.fixture(scope="module")
def tiny_moe():
    model, processor = build_flavour(Flavour.tiny_moe, 0)
    end = processor.tokenizer.end_id
    with torch.no_grad():  # so that completions have different lengths
        model.language_model.lm_head.weight[end] = 6.0 * model.language_model.lm_head.weight[end]
    return model, processor


@pytest.fixture(scope="module")
def asked(tiny_moe) -> list[RolloutRequest]:
    return [dataclasses.replace(one, returns_routes=True) for one in requests(tiny_moe[1])]


def sampled(tiny_moe, asked: list[RolloutRequest], **changes) -> list[list[Rollout]]:
    return generate(
        fill_worker(EmbeddedWorker(*tiny_moe, dataclasses.replace(CONFIG, **changes), 7), tiny_moe[0]), asked
    )


def test_routes_are_what_a_whole_forward_pass_chooses(tiny_moe, asked):
    """Equal for all tokens of these prompts: no two experts are as near as rounding here."""
    model, processor = tiny_moe
    groups = sampled(tiny_moe, asked)
    assert len({len(r.completion_ids) for group in groups for r in group}) > 2
    for one, group in zip(asked, groups, strict=True):
        assert all(r.routes.prompt is group[0].routes.prompt for r in group)  # once for all siblings
        for r in group:
            assert r.routes.problem(len(r.prompt_ids), len(r.completion_ids)) == ""
            assert r.routes.prompt.dtype == np.uint8 and r.routes.prompt.shape[1:] == (4, 2)
        routes = RowRoutes(group[0].routes.prompt, [r.routes.completion for r in group])
        row = Row(one.prompt_ids, [r.completion_ids for r in group], one.images, routes)
        inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
        with torch.no_grad():
            routing = model(inputs).routing
        fed = len(one.prompt_ids) + sum(len(r.completion_ids) - 1 for r in group)
        assert routing.replayed.tolist() == [fed] * 4 == routing.agreed.tolist()


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["as on CPU", "as on a GPU"])
def test_asking_for_routes_changes_no_token_and_company_changes_no_route(tiny_moe, asked, runs_ahead, monkeypatch):
    """Completions that ask and that do not are decoded side by side, and places of finished ones are taken."""
    plain = sampled(tiny_moe, [dataclasses.replace(one, returns_routes=False) for one in asked])
    assert all(r.routes is None for group in plain for r in group)
    mixed = [dataclasses.replace(one, returns_routes=number % 2 == 0) for number, one in enumerate(asked)]
    worker = fill_worker(EmbeddedWorker(*tiny_moe, dataclasses.replace(CONFIG, max_rows=8), 7), tiny_moe[0])
    worker._runs_ahead = runs_ahead
    found = generate(worker, mixed)
    alone = sampled(tiny_moe, asked)
    for number, (group, other, own) in enumerate(zip(found, plain, alone, strict=True)):
        assert [r.completion_ids for r in group] == [r.completion_ids for r in other]
        assert [r.routes for r in group] == [r.routes if number % 2 == 0 else None for r in own]


def test_a_pool_of_processes_returns_the_same_routes(tiny_moe, asked):
    pool = dataclasses.replace(CONFIG, pool=PoolConfig(Placement.process, workers=1))
    worker = fill_worker(build_worker(*tiny_moe, pool, 7, returns_routes=True), tiny_moe[0])
    try:
        found = generate(worker, asked[:3])
    finally:
        worker.close()
    assert found == sampled(tiny_moe, asked[:3])
    assert all(r.routes.prompt is group[0].routes.prompt for group in found for r in group)  # sent once for a group


def test_a_pool_refuses_routes_that_do_not_fit(tiny_moe, asked):
    (group,) = sampled(tiny_moe, asked[:1])
    allowed = frozenset(range(tiny_moe[0].config.language.vocab_size))

    def problem(routes: Routes | None) -> str:
        return _problem(asked[0], [dataclasses.replace(r, routes=routes or None) for r in group], 12, allowed, 0)

    assert _problem(asked[0], group, 12, allowed, 0) == ""
    assert problem(None) == "expected routes, found the opposite"
    routes = group[0].routes
    assert "expected routes of" in problem(Routes(routes.prompt[1:], routes.completion))
    assert "expected routes [tokens, layers" in problem(Routes(routes.prompt[..., 0], routes.completion))


def test_a_dense_decoder_has_no_routes_to_return(tiny, asked):
    worker = fill_worker(EmbeddedWorker(*tiny, CONFIG, 7), tiny[0])
    with pytest.raises(ValueError, match="prompt p0: returns_routes: expected False, because this decoder has no rout"):
        worker.submit(asked[0])


@pytest.mark.parametrize(("num_experts", "dtype"), [(8, np.uint8), (256, np.uint8), (257, np.int16)])
def test_arrays_go_through_json_unchanged(num_experts, dtype):
    assert compact_dtype(num_experts) is dtype
    array = np.random.default_rng(0).integers(0, num_experts, (5, 4, 2)).astype(dtype)
    again = restored_array(json.loads(json.dumps(stored_array(array[::2]))))
    assert again.dtype == dtype and np.array_equal(again, array[::2])
    empty = restored_array(stored_array(array[:0]))
    assert empty.shape == (0, 4, 2) and Routes(array, empty) == Routes(array.copy(), empty)
    assert Routes(array, empty) != Routes(array[1:], empty)
