"""NaN and infinity put into an update at every place they can come from: weights and optimizer do not change by a bit,
the prompts are named, and the run ends after k updates in a row."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model.checkpoint import build_flavour
from model.config import Flavour
from model.engine.base import NonFiniteError
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.run.config import RunConfig
from model.run.folder import RunFolder
from rewards.result import RewardResult
from rlhf.algorithms.config import Correction, CorrectionConfig, DapoConfig, KlConfig
from rlhf.algorithms.entropy import EntropyConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.config import TrainerConfig
from rlhf.rewarding import SamplerTooSlow, name_failures
from rlhf.trajectory import Group, PolicyBatch, Trajectory
from rlhf.update import Policy, Update, prepare, update, with_reference
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import FinishReason, Prompt, Rollout, RolloutRequest, generate
from rollouts.weights.sync import fill_worker

NAN, INF = float("nan"), float("inf")
GROUP = 4
ALGORITHM = build_algorithm(
    DapoConfig(
        group_size=GROUP,
        kl=KlConfig(0.1),
        entropy=EntropyConfig(0.01),
        correction=CorrectionConfig(Correction.token_truncate),
    ),
    8,
)


class Bench:
    """A policy after one good update, and groups `good` and `bad` of which the second is spoilt."""

    def __init__(self, folder, max_skipped: int = 3) -> None:
        model, self.processor = build_flavour(Flavour.tiny_moe, seed=1)
        settings = EngineConfig(num_threads=1, max_skipped_updates=max_skipped)
        self.engine = LocalEngine(model, settings, OptimizerConfig(learning_rate=1e-3), 100)
        self.policy = Policy(self.engine, self.engine.frozen(), self.processor, 60)
        self.run = RunFolder(RunConfig(dir=str(folder)), "a: 1\n")
        self.run.restore(self.engine)
        self.groups = [self.group("good", 0), self.group("bad", 1)]
        assert self.apply(self.updates(self.groups)).applied

    def group(self, name: str, draw: int) -> Group:
        generator = torch.Generator().manual_seed(draw)
        prompt_ids = [5, 6, *[self.processor.placeholder_id] * 4, 7]
        trajectories = []
        for index in range(GROUP):
            ids = torch.randint(0, 500, (6,), generator=generator).tolist()
            rollout = Rollout(draw, name, index, prompt_ids, ids, [1] * 6, [-6.0] * 6, ((0, 0),), FinishReason.stop)
            right = float(index % 2)
            trajectories.append(Trajectory(rollout, RewardResult(right, {"answer": right}), right))
        pixels = torch.randn(1, 3, 32, 32, generator=generator)
        return Group(draw, Prompt(name, [], "1"), [pixels], tuple(trajectories))

    def updates(self, groups: list[Group]) -> Update:
        config = TrainerConfig(mini_batch_size=2 * GROUP, passes=2, balance_coefficient=0.01)
        groups = ALGORITHM.assign_advantages(with_reference(groups, self.policy))
        return prepare(groups, self.policy, ALGORITHM, config)[0]

    def apply(self, one: Update):
        return update(one, self.policy, ALGORITHM, 7, 0, self.run).result

    def state(self) -> bytes:
        """Of weights and moments."""
        tensors = [*self.engine.model.named_parameters(), *self.engine._optimizer.state()]
        return b"".join(tensor.detach().numpy().tobytes() for _, tensor in tensors)

    def last_skipped(self) -> dict:
        return json.loads((self.run.folder / "skipped.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    torch.set_num_threads(1)
    return Bench(tmp_path_factory.mktemp("run"), max_skipped=1000)


def spoil_batches(one: Update, change: Callable[[PolicyBatch], PolicyBatch]) -> Update:
    return replace(one, batches=[change(b) if "bad" in b.prompt_ids else b for b in one.batches])


def poke(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one entry replaced."""
    copy = tensor.clone()
    copy.view(-1)[0] = value
    return copy


def in_batch(field: str, value: float) -> Callable[[Bench], Update]:
    def build(bench: Bench) -> Update:
        return spoil_batches(
            bench.updates(bench.groups), lambda b: replace(b, **{field: poke(getattr(b, field), value)})
        )

    return build


def in_pixels(value: float) -> Callable[[Bench], Update]:
    def build(bench: Bench) -> Update:
        def change(batch: PolicyBatch) -> PolicyBatch:
            pixels = tuple(poke(tiles, value) for tiles in batch.inputs.pixels)
            return replace(batch, inputs=replace(batch.inputs, pixels=pixels))

        return spoil_batches(bench.updates(bench.groups), change)

    return build


def in_reward(value: float, where: int = 0) -> Callable[[Bench], Update]:
    def build(bench: Bench) -> Update:
        good, bad = bench.groups
        trajectories = [replace(t, shaped_reward=value) if i == where else t for i, t in enumerate(bad.trajectories)]
        return bench.updates([good, bad.with_trajectories(trajectories)])

    return build


LOSS_SITES = {
    "pixels": in_pixels(NAN),
    "pixels, infinite": in_pixels(INF),
    "reward": in_reward(NAN),
    "a later reward": in_reward(NAN, 2),
    "reward, infinite": in_reward(-INF),
    "advantage": in_batch("advantages", NAN),
    "sampler's log-probs": in_batch("rollout_logprobs", NAN),
    "old log-probs": in_batch("old_logprobs", NAN),
    "reference's log-probs": in_batch("ref_logprobs", NAN),
    "token weights": in_batch("token_weights", INF),
}


