"""The reference engine: accumulation, clipping, schedules, non-finite gates, exact save and load."""

from pathlib import Path

import pytest
import torch

from model.batch import Row, TrainBatch, pack_rows
from model.config import Tower
from model.engine.base import NonFiniteError
from model.engine.config import EngineConfig, OptimizerConfig, Schedule
from model.engine.local import LocalEngine
from model.engine.schedule import learning_rate_at
from model.sail_vl2 import SailVL2
from model.supervised import cross_entropy


def make_engine(tiny, engine: EngineConfig | None = None, **optimizer) -> LocalEngine:
    model = SailVL2(tiny[0].config)
    model.load_state_dict(tiny[0].state_dict())
    return LocalEngine(
        model,
        engine or EngineConfig(num_threads=1),
        OptimizerConfig(**{"learning_rate": 1e-3, **optimizer}),
        total_steps=10,
    )


def make_batch(seed: int, count: int = 2) -> TrainBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = [Row([1, 2], [torch.randint(0, 500, (6,), generator=generator).tolist()]) for _ in range(count)]
    inputs = pack_rows(rows, 519, 16)
    return TrainBatch(inputs, torch.ones(inputs.target_ids.shape[0]))


def weights_of(engine: LocalEngine) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in engine.model.parameters()])


def moments_of(engine: LocalEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine._optimizer.state()}


def save_and_load(source: LocalEngine, target: LocalEngine, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    source.save(folder)
    target.load(folder)


def test_two_micro_batches_equal_one_batch(tiny):
    """The denominator is the whole update's; fp32 sums in another order, 1e-5 relative."""
    a, b = make_batch(0), make_batch(1)
    together = make_engine(tiny)
    rows = pack_rows([Row([1, 2], [x.inputs.target_ids[i : i + 6].tolist()]) for x in (a, b) for i in (0, 6)], 519, 16)
    together.accumulate([TrainBatch(rows, torch.ones(24))], cross_entropy, 24.0)
    apart = make_engine(tiny)
    for batch in (a, b):
        apart.accumulate([batch], cross_entropy, 24.0)
    first, second = ([p.grad for p in e.model.language_model.parameters()] for e in (together, apart))
    for x, y in zip(first, second, strict=True):
        assert x is not None and y is not None
        assert (x - y).norm() <= 1e-5 * x.norm()


def test_training_lowers_the_loss(tiny):
    engine, batch = make_engine(tiny, learning_rate=3e-3, warmup_steps=0), make_batch(2)
    losses = []
    for _ in range(8):
        losses.append(engine.accumulate([batch], cross_entropy, 12.0).total()["loss"])
        engine.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("share_of_norm", [0.3, 3.0], ids=["clipped", "below the limit"])
def test_steps_are_those_of_torch(tiny, share_of_norm):
    """Three updates by AdamW with gradients clipped to a share of the first one's norm; fp32, 1e-6 of a weight."""
    probe = make_engine(tiny)
    probe.accumulate([make_batch(0)], cross_entropy, 12.0)
    limit = probe.step().grad_norm * share_of_norm
    own = make_engine(tiny, max_grad_norm=limit, learning_rate=1e-3, warmup_steps=0, schedule=Schedule.constant)
    theirs = make_engine(tiny)
    parameters = list(theirs.model.parameters())
    config = own.optimizer_config
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(config.beta1, config.beta2))
    for seed in range(3):
        for engine in (own, theirs):
            engine.accumulate([make_batch(seed)], cross_entropy, 12.0)
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit).item()
        adamw.step()
        adamw.zero_grad()
        assert own.step().grad_norm == pytest.approx(norm, rel=1e-5)
        assert (norm > limit) == (share_of_norm < 1)
    assert (weights_of(own) - weights_of(theirs)).abs().max() <= 1e-6 * weights_of(theirs).abs().max()
    for (name, (first, second, _)), parameter in zip(own._optimizer.moments.items(), parameters, strict=True):
        expected = adamw.state[parameter]  # Adam's steps hardly depend on the scale of gradients; its moments do
        if expected:
            assert torch.allclose(first, expected["exp_avg"], rtol=1e-4, atol=1e-7), name
            assert torch.allclose(second, expected["exp_avg_sq"], rtol=1e-4, atol=1e-10), name


