"""bfloat16 arithmetic over fp32 weights: small steps last, gradients add up in fp32, checkpoints keep what is exact."""

import pytest
import torch

from model.batch import Row, TrainBatch, pack_rows
from model.config import Flavour, flavour_config
from model.engine.config import ComputeDtype, EngineConfig, OptimizerConfig, Schedule
from model.engine.local import LocalEngine
from model.sail_vl2 import SailVL2

STEP = 1e-6
OPTIMIZER = OptimizerConfig(learning_rate=STEP, warmup_steps=0, schedule=Schedule.constant, weight_decay=0.0)


def make_engine(dtype: ComputeDtype) -> LocalEngine:
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(0)
    return LocalEngine(model, EngineConfig(num_threads=1, compute_dtype=dtype), OPTIMIZER, 100)


def make_batch(seed: int) -> TrainBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 500, (40,), generator=generator).tolist()
    inputs = pack_rows([Row(ids[:10], [ids[10:25], ids[25:]])], -1, 16)
    return TrainBatch(inputs, torch.ones(30))


def loss(scores, batch):
    return -(scores.logprobs * batch.loss_weights).sum(), {}


def test_steps_of_a_millionth_do_not_vanish():
    """bfloat16 near 1 is spaced by 0.0078: 20 steps of 1e-6 reach the fp32 weights, and rounded ones stay."""
    engine = make_engine(ComputeDtype.bfloat16)
    norm = engine.model.language_model.model.norm.weight
    rounded = engine.compute_model.language_model.model.norm.weight
    assert rounded.dtype == torch.bfloat16 and norm.dtype == torch.float32
    for _ in range(20):
        engine.accumulate([make_batch(0)], loss, 30.0)
        engine.step()
    moved = (norm - 1.0).abs()
    assert 10 * STEP < moved.median() <= moved.max() < 30 * STEP
    assert torch.equal(rounded, torch.ones_like(rounded))


def test_the_computing_copy_is_the_weights_rounded(tmp_path):
    engine = make_engine(ComputeDtype.bfloat16)
    with torch.no_grad():
        for weight in engine.model.parameters():
            weight.add_(0.01)
    engine.save(tmp_path)
    other = make_engine(ComputeDtype.bfloat16)
    other.load(tmp_path)
    masters, rounded = dict(other.model.named_parameters()), dict(other.compute_model.named_parameters())
    for name, weight in engine.model.named_parameters():
        assert torch.equal(masters[name], weight)
        assert torch.equal(rounded[name], weight.bfloat16())
    assert {tensor.dtype for _, tensor in other.weights()} == {torch.bfloat16}


def test_gradients_are_near_those_of_float32_and_add_up():
    """Some dozens of roundings of 2^-8 on the way: a cosine of 0.999; two equal micro-batches give twice one, exactly."""
    narrow, wide = make_engine(ComputeDtype.bfloat16), make_engine(ComputeDtype.float32)
    for engine in (narrow, wide):
        engine.accumulate([make_batch(1)], loss, 30.0)
    gradients = {name: p.grad.clone() for name, p in narrow.model.named_parameters() if p.grad is not None}
    assert all(p.grad is None for p in narrow.compute_model.parameters())
    for name, parameter in wide.model.named_parameters():
        assert (parameter.grad is None) == (name not in gradients)
        if parameter.grad is not None:
            found = gradients[name]
            assert found.dtype == torch.float32
            assert torch.cosine_similarity(found.flatten(), parameter.grad.flatten(), dim=0) > 0.999, name
    narrow.accumulate([make_batch(1)], loss, 30.0)
    for name, parameter in narrow.model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, 2 * gradients[name]), name


def test_resume_in_another_type_is_refused(tmp_path):
    make_engine(ComputeDtype.float32).save(tmp_path)
    with pytest.raises(ValueError, match="compute_dtype: the checkpoint was made with float32, this run has bfloat16"):
        make_engine(ComputeDtype.bfloat16).load(tmp_path)