@pytest.mark.parametrize("site", LOSS_SITES)
def test_a_loss_that_is_not_finite_changes_nothing_and_names_its_prompt(bench, capsys, site):
    before = bench.state()
    one = LOSS_SITES[site](bench)
    assert len(one.batches) > 1
    assert not bench.apply(one).applied
    assert bench.state() == before
    assert bench.last_skipped() == {"step": 7, "update": 0, "what": "loss", "prompts": ["bad"]}
    assert "step 7: update 0 skipped, loss not finite; prompts: bad" in capsys.readouterr().err
    assert bench.apply(bench.updates(bench.groups)).applied and bench.state() != before


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "parameter",
    [
        "vision_model.trunk.blocks.0.attn.qkv.weight",
        "mlp1.1.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.layers.0.mlp.experts.gate_up_proj",
    ],
)
def test_a_gradient_that_is_not_finite_changes_nothing(bench, parameter, value):
    """The loss is finite; the backward pass alone goes wrong, in each tower."""
    before = bench.state()
    weight = bench.engine.model.get_parameter(parameter)
    hook = weight.register_hook(lambda gradient: poke(gradient, value))
    assert not bench.apply(bench.updates(bench.groups)).applied
    hook.remove()
    assert bench.state() == before
    assert bench.last_skipped() == {"step": 7, "update": 0, "what": "gradient", "prompts": ["bad", "good"]}


@pytest.mark.parametrize("module", ["vision_model", "mlp1", "language_model.model.norm"])
def test_activations_and_logits(bench, module):
    """A module puts out a NaN: what it feeds has a loss that is not finite."""
    before = bench.state()
    one = bench.updates(bench.groups)

    def spoil(_module, _inputs, output):
        return [one * NAN for one in output] if isinstance(output, list) else output * NAN

    hook = bench.engine.model.get_submodule(module).register_forward_hook(spoil)
    assert not bench.apply(one).applied
    hook.remove()
    assert bench.state() == before and bench.last_skipped()["prompts"] == ["bad", "good"]


def test_k_in_a_row_end_the_run(tmp_path):
    bench = Bench(tmp_path, max_skipped=2)
    before = bench.state()
    assert not bench.apply(in_pixels(NAN)(bench)).applied
    with pytest.raises(NonFiniteError, match=r"step 7: .* 2 updates in a row .*prompts of the last one: bad") as end:
        bench.apply(in_pixels(NAN)(bench))
    assert end.value.exit_code == 4 and bench.state() == before
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2


def test_pixels_that_are_not_finite_are_refused_before_the_model_with_their_prompt(bench):
    good, bad = bench.groups
    with pytest.raises(ValueError, match=r"prompts \['bad'\]: pixels: expected finite numbers"):
        bench.updates([good, replace(bad, images=[poke(bad.images[0], NAN)])])


def test_a_sampler_that_meets_nan_gives_errors_and_never_a_reward(tiny, monkeypatch):
    """The visual tokens of one prompt are spoilt: its completions end as errors, its neighbour's are what they were."""
    model, processor = tiny
    worker = fill_worker(EmbeddedWorker(model, processor, RolloutConfig(max_completion_tokens=6), 0), model)
    ids = [5, 6, *[processor.placeholder_id] * 4, 7]
    short = [5, 6, processor.placeholder_id, 7]
    requests = [
        RolloutRequest(draw, name, ids, short, [torch.zeros(1, 3, 32, 32)], 4) for draw, name in enumerate("ab")
    ]
    healthy = generate(worker, requests)
    model = worker._decoder.model
    visual_tokens = model.visual_tokens
    monkeypatch.setattr(model, "visual_tokens", lambda pixels: [poke(visual_tokens(pixels)[0], NAN)])
    spoilt = generate(worker, requests)
    assert {r.finish_reason for r in spoilt[0]} == {FinishReason.error}
    assert spoilt[1] == healthy[1]


def test_one_prompt_that_the_sampler_cannot_do_never_ends_a_run_but_several_in_a_row_do(tiny, monkeypatch, capsys):
    worker = fill_worker(EmbeddedWorker(*tiny, RolloutConfig(max_completion_tokens=2), 0), tiny[0])
    good, bad = generate(worker, [RolloutRequest(draw, name, [5], [5], [], 2) for draw, name in enumerate("ab")])
    bad = [replace(rollout, finish_reason=FinishReason.error) for rollout in bad]
    assert name_failures([good, bad]) == 0
    assert name_failures([bad]) == 1  # a round that draws a single prompt
    assert capsys.readouterr().err.count("numbers were not finite for prompts b; these completions are") == 2
    assert name_failures([good], num_before=1) == 0
    with pytest.raises(NonFiniteError, match=r"prompts b, which is all that was sampled of several prompts"):
        name_failures([bad], num_before=1)
    late = [replace(rollout, finish_reason=FinishReason.deadline) for rollout in good]
    assert name_failures([late, bad[:1] + good[:1]]) == 0 and name_failures([late]) == 1
    with pytest.raises(SamplerTooSlow, match=r"prompts a, which is all that was sampled of several prompts"):
        name_failures([late, late])
