"""What every training engine must do, as cases that a test runs for each engine and number of processes.

A case takes the engine of one `Subject` and returns named tensors; the process that leads runs it. An engine over
several processes is built by its `Subject` so that the other processes follow, and the case does not know of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.batch import Row, RowRoutes, TrainBatch, pack_rows, split_by_tokens
from model.checkpoint import build_flavour, load_model, sorted_tensors
from model.config import Flavour, Tower, flavour_config
from model.engine.balance import BalancedLoss
from model.engine.base import TrainEngine
from model.engine.config import ComputeDtype, EngineConfig, OptimizerConfig, Schedule
from model.engine.source import AdaptedSource, FreshSource, ModelSource
from model.lora.config import AdapterConfig, LoraConfig
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2

PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=0, schedule=Schedule.constant, weight_decay=0.1)
FLAVOURS = (Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres)


@dataclass(frozen=True)
class Setting:
    """What an engine of a case is built with."""

    flavour: Flavour = Flavour.tiny
    config: EngineConfig = field(default_factory=lambda: EngineConfig(num_threads=1))
    seed: int = 3
    dtype: torch.dtype = torch.float32  # of the weights that train
    optimizer: OptimizerConfig = field(default_factory=lambda: OPTIMIZER)
    total_steps: int = 10
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    @property
    def source(self) -> ModelSource:
        return AdaptedSource(FreshSource(self.flavour, self.seed, self.dtype), self.adapter, self.seed)

    def model(self) -> SailVL2:
        return self.source.model()[0]


Build = Callable[[Setting], TrainEngine]


def rows(seed: int, flavour: Flavour, image_rows: tuple[int, ...] = (0, 2), dtype=torch.float32) -> list[Row]:
    """Six rows of other lengths, `image_rows` of them with images; AnyRes rows have tiles of two sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(32, 32), (16, 48)] if flavour is Flavour.tiny_anyres else [(32, 32)]
    made = []
    for number in range(6):
        own = sizes if number in image_rows else []
        prefix = [PLACEHOLDER] * sum(height * width // PIXELS_PER_TOKEN**2 for height, width in own)
        prefix += torch.randint(0, 500, (2 + number,), generator=generator).tolist()
        counts = [3 + number, 2] if number % 2 else [4 + 2 * number]
        completions = [torch.randint(0, 500, (count,), generator=generator).tolist() for count in counts]
        made.append(Row(prefix, completions, [torch.randn(1, 3, *size, generator=generator).to(dtype) for size in own]))
    return made


def batches(packed: list[Row], budget: int = 40, num_parts: int = 1) -> list[TrainBatch]:
    made = []
    for part in split_by_tokens([row.num_tokens for row in packed], budget, num_parts):
        inputs = pack_rows([packed[number] for number in part], PLACEHOLDER, PIXELS_PER_TOKEN)
        made.append(TrainBatch(inputs, torch.ones(len(inputs.target_ids))))
    return made


def cross_entropy(scores, batch: TrainBatch):
    loss = -(scores.logprobs * batch.loss_weights).sum()
    figures = {"nll": loss.item(), "tokens": float(len(batch.loss_weights)), "nll_max": -scores.logprobs.min().item()}
    return loss, figures


def weights(engine: TrainEngine) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().clone() for name, tensor in engine.weights()}


def num_targets(made: list[TrainBatch]) -> float:
    return float(sum(len(batch.loss_weights) for batch in made))


def train(
    engine: TrainEngine,
    flavour: Flavour,
    steps: range,
    image_rows: tuple[int, ...] = (0, 2),
    dtype=torch.float32,
    rate_scale: float = 1.0,
) -> None:
    for step in steps:
        made = batches(rows(step, flavour, image_rows, dtype), num_parts=engine.num_parts)
        loss = cross_entropy
        if flavour is Flavour.tiny_moe:
            loss = BalancedLoss.over(loss, engine, [b.inputs for b in made], 0.01, num_targets(made))
        engine.accumulate(made, loss, num_targets(made))
        assert engine.step(rate_scale).applied


