"""Groups, filters, weights, denominators, packing, and the first ratio."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.engine.base import LossSums, StepResult
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.interface import Mode
from model.logprobs import TokenScores
from rewards.result import RewardResult, Status
from rlhf.algorithms.config import (
    ALGORITHM_CONFIGS,
    AdvantageScale,
    AlgorithmConfig,
    Baseline,
    CispoConfig,
    Correction,
    CorrectionConfig,
    CovarianceConfig,
    CustomConfig,
    DapoConfig,
    GateConfig,
    GmpoConfig,
    GroupFilter,
    GrpoConfig,
    KlConfig,
    KlCovConfig,
    KlEstimator,
    KlPlace,
    LossNormalisation,
    OverlongConfig,
    OverlongRule,
    RatioLevel,
    ReinforcePpConfig,
    RlooConfig,
    SapoConfig,
)
from rlhf.algorithms.entropy import EntropyConfig
from rlhf.algorithms.filters import with_advantage
from rlhf.algorithms.registry import build_algorithm
from rlhf.config import TrainerConfig
from rlhf.metrics import LossTotals
from rlhf.prompts import PromptSet
from rlhf.trajectory import Group, Packing, PolicyBatch, Trajectory
from rlhf.update import Policy, UpdateResult, prepare, with_reference
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import FinishReason, Prompt, Rollout, generate
from rollouts.weights.sync import fill_worker

LIMIT = 40


def result(answer: float | None, form: float = 1.0) -> RewardResult:
    if answer is None:
        return RewardResult(None, {}, Status.unscorable, "test")
    return RewardResult(0.9 * answer + 0.1 * form, {"answer": answer, "format": form})


def make_group(
    results: list[RewardResult], lengths: list[int] | None = None, overlong=frozenset(), shape=None
) -> Group:
    trajectories = []
    for i, (reward, n) in enumerate(zip(results, lengths or [3] * len(results), strict=True)):
        reason = FinishReason.length if i in overlong else FinishReason.stop
        rollout = Rollout(0, "p", i, [1, 2, 3], [4] * n, [1] * n, [-1.0] * n, ((0, 0),), reason)
        trajectories.append(Trajectory(rollout, reward, shape(reward, rollout) if shape else reward.value or 0.0))
    return Group(0, Prompt("p", [], "1"), (), tuple(trajectories))


DAPO = build_algorithm(DapoConfig(), LIMIT)
GRPO = build_algorithm(GrpoConfig(), LIMIT)


def test_paper_defaults():
    """What tells the bundles apart, from their papers (see the docstrings of the configs)."""

    def settings(name: str) -> tuple:
        c = ALGORITHM_CONFIGS[name]()
        return (
            *(c.clip_low, c.clip_high, c.ratio_level, c.baseline, c.advantage_scale, c.normalisation),
            *(c.group_filter, c.kl.coefficient, c.kl.place, c.overlong.rule),
        )

    token, group, std = RatioLevel.token, Baseline.group_mean, AdvantageScale.group_std
    sequences, tokens = LossNormalisation.sequences, LossNormalisation.tokens
    every, spread = GroupFilter.none, GroupFilter.correctness_spread
    loss, keep, punish = KlPlace.loss, OverlongRule.keep, OverlongRule.punish
    assert settings("grpo") == (0.2, 0.2, token, group, std, sequences, every, 0.04, loss, keep)
    constant = LossNormalisation.constant
    assert settings("dr_grpo") == (0.2, 0.2, token, group, AdvantageScale.none, constant, every, 0.0, loss, keep)
    assert settings("dapo") == (0.2, 0.28, token, group, std, tokens, spread, 0.0, loss, punish)
    assert settings("gspo") == (3e-4, 4e-4, RatioLevel.sequence, group, std, sequences, every, 0.0, loss, keep)
    assert settings("cispo") == (1.0, 4.0, token, group, std, tokens, spread, 0.0, loss, punish)
    whole, others, reward = RatioLevel.whole_sequence, Baseline.leave_one_out, KlPlace.reward
    assert settings("rloo") == (0.2, 0.2, whole, others, AdvantageScale.none, sequences, every, 0.05, reward, keep)
    step, deviation = Baseline.batch_mean, AdvantageScale.batch_std
    assert settings("reinforce_pp") == (0.2, 0.2, token, step, deviation, tokens, every, 0.01, reward, keep)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {
                "ratio_level": RatioLevel.sequence,
                "normalisation": LossNormalisation.sequences,
                "correction": CorrectionConfig(Correction.token_mask),
            },
            r"algorithm\.correction\.rule: token_mask weighs tokens.*sequence_mask or none",
        ),
        ({"ratio_level": RatioLevel.sequence}, r"algorithm\.normalisation: expected sequences"),
        ({"kl": KlConfig(0.0, KlEstimator.k1, KlPlace.reward)}, r"algorithm\.kl\.place: reward asks for a reference"),
        ({"group_size": 1}, r"algorithm\.group_size: expected at least 2 with algorithm\.advantage_scale=group_std"),
        (
            {"group_size": 1, "advantage_scale": AdvantageScale.none},
            r"expected at least 2 with algorithm\.baseline=group_mean",
        ),
        ({"dual_clip": 1.1}, r"algorithm\.dual_clip: expected 0 \(off\) or more than 1 \+ algorithm\.clip_high"),
        ({"clip_low": 1.5}, r"0 < clip_low <= 1"),
    ],
)
def test_contradictions_are_refused_with_field_and_mend(settings, message):
    with pytest.raises(ValueError, match=message):
        AlgorithmConfig(**settings)


def test_dual_clip_is_refused_where_it_would_do_nothing():
    with pytest.raises(ValueError, match=r"algorithm\.dual_clip: expected 0 with algorithm=cispo, found 9.*clip_high"):
        CispoConfig(dual_clip=9.0)


@pytest.mark.parametrize(("name", "expected"), [("cispo", (2.0, 2.0)), ("dapo", (1.0, 1.0))])
def test_clipped_tokens_are_counted_as_the_objective_clips(name, expected):
    """Ratios 10, 10, 0.1, 0.1: PPO's minimum lets the bound decide for one sign of the advantage only."""
    algorithm = build_algorithm(ALGORITHM_CONFIGS[name](clip_low=0.5), 8)
    policy = torch.tensor([10.0, 10.0, 0.1, 0.1]).log()
    batch = PolicyBatch(
        inputs=None,  # pyright: ignore
        loss_mask=torch.ones(4, dtype=torch.bool),
        advantages=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        rollout_logprobs=torch.zeros(4),
        old_logprobs=torch.zeros(4),
        ref_logprobs=None,
        sequence=torch.zeros(4, dtype=torch.long),
        token_weights=torch.ones(4),
    )
    _, metrics = algorithm.loss(TokenScores(policy, torch.zeros(4)), batch)
    assert (metrics["clipped_low"], metrics["clipped_high"]) == expected


