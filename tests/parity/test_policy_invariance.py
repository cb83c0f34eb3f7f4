"""A step's gradient does not depend on how it is cut: micro-batch size, order, padding, groups split over rows.

float64. The ways differ in summation order only; 1e-6 relative is the bar, 1e-9 is what is asserted. The plain side is a
row for each completion, one micro-batch each: nothing is shared, nothing is padded.
"""

from dataclasses import replace

import pytest
import torch

from model.checkpoint import build_flavour
from model.config import Flavour
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.sail_vl2 import SailVL2
from rewards.result import RewardResult
from rlhf.algorithms.config import (
    ALGORITHM_CONFIGS,
    Correction,
    CorrectionConfig,
    KlConfig,
    KlEstimator,
    KlPlace,
    OverlongConfig,
    OverlongRule,
)
from rlhf.algorithms.entropy import EntropyConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.config import TrainerConfig
from rlhf.trajectory import Group, Trajectory
from rlhf.update import Policy, prepare
from rollouts.rollout import FinishReason, Prompt, Rollout

LIMIT, GROUP = 24, 4
WAYS = {"one micro-batch": 100_000, "several": 100, "groups split": 60, "a row for each completion": 1}


@pytest.fixture(scope="module", params=[Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
def parts(request):
    model, processor = build_flavour(request.param, seed=4)
    return model.double(), processor


def make_groups(processor, generator: torch.Generator) -> list[Group]:
    """Three prompts with one, two and no images; ragged completions, one overlong, one with a turn of a tool."""

    def ids(count: int) -> list[int]:
        return torch.randint(0, 500, (count,), generator=generator).tolist()

    def numbers(count: int, scale: float) -> list[float]:
        return (scale * torch.randn(count, generator=generator, dtype=torch.float64)).tolist()

    groups = []
    for draw, num_images in enumerate((1, 2, 0)):
        prompt_ids, images = ids(5 + 3 * draw), []
        for _ in range(num_images):
            prompt_ids += [processor.placeholder_id] * 4 + ids(1)
            images.append(torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float64))
        trajectories = []
        for index, length in enumerate((3, 17, 9, LIMIT)):
            reason = FinishReason.length if length == LIMIT else FinishReason.stop
            mask = [0 if index == 1 and 4 <= position < 8 else 1 for position in range(length)]
            logprobs = [-6.0 + x for x in numbers(length, 0.3)]
            rollout = Rollout(draw, f"p{draw}", index, prompt_ids, ids(length), mask, logprobs, ((0, 0),), reason)
            right = float((index + draw) % 2)
            reward = RewardResult(right, {"answer": right, "format": 1.0})
            ref = torch.tensor([-6.0 + x for x in numbers(length, 0.3)], dtype=torch.float64)
            trajectories.append(Trajectory(rollout, reward, right, ref_logprobs=ref))
        groups.append(Group(draw, Prompt(f"p{draw}", [], "1"), images, tuple(trajectories)))
    return groups


def gradient(
    parts, algorithm, groups: list[Group], budget: int, balance: float, skips: bool = True
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one update over `groups`, with old log-probs a little off the policy's."""
    model, processor = parts
    copy = SailVL2(model.config).double()
    copy.load_state_dict(model.state_dict())
    engine = LocalEngine(copy, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 10)
    config = TrainerConfig(mini_batch_size=96, passes=2, balance_coefficient=balance, skip_zero_advantage=skips)
    one = prepare(algorithm.assign_advantages(groups), Policy(engine, None, processor, budget), algorithm, config)[0]
    assert (len(one.batches) > 1) == (budget < 1000)
    shifted = []
    for batch in one.batches:  # off by a tenth of what the sampler's are off, so that ratios clip here and there
        assert batch.old_logprobs is not None
        shifted.append(replace(batch, old_logprobs=0.9 * batch.old_logprobs + 0.1 * batch.rollout_logprobs))
    denominator, loss = algorithm.denominator(one.groups), algorithm.loss
    if balance:
        from model.engine.balance import BalancedLoss

        loss = BalancedLoss.over(loss, engine, [b.inputs for b in shifted], balance, denominator, one.routed)
    total = engine.accumulate(shifted, loss, denominator).total()["loss"]
    return total, torch.cat([p.grad.flatten() for p in copy.parameters() if p.grad is not None])


def variants() -> dict[str, object]:
    """Every bundle, and everything that a bundle does not switch on by itself.

    Clip-Cov and KL-Cov are left out: they choose tokens by covariances over a micro-batch.
    """
    configs = {name: config() for name, config in ALGORITHM_CONFIGS.items() if not name.endswith("_cov")}
    everything = replace(
        configs["dapo"],
        dual_clip=2.0,
        entropy=EntropyConfig(0.1),
        kl=KlConfig(0.3, KlEstimator.k2, KlPlace.loss),
        correction=CorrectionConfig(Correction.token_truncate, 1.2),
        overlong=OverlongConfig(OverlongRule.mask_and_punish, 4),
    )
    sequences = replace(configs["gspo"], correction=CorrectionConfig(Correction.sequence_truncate, 1.2), clip_low=0.05)
    return {**configs, "dapo with everything": everything, "gspo with a correction": sequences}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        *((Flavour.tiny, name) for name in variants()),
        *((Flavour.tiny_moe, name) for name in ("dapo", "gspo")),
        *(
            pytest.param(Flavour.tiny_moe, name, marks=pytest.mark.nightly)
            for name in variants()
            if name not in ("dapo", "gspo")
        ),
    ],
    indirect=["parts"],
)
def test_the_cut_does_not_matter(parts, name):
    algorithm = build_algorithm(replace(variants()[name], group_size=GROUP), LIMIT)
    groups = make_groups(parts[1], torch.Generator().manual_seed(0))
    wanted_loss, wanted = gradient(parts, algorithm, groups, 100_000, 0.0)
    assert wanted.norm() > 0
    for budget in list(WAYS.values())[1:]:
        loss, found = gradient(parts, algorithm, groups, budget, 0.0)
        assert loss == pytest.approx(wanted_loss, rel=1e-9, abs=1e-12)
        assert (found - wanted).norm() <= 1e-9 * wanted.norm()
    # Another order of the groups: other neighbours in the rows, other padding in attention.
    loss, found = gradient(parts, algorithm, groups[::-1], 100, 0.0)
    assert loss == pytest.approx(wanted_loss, rel=1e-9, abs=1e-12)
    assert (found - wanted).norm() <= 1e-9 * wanted.norm()