def precise(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Weights after three updates in float64, where nothing but a mistake is larger than 1e-12."""
    engine = build(Setting(flavour, dtype=torch.float64))
    train(engine, flavour, range(3), dtype=torch.float64)
    return {name: tensor.detach().clone() for name, tensor in engine.weights()}


def gradients(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Loss, norms and, through one plain update, the gradient's direction; micro-batches of other numbers than ranks."""
    found = {}
    for budget in (14, 40, 1000):
        engine = build(Setting(flavour))
        made = batches(rows(5, flavour), budget)
        total = engine.accumulate(made, cross_entropy, num_targets(made)).total()
        result = engine.step()
        numbers = {"loss": total["loss"], "norm": result.grad_norm, **result.tower_norms}
        found |= {f"{budget}.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return found


def updates(build: Build, flavour: Flavour, image_rows: tuple[int, ...] = (0, 2)) -> dict[str, Tensor]:
    """Weights after three updates."""
    engine = build(Setting(flavour))
    train(engine, flavour, range(3), image_rows)
    return weights(engine)


def replayed(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Weights after an update, and log-probabilities, of micro-batches whose experts are given for most tokens."""
    engine = build(Setting(flavour))
    generator = np.random.default_rng(0)
    shape = engine.shape.config.language.num_hidden_layers, 2

    def routes(count: int) -> np.ndarray:
        first = generator.integers(0, 8, (count, shape[0], 1))
        return np.concatenate((first, (first + generator.integers(1, 8, first.shape)) % 8), -1).astype(np.uint8)

    given = [
        row
        if number == 4
        else replace(
            row, routes=RowRoutes(routes(len(row.prefix_ids)), [routes(len(one) - 1) for one in row.completions])
        )
        for number, row in enumerate(rows(3, flavour))
    ]
    made = batches(given, num_parts=engine.num_parts)
    inputs = [batch.inputs for batch in made]
    scored = engine.logprobs(inputs)
    found = {f"logprobs {n}": one.logprobs.cpu() for n, one in enumerate(scored)}
    routings = [one.routing for one in scored if one.routing is not None and one.routing.replayed is not None]
    assert routings and all((one.agreed < one.replayed).all() for one in routings)
    found |= {f"agreed {n}": one.agreed.cpu() for n, one in enumerate(routings)}
    engine.accumulate(made, cross_entropy, num_targets(made))
    assert engine.step().applied
    return {**found, **weights(engine)}


def figures(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """What the loss says, the norms and the learning rate of one update; and of an update without micro-batches."""
    engine = build(Setting(flavour))
    made = batches(rows(1, flavour))
    total = engine.accumulate(made, cross_entropy, num_targets(made)).total()
    result = engine.step()
    nothing = engine.accumulate([], cross_entropy, 1.0)
    assert nothing.parts == () and not nothing.not_finite
    scaled = engine.step(0.25).learning_rate
    numbers = {**total, "norm": result.grad_norm, "rate": result.learning_rate, "scaled": scaled, **result.tower_norms}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def require_shards(engine: TrainEngine) -> None:
    """After a pass without gradient FSDP2 may keep gathered weights, which then go stale; here it must not."""
    model = getattr(getattr(engine, "_own", None), "model", None)
    if type(getattr(engine, "_own", None)).__name__ == "FsdpEngine" and isinstance(model, torch.nn.Module):
        assert all(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters())


def scores(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Log-probabilities before and after an update: a pass without gradient leaves nothing stale behind."""
    engine = build(Setting(flavour))
    made = batches(rows(2, flavour))
    inputs = [batch.inputs for batch in made]
    engine.accumulate(made, cross_entropy, num_targets(made))
    before = engine.logprobs(inputs)
    reference = engine.frozen()
    assert engine.step().applied
    after, frozen = engine.logprobs(inputs), reference.logprobs(inputs)
    require_shards(engine)
    fresh = SailVL2(flavour_config(flavour))
    own = dict(sorted_tensors(fresh))
    with torch.no_grad():
        for name, tensor in engine.weights():
            own[name].copy_(tensor)
        anew = [fresh(one).logprobs for one in inputs]
    found = {}
    for number, one in enumerate(inputs):
        assert torch.equal(frozen[number].logprobs.cpu(), before[number].logprobs.cpu())
        assert (after[number].logprobs.cpu() - anew[number]).abs().max() <= 1e-4
        assert (after[number].logprobs.cpu() - before[number].logprobs.cpu()).abs().max() > 1e-3
        found[f"logprobs.{number}"] = after[number].logprobs.cpu()
        assert engine.embeddings(one).shape == (one.num_tokens, fresh.config.language.hidden_size)
    return found


def not_finite(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """One bad micro-batch keeps the whole update from the weights; the next update is as if it had not been."""
    engine = build(Setting(flavour))
    made = batches(rows(3, flavour), budget=20)
    before = weights(engine)
    bad = [replace(b, loss_weights=b.loss_weights * (float("nan") if n == 1 else 1.0)) for n, b in enumerate(made)]
    sums = engine.accumulate(bad, cross_entropy, num_targets(made))
    assert sums.not_finite == [1] and len(sums.parts) == len(made) > 2
    assert not engine.step().applied and engine.step_count == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    engine.accumulate(made, cross_entropy, num_targets(made))
    assert engine.step().applied
    return weights(engine)


def resumed(build: Build, flavour: Flavour, folder: Path) -> dict[str, Tensor]:
    """Two updates, saved, loaded by another engine, two more; equal to four in a row, to the bit."""
    first, straight = build(Setting(flavour)), build(Setting(flavour))
    train(first, flavour, range(2))
    (folder / "saved").mkdir()
    digests = first.save(folder / "saved")
    assert sorted(digests) == sorted(path.name for path in (folder / "saved").iterdir())
    second = build(Setting(flavour, seed=4))
    second.load(folder / "saved")
    assert second.step_count == 2
    train(second, flavour, range(2, 4))
    train(straight, flavour, range(4))
    found, expected = weights(second), weights(straight)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return found


def rolled_back(build: Build, flavour: Flavour, folder: Path) -> dict[str, Tensor]:
    """Saved after one update, two at three times the rate, loaded by the same engine: as if these had never been."""
    engine, straight = build(Setting(flavour)), build(Setting(flavour))
    train(engine, flavour, range(1))
    (folder / "saved").mkdir()
    engine.save(folder / "saved")
    train(engine, flavour, range(1, 3), rate_scale=3.0)
    away = weights(engine)
    engine.load(folder / "saved")
    assert engine.step_count == 1
    train(engine, flavour, range(1, 3), rate_scale=0.5)
    train(straight, flavour, range(1))
    train(straight, flavour, range(1, 3), rate_scale=0.5)
    found, expected = weights(engine), weights(straight)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in away.items())
    return found


def exported(build: Build, processor: Processor, folder: Path) -> dict[str, Tensor]:
    """A released folder that our own loader reads; names come sorted, whole, once each."""
    engine = build(Setting(Flavour.tiny))
    train(engine, Flavour.tiny, range(1))
    engine.export(folder / "model", processor)
    model, _ = load_model(folder / "model")
    names = [name for name, _ in engine.weights()]
    assert names == sorted(set(names)) == [name for name, _ in sorted_tensors(model)]
    return {name: tensor.detach().clone() for name, tensor in sorted_tensors(model)}


def frozen_towers(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Frozen towers keep their weights, with checkpointed gradients."""
    config = EngineConfig(num_threads=1, freeze=[Tower.vision, Tower.adapter], gradient_checkpointing=True)
    setting = Setting(flavour, config)
    engine = build(setting)
    train(engine, flavour, range(2))
    found, before = weights(engine), dict(sorted_tensors(setting.model()))
    for name, tensor in found.items():
        moved = not torch.equal(tensor, before[name])
        assert moved == name.startswith("language_model."), name
    return found


def narrow(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """bfloat16 forward and backward over float32 weights: `weights` gives the rounded ones."""
    engine = build(Setting(flavour, EngineConfig(num_threads=1, compute_dtype=ComputeDtype.bfloat16)))
    train(engine, flavour, range(1))
    assert {tensor.dtype for _, tensor in engine.weights()} == {torch.bfloat16}
    return weights(engine)


def adapted(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Adapters alone train; what is published has them added; the reference stays what the run began with."""
    targets = ["language_model", "mlp1", *(["experts"] if flavour is Flavour.tiny_moe else [])]
    engine = build(Setting(flavour, adapter=LoraConfig(rank=4, targets=targets)))
    made = batches(rows(2, flavour), num_parts=engine.num_parts)
    inputs = [batch.inputs for batch in made]
    reference, before = engine.frozen(), engine.logprobs(inputs)
    train(engine, flavour, range(3))
    again = reference.logprobs(inputs)
    for one, other in zip(again, before, strict=True):
        assert torch.equal(one.logprobs.cpu(), other.logprobs.cpu())
    after = engine.logprobs(inputs)
    assert max(float((o.logprobs - b.logprobs).abs().max()) for o, b in zip(after, before, strict=True)) > 1e-4
    return {**weights(engine), **{f"logprobs.{n}": one.logprobs.cpu() for n, one in enumerate(after)}}


def adapted_resumed(build: Build, flavour: Flavour, folder: Path) -> dict[str, Tensor]:
    """Adapters alone are saved; a run goes on from them to the bit."""
    setting = Setting(flavour, adapter=LoraConfig(rank=4))
    first, straight, second = (build(setting) for _ in range(3))
    train(first, flavour, range(2))
    (folder / "saved").mkdir()
    first.save(folder / "saved")
    size = sum(path.stat().st_size for path in (folder / "saved").iterdir())
    whole = sum(tensor.nbytes for _, tensor in sorted_tensors(Setting(flavour).model()))
    assert size < 0.5 * whole
    second.load(folder / "saved")
    train(second, flavour, range(2, 4))
    train(straight, flavour, range(4))
    found, expected = weights(second), weights(straight)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return found


def policy(build: Build, flavour: Flavour, name: str) -> dict[str, Tensor]:
    """Loss and norms of one update by an algorithm of reinforcement learning, with ratios that are not 1."""
    from rlhf.algorithms.config import ALGORITHM_CONFIGS
    from rlhf.algorithms.registry import build_algorithm
    from rlhf.config import TrainerConfig
    from rlhf.update import Policy, prepare
    from tests.parity.test_policy_invariance import LIMIT, make_groups

    engine, processor = build(Setting(flavour)), build_flavour(flavour, 0)[1]
    algorithm = build_algorithm(ALGORITHM_CONFIGS[name](), LIMIT)
    groups = make_groups(processor, torch.Generator().manual_seed(6))
    groups = [replace(group, images=[image.float() for image in group.images]) for group in groups]
    config = TrainerConfig(mini_batch_size=96, passes=2, balance_coefficient=0.01 if flavour is Flavour.tiny_moe else 0)
    one = prepare(algorithm.assign_advantages(groups), Policy(engine, None, processor, 70), algorithm, config)[0]
    mixed = [
        replace(b, old_logprobs=(0.9 * b.old_logprobs + 0.1 * b.rollout_logprobs).float(), advantages=b.advantages)
        for b in one.batches
    ]
    loss, denominator = algorithm.loss, algorithm.denominator(one.groups)
    if one.balance_coefficient:
        inputs = [batch.inputs for batch in mixed]
        loss = BalancedLoss.over(loss, engine, inputs, one.balance_coefficient, denominator, one.routed)
    total = engine.accumulate(mixed, loss, denominator).total()
    result = engine.step()
    numbers = {"loss": total["loss"], "norm": result.grad_norm, **result.tower_norms}
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()}


def again(build: Build, flavour: Flavour) -> dict[str, Tensor]:
    """Two engines of one seed end with equal bits."""
    first, second = (updates(build, flavour) for _ in range(2))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    return first


def run(job: dict, build: Build, folder: Path) -> dict[str, Tensor]:
    """The cases of a job, by name; each with the names of its case and flavour before those of its tensors."""
    found: dict[str, Tensor] = {}
    for case, flavour, arguments in job["cases"]:
        own = [folder / f"{case}-{flavour}" if one == "FOLDER" else one for one in arguments]
        for one in own:
            if isinstance(one, Path):
                one.mkdir()
        own = [tuple(one) if isinstance(one, list) else one for one in own]
        key = f"{case}-{flavour}-{arguments}"
        if case == "exported":
            result = exported(build, build_flavour(Flavour.tiny, 0)[1], *own)
        else:
            result = globals()[case](build, Flavour(flavour), *own)
        found |= {f"{key}/{name}": tensor for name, tensor in result.items()}
    return found