def test_correctness_spread_ignores_format():
    only_format = make_group([result(0, 1), result(0, 0), result(0, 1)])
    assert DAPO.drop_reason(only_format) == "all_wrong"
    assert DAPO.drop_reason(make_group([result(1, 1), result(1, 0)])) == "all_right"
    assert DAPO.drop_reason(make_group([result(1), result(0)])) == ""
    by_reward = build_algorithm(DapoConfig(group_filter=GroupFilter.reward_spread), LIMIT)
    assert by_reward.drop_reason(only_format) == ""
    assert by_reward.drop_reason(make_group([result(0), result(0)])) == "equal_rewards"
    assert GRPO.drop_reason(only_format) == ""


def test_unscorable_trajectories_enter_neither_mean_nor_loss():
    group = make_group([result(1), result(None), result(0), result(None)])
    assert DAPO.drop_reason(group) == ""
    (assigned,) = DAPO.assign_advantages([group])
    assert [t.rollout.sample_index for t in assigned.trajectories] == [0, 2]
    assert [t.advantage for t in assigned.trajectories] == pytest.approx([1, -1], rel=1e-5)
    assert DAPO.denominator([assigned]) == 6.0
    for algorithm in (DAPO, GRPO):
        assert algorithm.drop_reason(make_group([result(1), result(None), result(None)])) == "unscorable"
        assert algorithm.drop_reason(make_group([result(None)] * 4)) == "unscorable"


