"""The reference engine with adapters: they alone train, are stored, and are merged for whoever takes the weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import build_flavour, fill, load_model, save_model, sorted_tensors
from model.config import ExportConfig, Flavour, StoredDtype, Tower
from model.engine.config import ComputeDtype, EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.export import export
from model.lora.adapters import adapters_of
from model.lora.config import AdapterConfig, LoraConfig
from model.lora.peft_files import write_adapters
from model.lora.start import adapt
from model.sail_vl2 import SailVL2
from tests.parity.engine_cases import OPTIMIZER, Setting, batches, cross_entropy, num_targets, rows, train, weights

FLAVOURS = pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
TARGETS = {
    Flavour.tiny: ["language_model", "mlp1", "vision_model"],
    Flavour.tiny_moe: ["language_model", "mlp1", "vision_model", "experts"],
}
NARROW = EngineConfig(num_threads=1, compute_dtype=ComputeDtype.bfloat16)


def make_engine(
    flavour: Flavour = Flavour.tiny, config: EngineConfig | None = None, optimizer: OptimizerConfig = OPTIMIZER, **lora
) -> LocalEngine:
    setting = Setting(flavour)
    model = adapt(setting.model(), LoraConfig(**{"rank": 4, "alpha": 8, "targets": TARGETS[flavour], **lora}), seed=0)
    return LocalEngine(model, config or setting.config, optimizer, total_steps=10)


def adapter_values(engine: LocalEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine._optimizer.parameters.items()}


def fresh(engine: LocalEngine, flavour: Flavour) -> SailVL2:
    """A plain model with the weights that the engine gives to samplers."""
    model = Setting(flavour).model()
    fill(model, engine.weights())
    return model


@FLAVOURS
def test_samplers_get_the_merged_weights_and_the_reference_stays_the_model_below(flavour):
    """Merged and adapted log-probabilities of about 6 nats differ by some ten roundings of float32, 1e-5."""
    engine, inputs = make_engine(flavour), [batch.inputs for batch in batches(rows(7, flavour))]
    base = Setting(flavour).model()
    reference = engine.frozen()
    train(engine, flavour, range(3))
    with torch.no_grad():
        for one, own, below in zip(inputs, engine.logprobs(inputs), reference.logprobs(inputs), strict=True):
            assert torch.equal(below.logprobs, base(one).logprobs)
            assert (own.logprobs - below.logprobs).abs().max() > 1e-3
            assert (own.logprobs - fresh(engine, flavour)(one).logprobs).abs().max() <= 1e-5
    assert [name for name, _ in engine.weights()] == [name for name, _ in sorted_tensors(base)]


def test_the_weights_below_are_the_start_to_the_bit_after_training():
    engine, start = make_engine(Flavour.tiny_moe), dict(Setting(Flavour.tiny_moe).model().named_parameters())
    train(engine, Flavour.tiny_moe, range(3))
    for name, parameter in engine.model.named_parameters():
        assert "lora" in name or torch.equal(parameter, start[name]), name
        assert ("lora" in name) == (name in engine._optimizer.parameters) == parameter.requires_grad


def test_a_reference_of_started_adapters_keeps_these_and_no_second_model(tmp_path):
    first = make_engine()
    train(first, Flavour.tiny, range(2))
    write_adapters(tmp_path, first.model, 4, 8)
    engine, inputs = make_engine(path=str(tmp_path)), [batch.inputs for batch in batches(rows(7, Flavour.tiny))]
    before = engine.logprobs(inputs)
    for one, other in zip(before, first.logprobs(inputs), strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
    reference = engine.frozen()
    kept = sum(tensor.numel() for _, tensor in reference._kept._kept)  # pyright: ignore
    assert kept == sum(tensor.numel() for tensor in adapter_values(engine).values())
    train(engine, Flavour.tiny, range(2, 4))
    for one, other in zip(reference.logprobs(inputs), before, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)


@FLAVOURS
def test_two_updates_saved_and_two_more_equal_four_to_the_bit(flavour, tmp_path):
    straight, first, second = (make_engine(flavour) for _ in range(3))
    train(straight, flavour, range(4))
    train(first, flavour, range(2))
    digests = first.save(tmp_path)
    assert sorted(digests) == sorted(path.name for path in tmp_path.iterdir())
    assert load_file(tmp_path / "weights.safetensors").keys() == adapter_values(first).keys()
    second.load(tmp_path)
    train(second, flavour, range(2, 4))
    expected = weights(straight)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(second).items())


def test_resume_refuses_other_adapters_and_a_checkpoint_of_whole_weights(tmp_path):
    (tmp_path / "adapters").mkdir()
    make_engine().save(tmp_path / "adapters")
    with pytest.raises(
        ValueError, match=r"rank_and_scale: the checkpoint was made with \[4, 2\.0\], this run has \[4, 1"
    ):
        make_engine(alpha=4).load(tmp_path / "adapters")
    with pytest.raises(ValueError, match=r"expected a tensor .*vision_model.*lora_a, found none"):
        narrower = make_engine(targets=["language_model"])
        (tmp_path / "narrower").mkdir()
        narrower.save(tmp_path / "narrower")
        make_engine().load(tmp_path / "narrower")
    whole = LocalEngine(Setting().model(), Setting().config, OPTIMIZER, 10)
    (tmp_path / "whole").mkdir()
    whole.save(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"rank_and_scale: the checkpoint was made with None"):
        make_engine().load(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"expected a tensor .*, found none"):
        whole.load(tmp_path / "adapters")


def test_in_bfloat16_the_weights_below_have_no_second_copy_and_adapters_stay_in_float32():
    engine = make_engine(config=NARROW)
    sizes = dict.fromkeys((torch.bfloat16, torch.float32), 0)
    for parameter in engine.model.parameters():
        sizes[parameter.dtype] += parameter.numel()
    trained = sum(tensor.numel() for tensor in adapter_values(engine).values())
    assert sizes[torch.float32] == trained and sizes[torch.bfloat16] == sum(
        parameter.numel() for parameter in Setting().model().parameters()
    )
    assert engine.compute_model is engine.model and engine.shape.dtype == torch.bfloat16
    assert {tensor.dtype for _, tensor in engine.weights()} == {torch.bfloat16}


def test_steps_of_a_millionth_reach_adapters_of_a_model_in_bfloat16():
    """Around 0.1 bfloat16 is spaced by 0.0005: ten steps of 1e-6 would vanish in it, and Adam's first are that long."""
    engine = make_engine(config=NARROW, optimizer=OptimizerConfig(learning_rate=1e-6))
    before = adapter_values(engine)
    train(engine, Flavour.tiny, range(10))
    moved = [(tensor - before[name]).abs().max() for name, tensor in adapter_values(engine).items()]
    assert all(2e-6 < float(distance) < 2e-5 for distance in moved)