@pytest.mark.parametrize("parts", [Flavour.tiny_moe], indirect=True, ids=["tiny_moe"])
@pytest.mark.parametrize("coefficient", [0.001, 1.0])
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_nor_with_load_balancing(parts, name, coefficient):
    """The balance term weighs a prompt token by its siblings, so a repeated prefix does not count twice."""
    algorithm = build_algorithm(replace(ALGORITHM_CONFIGS[name](), group_size=GROUP), LIMIT)
    groups = make_groups(parts[1], torch.Generator().manual_seed(1))
    without, _ = gradient(parts, algorithm, groups, 100_000, 0.0)
    wanted_loss, wanted = gradient(parts, algorithm, groups, 100_000, coefficient)
    assert wanted_loss - without > 0.5 * coefficient  # a balanced router would add the coefficient itself
    for budget, order in ((100, 1), (60, 1), (1, 1), (100, -1)):
        loss, found = gradient(parts, algorithm, groups[::order], budget, coefficient)
        assert loss == pytest.approx(wanted_loss, rel=1e-9, abs=1e-12)
        assert (found - wanted).norm() <= 1e-9 * wanted.norm()


def num_passed(parts, algorithm, groups: list[Group], skips: bool) -> int:
    """Tokens of the only update."""
    engine = LocalEngine(parts[0], EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 10)
    config, policy = (
        TrainerConfig(mini_batch_size=96, skip_zero_advantage=skips, passes=1),
        Policy(engine, None, parts[1], 100_000),
    )
    (one,) = prepare(algorithm.assign_advantages(groups), policy, algorithm, config)
    return sum(batch.inputs.num_tokens for batch in one.batches)


def equal_rewards(group: Group) -> Group:
    return group.with_trajectories([replace(t, shaped_reward=1.0) for t in group.trajectories])


@pytest.mark.parametrize(
    ("parts", "name"),
    [*((Flavour.tiny, name) for name in variants()), (Flavour.tiny_moe, "dapo"), (Flavour.tiny_moe, "gspo")],
    indirect=["parts"],
)
def test_nor_do_completions_without_an_advantage(parts, name):
    """They are left out of the passes wherever they add nothing, and nowhere else. Here: a group of equal rewards, and
    one whose first reward is its mean."""
    algorithm = build_algorithm(replace(variants()[name], group_size=GROUP), LIMIT)
    first, second, third = make_groups(parts[1], torch.Generator().manual_seed(2))
    rewards = zip(second.trajectories, (0.5, 1.0, 0.0, 0.5), strict=True)
    groups = [equal_rewards(first), second.with_trajectories([replace(t, shaped_reward=r) for t, r in rewards]), third]
    passed = [num_passed(parts, algorithm, groups, skips) for skips in (True, False)]
    has_zeros = not algorithm.needs_reference  # a KL in the reward makes every advantage another one
    assert (passed[0] < passed[1]) == (algorithm.zero_advantage_is_silent and has_zeros)
    wanted_loss, wanted = gradient(parts, algorithm, groups, 100, 0.0, skips=False)
    loss, found = gradient(parts, algorithm, groups, 100, 0.0)
    assert loss == pytest.approx(wanted_loss, rel=1e-9, abs=1e-12)
    assert (found - wanted).norm() <= 1e-9 * wanted.norm()


@pytest.mark.parametrize("silent", ["all", "those with images"])
def test_an_optimizer_goes_on_where_nothing_has_an_advantage(parts, silent):
    """Its momentum moves all weights that the completions reach, those of the vision tower too."""
    algorithm = build_algorithm(replace(ALGORITHM_CONFIGS["dapo"](), group_size=GROUP), LIMIT)
    groups = make_groups(parts[1], torch.Generator().manual_seed(3))
    quiet = [equal_rewards(g) if silent == "all" or g.images else g for g in groups]
    found = {}
    for skips in (True, False):
        model = SailVL2(parts[0].config).double()
        model.load_state_dict(parts[0].state_dict())
        engine = LocalEngine(model, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 10)
        policy = Policy(engine, None, parts[1], 100_000)
        config = TrainerConfig(mini_batch_size=96, skip_zero_advantage=skips, passes=1)
        for part in (groups, quiet):
            (one,) = prepare(algorithm.assign_advantages(part), policy, algorithm, config)
            (batch,) = one.batches
            engine.accumulate([batch], algorithm.loss, algorithm.denominator(one.groups))
            before = torch.cat([p.detach().flatten() for p in model.vision_model.parameters()])
            engine.step()
        after = torch.cat([p.detach().flatten() for p in model.vision_model.parameters()])
        assert (after - before).norm() > 0
        found[skips] = after, batch.inputs.num_tokens, torch.cat([p.detach().flatten() for p in model.parameters()])
    assert found[True][1] < found[False][1]
    assert torch.allclose(found[True][2], found[False][2], rtol=0, atol=1e-12)