def test_denominator_counts_tokens_or_sequences():
    groups = [make_group([result(1), result(0)], [5, 2]), make_group([result(1), result(0), result(0)], [1, 1, 9])]
    assert DAPO.denominator(groups) == 18.0
    assert GRPO.denominator(groups) == 5.0
    assert build_algorithm(ALGORITHM_CONFIGS["dr_grpo"](), LIMIT).denominator(groups) == 5.0 * LIMIT


def test_token_weights_of_both_normalisations():
    (group,) = GRPO.assign_advantages([make_group([result(1), result(0)], [4, 2])])
    (by_sequence,) = Packing(1000, 519, 4).pack([group], GRPO.mean_per_sequence)
    assert by_sequence.token_weights.tolist() == [0.25] * 4 + [0.5] * 2
    (by_token,) = Packing(1000, 519, 4).pack([group], DAPO.mean_per_sequence)
    assert by_token.token_weights.tolist() == [1.0] * 6
    assert by_token.sequence.tolist() == [0] * 4 + [1] * 2
    assert by_token.advantages.tolist() == pytest.approx([1.0] * 4 + [-1.0] * 2, rel=1e-5)


def test_a_group_over_the_budget_repeats_its_prefix():
    (group,) = DAPO.assign_advantages([make_group([result(i % 2) for i in range(4)], [5, 5, 5, 5])])
    batches = Packing(14, 519, 4).pack([group], False)
    assert [b.inputs.num_tokens for b in batches] == [13, 13]
    assert sum(b.loss_mask.sum().item() for b in batches) == 20
    assert Packing(23, 519, 4).pack([group], False)[0].inputs.num_tokens == 23


def test_soft_overlong_punishment_spares_a_turn_that_ended():
    def shaped(length: int, reason: FinishReason) -> float:
        rollout = Rollout(0, "p", 0, [1], [1] * length, [1] * length, [0.0] * length, ((0, 0),), reason)
        return DAPO.shape_reward(result(1), rollout)

    assert shaped(LIMIT - 8, FinishReason.stop) == pytest.approx(1.0)
    assert shaped(LIMIT - 4, FinishReason.stop) == pytest.approx(0.5)
    assert shaped(LIMIT, FinishReason.length) == pytest.approx(0.0)
    assert shaped(LIMIT, FinishReason.stop) == pytest.approx(1 - 7 / 8)


@pytest.mark.parametrize("rule", list(OverlongRule))
def test_overlong_completions_are_kept_masked_or_punished(rule):
    """Answers 1, 0 and an overlong 1. Masked ones still count in the baseline, not in loss or denominator."""
    algorithm = build_algorithm(DapoConfig(overlong=OverlongConfig(rule, 8, 0.5)), LIMIT)
    group = make_group([result(1), result(0), result(1)], [3, 3, LIMIT], overlong={2}, shape=algorithm.shape_reward)
    assert [t.shaped_reward for t in group.trajectories] == pytest.approx(
        [1.0, 0.1, 0.5 if algorithm.config.overlong.punishes else 1.0]
    )
    (assigned,) = algorithm.assign_advantages([group])
    assert len(assigned.trajectories) == (2 if algorithm.config.overlong.masks else 3)
    assert algorithm.denominator([assigned]) == (6 if algorithm.config.overlong.masks else 46)
    mean = (1.1 + group.trajectories[2].shaped_reward) / 3
    assert (assigned.trajectories[0].advantage > 0) == (mean < 1.0)
    everything = make_group([result(1), result(0)], [LIMIT, LIMIT], overlong={0, 1})
    assert algorithm.drop_reason(everything) == ("overlong" if algorithm.config.overlong.masks else "")


