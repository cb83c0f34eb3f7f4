"""The estimator: what it counts is what autograd keeps, and it meets the peaks measured on an H200."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import model.layers
import model.sail_vl2
import model.vision
from model.batch import Row, pack_rows
from model.config import (
    AttentionKernel,
    Flavour,
    LanguageConfig,
    MoeLanguageConfig,
    SailVL2Config,
    VisionConfig,
    flavour_config,
)
from model.engine.build import open_engine
from model.engine.config import EngineConfig, FsdpConfig, OptimizerConfig
from model.engine.planning.estimate import Job, Kept, MicroBatch, Sizes, Spread, memory, update_seconds
from model.engine.planning.fitting import job_of, require_room
from model.engine.planning.machines import GIB, MACHINES, Gpu
from model.engine.source import FreshSource
from model.lora.config import AdapterConfig, LoraConfig
from model.lora.start import adapt
from model.sail_vl2 import SailVL2

TWO_B = flavour_config(Flavour.sailvl2_2b)
VISION = VisionConfig(128, 384, 2, 4, patch_size=4, image_size=64)
DENSE = LanguageConfig(128, 384, 3, 4, 2, 32, vocab_size=512, max_position_embeddings=4096)
MOE = MoeLanguageConfig(
    128, 384, 3, 4, 2, 32, 512, 4096, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96
)


def kept_by_autograd(config: SailVL2Config, batch: MicroBatch, dtype: torch.dtype) -> int:
    """Bytes of what a forward pass keeps, weights apart."""
    network = SailVL2(config)
    network.initialise(0)
    network.to(dtype)
    own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    side, placeholder = config.vision.image_size, config.language.vocab_size - 1
    visual = [placeholder] * (batch.tiles * config.num_image_tokens)
    prefix = [*visual, *[1] * (batch.prefix - len(visual))]
    images = [torch.randn(batch.tiles, 3, side, side)] if batch.tiles else []
    row = Row(prefix, [[2] * batch.completion] * batch.num_completions, images)
    inputs = pack_rows([row] * batch.num_rows, placeholder, config.pixels_per_token)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if dtype is torch.float32:
            found = network(inputs, 1.0, None, AttentionKernel.auto).logprobs
        else:  # the head of a CPU keeps its logits, that of a GPU does not
            found = network.hidden_states(inputs)[0].index_select(0, inputs.source_index) * 1.0
    assert torch.isfinite(found).all()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _KeepsInput(torch.autograd.Function):
    """A norm that keeps its input and its scale, as the kernel of a GPU does."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, scale, weight)
        return (x.float() * scale).to(x.dtype) * weight


class _KeepsBoth(torch.autograd.Function):
    """silu(gate) * up that keeps both, as our kernel does."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up


class _KeepsHeads(torch.autograd.Function):
    """Attention that keeps what the flash kernels keep; its numbers mean nothing."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q + 0.0
        ctx.save_for_backward(q, k, v, out, torch.zeros(q.shape[1], q.shape[0]))
        return out