@pytest.mark.parametrize("site", ["loss", "gradient"])
def test_non_finite_numbers_never_reach_weights_or_moments(tiny, site):
    engine = make_engine(tiny)
    engine.accumulate([make_batch(3)], cross_entropy, 12.0)
    assert engine.step().applied
    before, moments = weights_of(engine), moments_of(engine)

    def poisoned(scores, batch):
        loss, metrics = cross_entropy(scores, batch)
        return (loss * float("nan") if site == "loss" else loss), metrics

    for attempt in range(3):
        engine.accumulate([make_batch(4)], poisoned, 12.0)
        if site == "gradient":
            grad = engine.model.mlp1[1].weight
            grad.grad = torch.full_like(grad, float("inf"))
        if attempt < 2:
            assert not engine.step().applied
        else:
            with pytest.raises(NonFiniteError, match="3 updates in a row"):
                engine.step()
        assert torch.equal(weights_of(engine), before)
        now = moments_of(engine)
        assert all(torch.equal(now[name], tensor) for name, tensor in moments.items())


def test_one_good_step_resets_the_count_of_bad_ones(tiny):
    engine = make_engine(tiny)
    for bad in (True, True, False, True, True):
        factor = float("nan") if bad else 1.0
        engine.accumulate([make_batch(3)], lambda s, b, f=factor: (cross_entropy(s, b)[0] * f, {}), 12.0)
        assert engine.step().applied is not bad
    assert engine.step_count == 5


def test_save_and_load_continue_to_the_bit(tiny, tmp_path):
    straight, stopped = make_engine(tiny), make_engine(tiny)
    for engine in (straight, stopped):
        for seed in range(3):
            engine.accumulate([make_batch(seed)], cross_entropy, 12.0)
            engine.step()
    resumed = make_engine(tiny)
    save_and_load(stopped, resumed, tmp_path)
    for engine in (straight, resumed):
        for seed in range(3, 6):
            engine.accumulate([make_batch(seed)], cross_entropy, 12.0)
            engine.step()
    assert torch.equal(weights_of(straight), weights_of(resumed))
    for name, engine in (("straight", straight), ("resumed", resumed)):
        (tmp_path / name).mkdir()
        engine.save(tmp_path / name)
    for file in (tmp_path / "straight").iterdir():
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()


def test_resume_refuses_another_thread_count(tiny, tmp_path):
    make_engine(tiny).save(tmp_path)
    model = make_engine(tiny).model
    other = LocalEngine(model, EngineConfig(num_threads=2), OptimizerConfig(learning_rate=1e-3), 10)
    with pytest.raises(ValueError, match="num_threads: the checkpoint was made with 1, this run has 2"):
        other.load(tmp_path)


def test_schedules_by_hand():
    def rate(step: int, schedule: Schedule) -> float:
        return learning_rate_at(step, 110, OptimizerConfig(1.0, 10, schedule, 0.1))

    for schedule in Schedule:
        assert rate(0, schedule) == pytest.approx(0.1)
        assert rate(9, schedule) == rate(10, schedule) == 1.0
    assert rate(60, Schedule.constant) == 1.0
    assert rate(60, Schedule.linear) == pytest.approx(0.55)
    assert rate(60, Schedule.cosine) == pytest.approx(0.55)
    assert rate(35, Schedule.cosine) == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)
    assert [rate(110, Schedule.linear), rate(500, Schedule.cosine)] == pytest.approx([0.1, 0.1])


def test_a_frozen_scorer_stays_behind(tiny):
    engine = make_engine(tiny, learning_rate=1e-2, warmup_steps=0)
    reference, batch = engine.frozen(), make_batch(6)
    before = reference.logprobs([batch.inputs])[0].logprobs
    assert torch.equal(before, engine.logprobs([batch.inputs])[0].logprobs)
    engine.accumulate([batch], cross_entropy, 12.0)
    engine.step()
    assert torch.equal(before, reference.logprobs([batch.inputs])[0].logprobs)
    assert not torch.equal(before, engine.logprobs([batch.inputs])[0].logprobs)


def test_frozen_towers_keep_their_weights_and_checkpointed_gradients_are_the_same(tiny, tmp_path):
    settings = EngineConfig(num_threads=1, freeze=[Tower.vision, Tower.adapter], gradient_checkpointing=True)
    frozen, plain = make_engine(tiny, settings, warmup_steps=0), make_engine(tiny, warmup_steps=0)
    for engine in (frozen, plain):
        engine.accumulate([make_batch(4)], cross_entropy, 12.0)
        engine.step()
    for name, parameter in frozen.model.named_parameters():
        if name.startswith("language_model."):
            assert torch.equal(parameter, plain.model.get_parameter(name)), name
        else:
            assert torch.equal(parameter, tiny[0].get_parameter(name)), name
    again = make_engine(tiny, settings)
    save_and_load(frozen, again, tmp_path)
    assert torch.equal(weights_of(again), weights_of(frozen))


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match=r"engine\.freeze: expected a tower that still trains"):
        EngineConfig(freeze=list(Tower))