def test_kl_in_the_reward_of_whole_completions_by_hand():
    """RLOO: rewards 1 - 0.5 * 0.6 and 0 - 0.5 * (-0.2); each one's baseline is the other."""
    algorithm = build_algorithm(RlooConfig(kl=KlConfig(0.5, KlEstimator.k1, KlPlace.reward)), LIMIT)
    group = with_ref(make_group([result(1, 1), result(0, 0)], [3, 2]), [[-1.2, -1.2, -1.2], [-0.9, -0.9]])
    (assigned,) = algorithm.assign_advantages([group])
    assert [t.advantage for t in assigned.trajectories] == pytest.approx([0.6, -0.6], abs=1e-6)


def test_kl_to_go_of_tokens_by_hand():
    """REINFORCE++: rewards 1 and 0, k1 of 0.2 a token in the first completion: tokens 1 - 0.5 * (0.6, 0.4, 0.2) and 0, 0;
    their mean is 0.48, and all five are divided by their own deviation."""
    algorithm = build_algorithm(ReinforcePpConfig(kl=KlConfig(0.5, KlEstimator.k1, KlPlace.reward)), LIMIT)
    group = with_ref(make_group([result(1, 1), result(0, 0)], [3, 2]), [[-1.2] * 3, [-1.0] * 2])
    (assigned,) = algorithm.assign_advantages([group])
    raw = [0.7, 0.8, 0.9, 0.0, 0.0]
    centred = [value - 0.48 for value in raw]
    deviation = (sum(c * c for c in centred) / 5) ** 0.5
    found = [a for t in assigned.trajectories for a in t.token_advantages or ()]
    assert found == pytest.approx([c / deviation for c in centred], rel=1e-5)
    (batch,) = Packing(1000, 519, 4).pack([assigned], False)
    assert batch.advantages.tolist() == pytest.approx(found, rel=1e-6)


def with_ref(group: Group, logprobs: list[list[float]]) -> Group:
    """The group, whose rollout log-probs are all -1, with reference log-probs."""
    return group.with_trajectories(
        [
            replace(t, ref_logprobs=torch.tensor(values, dtype=torch.float64))
            for t, values in zip(group.trajectories, logprobs, strict=True)
        ]
    )