class _KeepsPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.zeros_like(q.transpose(1, 2).contiguous()).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out)
        return out


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Layers that keep what they keep on a GPU; bfloat16 does not take the arithmetic of the CPU."""
    monkeypatch.setattr(
        model.layers.RMSNorm, "forward", lambda self, x: _KeepsInput.apply(x, self.weight, self.eps)
    )  # fmt: skip
    monkeypatch.setattr(model.layers, "side_by_side", lambda x, *layers: tuple(layer(x) for layer in layers))
    for module in (model.language, model.vision):
        monkeypatch.setattr(module, "swiglu", lambda x, gate, up: _KeepsBoth.apply(gate(x), up(x)))
    monkeypatch.setattr(
        model.sail_vl2, "packed_attention", lambda *_: lambda layer, q, k, v: _KeepsHeads.apply(q, k, v)
    )
    monkeypatch.setattr(model.vision, "sdpa", lambda q, k, v, mask, is_causal: _KeepsPatches.apply(q, k, v))


BATCHES = {
    "short rows": MicroBatch(64, 8, 40, 0, 4),
    "long rows": MicroBatch(600, 4, 100),
    "image": MicroBatch(272, 8, 64, 2),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("language", [DENSE, MOE], ids=["dense", "experts"])
def test_what_a_cpu_keeps_is_counted_within_a_tenth(name, language):
    """Pieces of short rows differ in width, which the count takes as equal: hence more than on a GPU."""
    config = SailVL2Config(VISION, language)
    counted = Kept.of(Job(config, BATCHES[name], on_gpu=False)).all(config, checkpointing=False)
    assert counted == pytest.approx(kept_by_autograd(config, BATCHES[name], torch.float32), rel=0.10)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("language", [DENSE, MOE], ids=["dense", "experts"])
def test_what_a_gpu_keeps_is_counted_within_a_twentieth(as_on_gpu, name, language):
    config = SailVL2Config(VISION, language)
    batch = BATCHES[name]
    head = batch.scored * 2 * language.hidden_size
    counted = Kept.of(Job(config, batch)).all(config, checkpointing=False) - head
    assert counted == pytest.approx(kept_by_autograd(config, BATCHES[name], torch.bfloat16), rel=0.05)


ROWS = MicroBatch(1088, 8, 512, 4)
MEASURED = [  # benchmarks/RESULTS.md, 2026-11-27: the batch, our kernel for gated products, peak, seconds (median)
    (ROWS, True, 47.1, 0.235),
    (ROWS, False, 49.5, 0.2295),
    (replace(ROWS, num_rows=4), True, 90.4, 0.711),
    (replace(ROWS, num_rows=4), False, 100.1, 0.725),
    (MicroBatch(1088, 1, 512, 4, 8), False, 104.9, 0.628),
]


@pytest.mark.parametrize(("batch", "has_kernel", "gib", "seconds"), MEASURED)
def test_updates_measured_on_an_h200_are_met(batch, has_kernel, gib, seconds):
    job = Job(TWO_B, batch, has_gated_kernel=has_kernel)
    assert memory(job).total / GIB == pytest.approx(gib, rel=0.10)
    assert update_seconds(job, MACHINES[Gpu.h200_141]).total == pytest.approx(seconds, rel=0.25)


SHAPES = [flavour_config(flavour) for flavour in Flavour]


@pytest.mark.parametrize("config", SHAPES, ids=[flavour.value for flavour in Flavour])
@pytest.mark.parametrize("adapter", [AdapterConfig(), LoraConfig(rank=8, targets=["language_model", "experts", "fc1"])])
def test_parameters_are_those_of_the_model(config, adapter):
    network = _on_meta(config)
    if isinstance(adapter, LoraConfig):
        is_moe = isinstance(config.language, MoeLanguageConfig)
        adapter = adapter if is_moe else replace(adapter, targets=["language_model", "fc1"])
        adapt(network, adapter, 0)
    weights = {name: weight.numel() for name, weight in network.named_parameters()}
    trained = {name: count for name, count in weights.items() if adapter.name == "none" or "lora_" in name}
    sizes = Sizes.of(config, (), adapter)
    assert (sizes.total, sizes.trained) == (sum(weights.values()), sum(trained.values()))
    assert sizes.vision_trained == sum(count for name, count in trained.items() if name.startswith("vision_model."))
    in_blocks = sum(count for name, count in weights.items() if ".blocks." in name or ".layers." in name)
    assert sizes.root == sizes.total - in_blocks
    first = sum(count for name, count in weights.items() if name.startswith("language_model.model.layers.0."))
    assert sizes.largest_block >= first


def _on_meta(config: SailVL2Config) -> SailVL2:
    with torch.device("meta"):
        return SailVL2(config)


@pytest.mark.parametrize("flavour", [Flavour.sailvl2_2b, Flavour.sailvl2_8b, Flavour.sailvl2_a3b])
@pytest.mark.parametrize("adapter", [AdapterConfig(), LoraConfig()], ids=["full", "lora"])
def test_more_processes_need_less_memory_each(flavour, adapter):
    config = flavour_config(flavour)
    jobs = [Job(config, ROWS, 2, Spread(True, ranks), adapter=adapter) for ranks in (2, 4, 8, 16, 64)]
    found = [memory(job).total for job in jobs]
    assert found == sorted(found, reverse=True) and len(set(found)) == len(found)


def test_settings_that_save_memory_do():
    job = Job(flavour_config(Flavour.sailvl2_8b), MicroBatch(16384, 8, 4096, 60), 2, Spread(True, 8), True)
    least = memory(job).total
    for other in (
        replace(job, checkpointing=False),
        replace(job, spread=Spread(True, 8, reduce_each=False)),
        replace(job, spread=Spread(True, 8, replicas=2)),
        replace(job, has_reference=True),
        replace(job, batch=replace(job.batch, num_rows=2)),
    ):
        assert memory(other).total > least
    away = memory(replace(job, spread=Spread(True, 8, offload_moments=True)))
    assert away.total == pytest.approx(least - 8 * job.sizes.trained / 8) and away.host == 8 * job.sizes.trained


def test_a_model_that_does_not_fit_is_refused_by_the_numbers(monkeypatch):
    cpu, config = torch.device("cpu"), flavour_config(Flavour.sailvl2_8b)
    monkeypatch.setattr("model.engine.planning.fitting.free_memory", lambda device: 24 * GIB)
    with pytest.raises(ValueError, match=r"24\.00 GiB that are free on cpu, found one that needs \d+\.\d\d GiB") as one:
        require_room(EngineConfig(), config, AdapterConfig(), cpu)
    text = str(one.value)
    assert "33.21 weights" in text and "66.42 moments" in text and "engine.check_memory=false" in text
    require_room(EngineConfig(check_memory=False), config, AdapterConfig(), cpu)
    require_room(EngineConfig(), flavour_config(Flavour.tiny), AdapterConfig(), cpu)


def test_processes_of_one_cpu_share_its_memory(monkeypatch):
    config, cpu = flavour_config(Flavour.tiny), torch.device("cpu")
    needed = memory(job_of(FsdpConfig(), config, AdapterConfig(), cpu, 2)).total
    monkeypatch.setattr("model.engine.planning.fitting.free_memory", lambda device: 1.5 * needed)
    require_room(FsdpConfig(), config, AdapterConfig(), cpu, 2)
    with pytest.raises(ValueError, match="for each of 2 processes"):
        require_room(FsdpConfig(), config, AdapterConfig(), cpu, 2, 2)


def test_an_engine_is_refused_before_its_weights_are_read_and_says_what_it_needs(monkeypatch):
    source = FreshSource(Flavour.tiny, 0)
    optimizer = OptimizerConfig(learning_rate=1e-3)
    said = open_engine(None, source, EngineConfig(num_threads=1), optimizer, 1).described("fresh")
    assert any(line.startswith("memory at the peak of an update: an estimated ") for line in said)
    monkeypatch.setattr("model.engine.planning.fitting.free_memory", lambda device: 1.0)
    monkeypatch.setattr(FreshSource, "model", lambda self: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="engine: expected a model that trains"):
        open_engine(None, source, EngineConfig(num_threads=1), optimizer, 1)