def test_in_bfloat16_gradients_are_those_of_float32_up_to_its_rounding():
    """8 bits of mantissa and some forty products in a row: 5 % of the whole gradient, far from a wrong factor."""
    narrow, wide = make_engine(config=NARROW), make_engine()
    for engine in (narrow, wide):
        made = batches(rows(1, Flavour.tiny))
        engine.accumulate(made, cross_entropy, num_targets(made))
    pairs = list(zip(adapters_of(narrow.model), adapters_of(wide.model), strict=True))
    assert all(adapter.b.grad is not None and adapter.b.grad.dtype == torch.float32 for adapter, _ in pairs)
    ours, exact = (torch.cat([pair[side].b.grad.flatten() for pair in pairs]) for side in (0, 1))  # pyright: ignore
    assert (ours - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize("stored", [StoredDtype.float32, StoredDtype.bfloat16], ids=lambda stored: stored.value)
def test_an_export_is_the_merged_model_and_its_adapters_beside_it_give_the_same_bytes(tiny, tmp_path, stored):
    save_model(tmp_path / "base", *tiny, dtype=stored)
    model, processor = load_model(tmp_path / "base")
    engine = LocalEngine(adapt(model, LoraConfig(rank=4, alpha=8), seed=0), EngineConfig(num_threads=1), OPTIMIZER, 10)
    train(engine, Flavour.tiny, range(2))
    engine.export(tmp_path / "final", processor)
    merged, _ = load_model(tmp_path / "final")
    dtype = getattr(torch, stored.value)
    expected = {name: tensor.to(dtype).float() for name, tensor in engine.weights()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in sorted_tensors(merged))
    start = dict(sorted_tensors(load_model(tmp_path / "base")[0]))
    changed = [name for name, tensor in sorted_tensors(merged) if not torch.equal(tensor, start[name])]
    assert len(changed) == len(adapters_of(engine.model))
    config = ExportConfig(str(tmp_path / "base"), str(tmp_path / "out"), adapter=str(tmp_path / "final_adapter"))
    export(config)
    for path in (tmp_path / "final").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_experts_are_added_to_the_stored_weights_one_by_one(tmp_path):
    save_model(tmp_path / "base", *build_flavour(Flavour.tiny_moe, 0))
    model, processor = load_model(tmp_path / "base")
    adapted = adapt(model, LoraConfig(rank=4, alpha=8, targets=TARGETS[Flavour.tiny_moe]), seed=0)
    engine = LocalEngine(adapted, EngineConfig(num_threads=1), OPTIMIZER, 10)
    train(engine, Flavour.tiny_moe, range(2))
    engine.export(tmp_path / "final", processor)
    export(ExportConfig(str(tmp_path / "base"), str(tmp_path / "out"), adapter=str(tmp_path / "final_adapter")))
    for path in (tmp_path / "final").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_what_trains_and_its_memory_are_said():
    engine = make_engine(targets=["language_model", "mlp1"], config=NARROW)
    model, total = engine.model, sum(parameter.numel() for parameter in engine.model.parameters())
    trained = sum(tensor.numel() for tensor in adapter_values(engine).values())
    said = "\n".join(engine.described("BASE"))
    assert f"model: BASE, {total:,} parameters, {trained:,} of them ({trained / total:.3%}) in 30 trained" in said
    assert "adapters of rank 4; the others stay as they are, in bfloat16" in said
    held = 2 * (total - trained) + 16 * trained
    assert f"memory: {held / 2**30:.2f} GiB" in said and model is engine.compute_model


def test_the_learning_rate_is_ten_times_that_of_full_training_and_said():
    config, optimizer = LoraConfig(), OptimizerConfig(learning_rate=1e-6)
    assert optimizer.of(config).learning_rate == pytest.approx(1e-5) and optimizer.of(AdapterConfig()) == optimizer
    assert "learning rate: 1e-05 = adapter.learning_rate_factor 10 x optimizer.learning_rate 1e-06" in "\n".join(
        config.described(optimizer.learning_rate)
    )
    assert AdapterConfig().described(1e-6) == []


def test_starting_adapters_of_another_rank_or_of_other_layers_are_refused(tmp_path: Path):
    engine = make_engine()
    write_adapters(tmp_path, engine.model, 4, 8)
    for changes, message in (
        ({"rank": 8}, r"adapter\.rank: 8 does not fit .*; set adapter\.rank=4"),
        ({"alpha": 16}, r"adapter\.alpha: 16 does not fit .*; set adapter\.alpha=8"),
        ({"targets": ["language_model"]}, "one more, of mlp1.1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_engine(path=str(tmp_path), **changes)
    with pytest.raises(ValueError, match=r"adapter\.path: expected a folder of adapters, found none at"):
        LoraConfig(path=str(tmp_path / "nowhere"))


def test_an_adapted_tower_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"engine\.freeze: language \(language_model\) is to stay"):
        make_engine(config=EngineConfig(num_threads=1, freeze=[Tower.language]), targets=["language_model"])