def test_only_completions_that_add_nothing_are_silent():
    silent = {
        name for name, config in ALGORITHM_CONFIGS.items() if build_algorithm(config(), 8).zero_advantage_is_silent
    }
    expected = {"dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "sapo", "gmpo"}
    assert silent == expected  # grpo has a KL in its loss; clip_cov and kl_cov choose tokens among all
    assert not build_algorithm(DapoConfig(entropy=EntropyConfig(0.01)), 8).zero_advantage_is_silent
    group = make_group([result(1), result(0), result(1)])
    values = [{"advantage": 0.0}, {"advantage": float("nan")}, {"token_advantages": [0.0, 0.0]}]
    group = group.with_trajectories([replace(t, **v) for t, v in zip(group.trajectories, values, strict=True)])
    assert [t.has_advantage for t in group.trajectories] == [False, True, False]
    assert with_advantage([group]) == [group.with_trajectories(group.trajectories[1:2])]


def test_the_share_of_tokens_without_an_advantage_is_shown():
    group = make_group([result(1), result(0), result(1), result(1)])
    lengths = [t.num_trained_tokens for t in group.trajectories]
    values = zip(group.trajectories, (0.0, 1.5, 0.0, -1.0), strict=True)
    group = group.with_trajectories([replace(t, advantage=value) for t, value in values])
    names = [
        "tokens",
        "loss",
        "entropy",
        "clipped_low",
        "clipped_high",
        "old_kl",
        "sampler_kl",
        "ratio_min",
        "ratio_max",
        "sampler_gap",
    ]
    sums = dict.fromkeys([*names, "sampler_gap_max", "correction"], 1.0)
    totals = LossTotals()
    totals.add_update(UpdateResult(StepResult(1e-3, 1.0, True), LossSums((sums,)), [group]))
    assert totals.metrics()["zero_advantage_share"] == pytest.approx((lengths[0] + lengths[2]) / sum(lengths))


def test_unknown_algorithm_names_the_known():
    with pytest.raises(ValueError, match=r"expected one of \['cispo', 'clip_cov', 'dapo', 'dr_grpo'.*found 'ppo'"):
        build_algorithm(AlgorithmConfig(name="ppo"), LIMIT)


class TestCustom:
    """An algorithm in one file."""

    SOURCE = """
from rlhf.algorithms.algorithm import Algorithm

class Plain(Algorithm):
    def objective(self, log_ratio, policy_logprobs, advantages):
        return self.config.settings["factor"] * policy_logprobs * advantages
"""

    def build(self, folder: Path, source: str, name: str = "Plain"):
        path = folder / "mine.py"
        path.write_text(source)
        return build_algorithm(CustomConfig(name=f"{path}:{name}", settings={"factor": 2.0}), LIMIT)

    def test_its_objective_is_used(self, tmp_path):
        algorithm = self.build(tmp_path, self.SOURCE)
        objective = algorithm.objective(torch.zeros(2), torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 1.0]))
        assert objective.tolist() == [-6.0, -4.0]
        assert algorithm.denominator([make_group([result(1), result(0)])]) == 6.0

    @pytest.mark.parametrize(("end", "found"), [(".mean()", r"\[\]"), ("[:1]", r"\[1\]")])
    def test_an_objective_of_another_shape_is_refused(self, tmp_path, end, found):
        source = self.SOURCE.replace("policy_logprobs * advantages", f"(policy_logprobs * advantages){end}")
        algorithm = self.build(tmp_path, source)
        (batch,) = Packing(1000, 519, 4).pack([make_group([result(1), result(0)], [3, 2])], False)
        scores = TokenScores(torch.zeros(5), torch.zeros(5))
        with pytest.raises(ValueError, match=rf"objective: expected \[N\] = \[5\], .* found {found}; mend Plain"):
            algorithm.loss(scores, batch)

    def test_an_objective_of_its_own_says_itself_that_advantages_scale_it(self, tmp_path):
        """Until then, completions without an advantage are not left out."""
        silent = "    advantage_scales_objective = True\n"
        assert not self.build(tmp_path, self.SOURCE).zero_advantage_is_silent
        assert self.build(tmp_path, self.SOURCE + silent).zero_advantage_is_silent
        plain = self.SOURCE[: self.SOURCE.index("    def")] + "    pass\n"
        assert self.build(tmp_path, plain).zero_advantage_is_silent
        mixed = self.SOURCE.replace("(Algorithm)", "") + "\nclass Mixed(Plain, Algorithm):\n    pass\n"
        assert not self.build(tmp_path, mixed, "Mixed").zero_advantage_is_silent

    @pytest.mark.parametrize(
        ("source", "name", "message"),
        [
            ("import nothing_like_it", "Plain", "does not load: ModuleNotFoundError"),
            ("x = 1", "Plain", "expected Plain in .* to be a subclass of Algorithm, found None"),
            ("x = 1", "x", "found 1"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, source, name, message):
        with pytest.raises(ValueError, match=message):
            self.build(tmp_path, source, name)

    def test_a_missing_file_and_a_missing_class_are_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"expected a file at .*none\.py, found none"):
            build_algorithm(CustomConfig(name=f"{tmp_path}/none.py:X"), LIMIT)
        with pytest.raises(ValueError, match=r"algorithm\.name: expected the file and class"):
            CustomConfig(name="mine.py")


@pytest.fixture(scope="module")
def sampled(tiny, digits_folder: Path) -> list[Group]:
    """Four real groups of six with alternating made-up rewards."""
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, RolloutConfig())
    worker = fill_worker(EmbeddedWorker(*tiny, RolloutConfig(max_completion_tokens=10), 0), tiny[0])
    tasks = [prompts.build(i) for i in range(4)]
    groups = []
    for task, rollouts in zip(tasks, generate(worker, [t.request(d, 6) for d, t in enumerate(tasks)]), strict=True):
        rewards = [result(float(i % 2)) for i in range(6)]
        trajectories = tuple(Trajectory(r, w, w.value or 0.0) for r, w in zip(rollouts, rewards, strict=True))
        groups.append(Group(0, task.prompt, task.images, trajectories))
    return DAPO.assign_advantages(groups)


def make_policy(tiny, budget: int, reference: bool = False) -> Policy:
    from model.sail_vl2 import SailVL2

    model = SailVL2(tiny[0].config)
    model.load_state_dict(tiny[0].state_dict())
    engine = LocalEngine(
        model, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 10, 1.0, tiny[1].barred_ids
    )
    return Policy(engine, engine.frozen() if reference else None, tiny[1], budget)


@pytest.mark.parametrize(("passes", "mini_batch_size"), [(1, 24), (2, 12)])
def test_first_ratio_is_exactly_one(tiny, sampled, passes, mini_batch_size):
    """Also with stored old log-probs: they come from the same arithmetic on the same micro-batches."""
    policy = make_policy(tiny, 200)
    config = TrainerConfig(mini_batch_size=mini_batch_size, passes=passes)
    algorithm = build_algorithm(DapoConfig(group_size=6), LIMIT)
    updates = prepare(sampled, policy, algorithm, config)
    assert len(updates) == passes * 24 // mini_batch_size
    mini_batch, batches = updates[0].groups, updates[0].batches
    assert (batches[0].old_logprobs is None) == (passes == 1)
    for batch in batches:
        metrics = policy.engine.accumulate([batch], algorithm.loss, algorithm.denominator(mini_batch)).total()
        assert metrics["ratio_min"] == metrics["ratio_max"] == 1.0
    policy.engine.step()
    metrics = policy.engine.accumulate([updates[-1].batches[0]], algorithm.loss, 1.0).total()
    assert (metrics["ratio_max"] != 1.0) == (passes > 1)


def test_kl_to_the_reference_starts_at_zero_and_then_pulls_back(tiny, sampled):
    policy = make_policy(tiny, 5000, reference=True)
    algorithm = build_algorithm(GrpoConfig(group_size=6), LIMIT)
    groups = with_reference(sampled, policy)
    (update,) = prepare(groups, policy, algorithm, TrainerConfig(mini_batch_size=96, passes=1))
    batch = update.batches[0]
    metrics = policy.engine.accumulate([batch], algorithm.loss, 24.0).total()
    assert abs(metrics["ref_kl"]) < 1e-6  # computed on other micro-batches: last bits differ
    policy.engine.step()
    moved = policy.engine.accumulate([batch], algorithm.loss, 24.0).total()
    assert moved["ref_kl"] > 0.0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((0.0, 0.5, 0.9, 0.0), ""), ((0.5, 0.6), ""), ((0.5, 1.0), ""), ((-1.0, 1.0), ""), ((1.0, 1.0), "all_right"),
        ((0.0, 0.0), "all_wrong"), ((-1.0, -1.0), "all_wrong"), ((0.5, 0.5), "equal_answers"),
    ],
)  # fmt: skip
def test_answers_that_a_verifier_grades_differently_have_spread(values, reason):
    assert DAPO.drop_reason(make_group([result(value) for value in values])) == reason


def by_covariance(config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(objective, its gradient by log ratio) of four tokens of which the first goes together with its advantage most."""
    algorithm = build_algorithm(config, LIMIT)
    mask = torch.ones(4, dtype=torch.bool)
    batch = PolicyBatch.__new__(PolicyBatch)
    for name, value in {
        "loss_mask": mask,
        "advantages": torch.tensor([3.0, 1.0, -1.0, -3.0], dtype=torch.float64),
        "rollout_logprobs": torch.zeros(4),
        "sequence": torch.zeros(4, dtype=torch.long),
    }.items():
        object.__setattr__(batch, name, value)
    logs = torch.full((4,), 0.1, dtype=torch.float64, requires_grad=True)
    policy = torch.tensor([-0.1, -2.0, -2.0, -2.0], dtype=torch.float64)
    objective = algorithm.token_objective(logs, policy, batch)
    (gradient,) = torch.autograd.grad(objective.sum(), logs)
    return objective, gradient


def test_clip_cov_takes_the_gradient_of_the_chosen_tokens_alone():
    _, gradient = by_covariance(ALGORITHM_CONFIGS["clip_cov"]())  # covariances 4.3, -0.5, 0.5, 1.4
    ratio = float(torch.tensor(0.1, dtype=torch.float64).exp())
    plain = [3 * ratio, ratio, -ratio, -3 * ratio]
    changed = [place for place in range(4) if gradient[place].item() != pytest.approx(plain[place])]
    assert len(changed) == 1 and changed[0] in (0, 3) and gradient[changed[0]] == 0
    assert by_covariance(ALGORITHM_CONFIGS["clip_cov"]())[1].tolist() == gradient.tolist(), "drawn again alike"


def test_clip_cov_chooses_no_token_whose_ratio_is_clipped_already():
    """Covariances are 4.3, -0.5, 0.5, 1.4; the ratio of all, 1.105, is past the bound where the advantage is above 0."""
    _, gradient = by_covariance(ALGORITHM_CONFIGS["clip_cov"](clip_high=0.1))
    ratio = float(torch.tensor(0.1, dtype=torch.float64).exp())
    assert gradient.tolist() == pytest.approx([0.0, 0.0, -ratio, 0.0])


def test_kl_cov_holds_the_chosen_token_near_the_old_policy():
    objective, gradient = by_covariance(KlCovConfig(covariance=CovarianceConfig(strength=2.0)))
    ratio = float(torch.tensor(0.1, dtype=torch.float64).exp())
    assert objective.tolist() == pytest.approx([3 * ratio - 0.2, ratio, -ratio, -3 * ratio])
    assert gradient.tolist() == pytest.approx([3 * ratio - 2.0, ratio, -ratio, -3 * ratio])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GateConfig(negative=0.0), "algorithm.gate.negative: expected a number above 0"),
        (lambda: SapoConfig(dual_clip=3.0), "algorithm.dual_clip: expected 0 with algorithm=sapo"),
        (
            lambda: GmpoConfig(normalisation=LossNormalisation.tokens),
            "expected token and sequences with algorithm=gmpo",
        ),
        (lambda: CovarianceConfig(share=0.0), "algorithm.covariance.share: expected above 0 and at most 1"),
        (lambda: CovarianceConfig(most=0.5), "expected the first to be less"),
        (lambda: CovarianceConfig(strength=-1.0), "algorithm.covariance.strength: expected 0 or more"),
        (
            lambda: KlCovConfig(ratio_level=RatioLevel.sequence, normalisation=LossNormalisation.sequences),
            "algorithm.ratio_level: expected token with algorithm=kl_cov",
        ),
    ],
)
def test_settings_of_the_newer_algorithms_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
