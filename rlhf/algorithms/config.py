"""Settings of algorithms. Each named bundle is a subclass whose defaults are its paper's; what a paper leaves open is
marked as ours.
"""

from dataclasses import dataclass, field
from enum import Enum

from model.json_values import member
from rlhf.algorithms.entropy import EntropyConfig


class Baseline(Enum):
    """The value taken from a reward: the mean of its group, of its siblings without itself, of the step, or nothing."""

    group_mean = "group_mean"
    leave_one_out = "leave_one_out"
    batch_mean = "batch_mean"
    none = "none"


class AdvantageScale(Enum):
    """The divisor of a reward's distance from its baseline: its group's standard deviation, the step's, nothing."""

    group_std = "group_std"
    batch_std = "batch_std"
    none = "none"


class LossNormalisation(Enum):
    """`tokens`: every trained token of the update weighs the same; `sequences`: every trajectory does; `constant`:
    tokens weigh the same, and the sum is divided by trajectories x max_completion_tokens, whatever was sampled.
    """

    tokens = "tokens"
    sequences = "sequences"
    constant = "constant"


class GroupFilter(Enum):
    """Which groups train: all, those with right and wrong answers, or those with different total rewards."""

    none = "none"
    correctness_spread = "correctness_spread"
    reward_spread = "reward_spread"


class RatioLevel(Enum):
    """The probability that the ratio compares: each `token`'s, the `sequence`'s as a mean per token (GSPO), or the
    product over the `whole_sequence` (RLOO).
    """

    token = "token"
    sequence = "sequence"
    whole_sequence = "whole_sequence"


class KlEstimator(Enum):
    """Schulman's estimators of KL(policy, reference) with d = policy - reference: d, d^2 / 2, exp(-d) - 1 + d."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KlPlace(Enum):
    """A term of the `loss`, with gradient, or taken from the `reward`, without."""

    loss = "loss"
    reward = "reward"


class Correction(Enum):
    """Importance weight exp(old - rollout) between trainer and sampler, per token or of the whole sequence: at most
    `cap` (truncate), or 0 where it is more (mask).
    """

    none = "none"
    token_truncate = "token_truncate"
    token_mask = "token_mask"
    sequence_truncate = "sequence_truncate"
    sequence_mask = "sequence_mask"


class OverlongRule(Enum):
    """A completion that hits the token limit: as any other, kept out of the loss, punished in its reward, or both."""

    keep = "keep"
    mask = "mask"
    punish = "punish"
    mask_and_punish = "mask_and_punish"


@dataclass
class KlConfig:
    coefficient: float = 0.0
    """weight of KL(policy, reference); 0 keeps no reference model"""
    estimator: KlEstimator = KlEstimator.k3
    """k1 (unbiased), k2 (unbiased gradient), k3 (unbiased and never negative)"""
    place: KlPlace = KlPlace.loss
    """loss: a term with gradient; reward: taken from the reward before advantages"""
    refresh_every: int = 0
    """steps after which the reference becomes the policy as it is then, again and again; 0: it stays the model that the
    run starts from. Checkpoints hold it (docs/algorithms.md)"""

    def __post_init__(self) -> None:
        self.estimator = member(KlEstimator, self.estimator, "algorithm.kl.estimator")
        self.place = member(KlPlace, self.place, "algorithm.kl.place")
        if not 0 <= self.coefficient < float("inf"):
            raise ValueError(f"algorithm.kl.coefficient: expected 0 or more, found {self.coefficient}")
        if self.refresh_every < 0:
            raise ValueError(f"algorithm.kl.refresh_every: expected 0 or more steps, found {self.refresh_every}")
        if self.refresh_every and not self.coefficient:
            raise ValueError(
                f"algorithm.kl.refresh_every: {self.refresh_every} renews a reference, but "
                "algorithm.kl.coefficient=0 keeps none; set algorithm.kl.coefficient above 0, or "
                "algorithm.kl.refresh_every=0"
            )


@dataclass
class CorrectionConfig:
    rule: Correction = Correction.none
    """importance weight between the log-probs of trainer and sampler"""
    cap: float = 2.0
    """largest weight (truncate), or the weight above which a token or sequence does not count (mask)"""
    routing_replay: bool = False
    """take the experts that the sampler of an MoE chose for each token, instead of those that its routers choose while
    training; without effect on a decoder that has no routers (docs/algorithms.md)"""

    def __post_init__(self) -> None:
        self.rule = member(Correction, self.rule, "algorithm.correction.rule")
        if not self.cap >= 1:
            raise ValueError(f"algorithm.correction.cap: expected at least 1, found {self.cap}")


@dataclass
class OverlongConfig:
    rule: OverlongRule = OverlongRule.keep
    """treatment of completions that hit rollouts.max_completion_tokens"""
    buffer: int | None = None
    """completion tokens before the limit in which the punishment grows from 0 to `penalty`; null: a fifth of the limit,
    as in DAPO's paper; 0 punishes only at the limit"""
    penalty: float = 1.0
    """reward taken from a completion that reaches the limit"""

    def __post_init__(self) -> None:
        self.rule = member(OverlongRule, self.rule, "algorithm.overlong.rule")
        if (self.buffer or 0) < 0 or not 0 <= self.penalty < float("inf"):
            raise ValueError(
                f"algorithm.overlong.buffer, algorithm.overlong.penalty: expected 0 or more, found {self.buffer}, "
                f"{self.penalty}"
            )

    @property
    def masks(self) -> bool:
        return self.rule in (OverlongRule.mask, OverlongRule.mask_and_punish)

    @property
    def punishes(self) -> bool:
        return self.rule in (OverlongRule.punish, OverlongRule.mask_and_punish)


@dataclass
class AlgorithmConfig:
    name: str = ""
    """the algorithm, as `algorithm=NAME` chose it; not a key to set"""
    group_size: int = 8
    """completions per prompt [G]"""
    clip_low: float = 0.2
    """the ratio is clipped below 1 - clip_low"""
    clip_high: float = 0.2
    """the ratio is clipped above 1 + clip_high"""
    dual_clip: float = 0.0
    """with a negative advantage the ratio counts as this at most (arXiv 1912.09729); 0 turns it off"""
    ratio_level: RatioLevel = RatioLevel.token
    """probability that the ratio compares: each token's, or the sequence's"""
    baseline: Baseline = Baseline.group_mean
    """value that is taken from a reward to make an advantage"""
    advantage_scale: AdvantageScale = AdvantageScale.group_std
    """divisor of the difference between a reward and its baseline"""
    normalisation: LossNormalisation = LossNormalisation.tokens
    """number that divides the loss of an update"""
    group_filter: GroupFilter = GroupFilter.none
    """which groups train; filtered ones are replaced by new draws"""
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    overlong: OverlongConfig = field(default_factory=OverlongConfig)

    def __post_init__(self) -> None:
        self.ratio_level = member(RatioLevel, self.ratio_level, "algorithm.ratio_level")
        self.baseline = member(Baseline, self.baseline, "algorithm.baseline")
        self.advantage_scale = member(AdvantageScale, self.advantage_scale, "algorithm.advantage_scale")
        self.normalisation = member(LossNormalisation, self.normalisation, "algorithm.normalisation")
        self.group_filter = member(GroupFilter, self.group_filter, "algorithm.group_filter")
        if self.group_size < 1:
            raise ValueError(f"algorithm.group_size: expected at least 1, found {self.group_size}")
        if self.group_size == 1:
            self._check_lone_completions()
        if not 0 < self.clip_low <= 1 or not self.clip_high > 0:
            raise ValueError(
                f"algorithm.clip_low, algorithm.clip_high: expected 0 < clip_low <= 1 and clip_high > 0, found "
                f"{self.clip_low}, {self.clip_high}"
            )
        if self.dual_clip != 0 and not self.dual_clip > 1 + self.clip_high:
            raise ValueError(
                f"algorithm.dual_clip: expected 0 (off) or more than 1 + algorithm.clip_high = {1 + self.clip_high}, "
                f"found {self.dual_clip}"
            )
        if self.ratio_level is not RatioLevel.token and self.correction.rule.value.startswith("token_"):
            raise ValueError(
                f"algorithm.correction.rule: {self.correction.rule.value} weighs tokens, but algorithm.ratio_level="
                f"{self.ratio_level.value} has one ratio for a sequence; set algorithm.correction.rule="
                f"{self.correction.rule.value.replace('token', 'sequence')} or none"
            )
        if self.ratio_level is not RatioLevel.token and self.normalisation is not LossNormalisation.sequences:
            raise ValueError(
                f"algorithm.normalisation: expected sequences with algorithm.ratio_level={self.ratio_level.value} "
                f"(a sequence has one ratio), found {self.normalisation.value}"
            )
        if self.kl.place is KlPlace.reward and self.kl.coefficient == 0:
            raise ValueError(
                "algorithm.kl.place: reward asks for a reference, but algorithm.kl.coefficient=0 keeps none; set "
                "algorithm.kl.coefficient above 0, or algorithm.kl.place=loss"
            )

    def _check_lone_completions(self) -> None:
        """`ValueError` for a setting that compares siblings where a prompt has one completion."""
        wrong = {
            "advantage_scale": self.advantage_scale is AdvantageScale.group_std,
            "baseline": self.baseline in (Baseline.group_mean, Baseline.leave_one_out),
            "group_filter": self.group_filter is not GroupFilter.none,
        }
        for name, compares in wrong.items():
            if compares:
                raise ValueError(
                    f"algorithm.group_size: expected at least 2 with algorithm.{name}={getattr(self, name).value} (one "
                    f"completion has no siblings), found 1; raise the group size or set another algorithm.{name}"
                )


@dataclass
class GrpoConfig(AlgorithmConfig):
    """GRPO (arXiv 2402.03300): symmetric clip, per-sequence mean, KL to the reference in the loss, no filter.

    Ours: the clip range, which the paper does not state.
    """

    name: str = "grpo"
    normalisation: LossNormalisation = LossNormalisation.sequences
    kl: KlConfig = field(default_factory=lambda: KlConfig(0.04))


@dataclass
class DrGrpoConfig(AlgorithmConfig):
    """Dr. GRPO (arXiv 2503.20783): neither the group's deviation nor the completion's length divides; no KL."""

    name: str = "dr_grpo"
    advantage_scale: AdvantageScale = AdvantageScale.none
    normalisation: LossNormalisation = LossNormalisation.constant


@dataclass
class DapoConfig(AlgorithmConfig):
    """DAPO (arXiv 2503.14476): clip-higher, token-level loss, dynamic sampling, soft overlong punishment, no KL.

    The punishment's buffer is a fifth of the limit, the paper's 4,096 of 20,480 tokens.
    """

    name: str = "dapo"
    clip_high: float = 0.28
    group_filter: GroupFilter = GroupFilter.correctness_spread
    overlong: OverlongConfig = field(default_factory=lambda: OverlongConfig(OverlongRule.punish))


@dataclass
class GspoConfig(AlgorithmConfig):
    """GSPO (arXiv 2507.18071): one length-normalised ratio per sequence, clipped to 1 - 3e-4 .. 1 + 4e-4, no KL."""

    name: str = "gspo"
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    ratio_level: RatioLevel = RatioLevel.sequence
    normalisation: LossNormalisation = LossNormalisation.sequences


@dataclass
class CispoConfig(AlgorithmConfig):
    """CISPO (MiniMax-M1, arXiv 2506.13585): the ratio is clipped and detached, so no token loses its gradient;
    token-level loss, dynamic sampling and overlong punishment of DAPO, no KL.

    Ours: clip_high = 4 (the paper tunes it and names no value); clip_low = 1 leaves the ratio unbounded below.
    """

    name: str = "cispo"
    clip_low: float = 1.0
    clip_high: float = 4.0
    group_filter: GroupFilter = GroupFilter.correctness_spread
    overlong: OverlongConfig = field(default_factory=lambda: OverlongConfig(OverlongRule.punish))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip:
            raise ValueError(
                f"algorithm.dual_clip: expected 0 with algorithm=cispo, found {self.dual_clip}; its ratio counts as "
                "1 + algorithm.clip_high at most, whatever the advantage's sign, so lower that"
            )


@dataclass
class RlooConfig(AlgorithmConfig):
    """RLOO (arXiv 2402.14740): leave-one-out baseline, whole completions as actions, KL in the reward.

    Ours: the clip (the paper has none; with one update per step it does nothing) and 0.05, from the paper's range.
    """

    name: str = "rloo"
    ratio_level: RatioLevel = RatioLevel.whole_sequence
    baseline: Baseline = Baseline.leave_one_out
    advantage_scale: AdvantageScale = AdvantageScale.none
    normalisation: LossNormalisation = LossNormalisation.sequences
    kl: KlConfig = field(default_factory=lambda: KlConfig(0.05, KlEstimator.k1, KlPlace.reward))


@dataclass
class ReinforcePpConfig(AlgorithmConfig):
    """REINFORCE++ (arXiv 2501.03262): k1 KL of each token in the reward to go, advantages normalised over the step.

    Ours: 0.01, which the paper does not fix.
    """

    name: str = "reinforce_pp"
    baseline: Baseline = Baseline.batch_mean
    advantage_scale: AdvantageScale = AdvantageScale.batch_std
    kl: KlConfig = field(default_factory=lambda: KlConfig(0.01, KlEstimator.k1, KlPlace.reward))


def _refuse_dual_clip(config: AlgorithmConfig, because: str) -> None:
    if config.dual_clip:
        raise ValueError(
            f"algorithm.dual_clip: expected 0 with algorithm={config.name}, found {config.dual_clip}; {because}"
        )


@dataclass
class GateConfig:
    positive: float = 1.0
    """steepness of the gate at tokens with a positive advantage"""
    negative: float = 1.05
    """steepness of the gate at other tokens; above `positive` they lose their weight sooner"""

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"algorithm.gate.{name}: expected a number above 0, found {getattr(self, name)}")


@dataclass
class SapoConfig(AlgorithmConfig):
    """SAPO (arXiv 2511.20347): a sigmoid gate in place of the clip, steeper for negative advantages; mean per sequence.

    `clip_low` and `clip_high` bound nothing; they only say which tokens count as far off in the metrics.
    """

    name: str = "sapo"
    normalisation: LossNormalisation = LossNormalisation.sequences
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_dual_clip(self, "its gate bounds the ratio already")


@dataclass
class GmpoConfig(AlgorithmConfig):
    """GMPO (arXiv 2507.20673): the geometric mean of a sequence's token ratios, each clipped to exp(-0.4) .. exp(0.4).

    Its bounds are `clip_low` and `clip_high` of the logarithm of the ratio, not of the ratio.
    """

    name: str = "gmpo"
    clip_low: float = 0.4
    clip_high: float = 0.4
    normalisation: LossNormalisation = LossNormalisation.sequences

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_dual_clip(self, "it clips every token on its own")
        if self.ratio_level is not RatioLevel.token or self.normalisation is not LossNormalisation.sequences:
            raise ValueError(
                "algorithm.ratio_level, algorithm.normalisation: expected token and sequences with algorithm=gmpo, "
                f"which takes the mean itself, found {self.ratio_level.value} and {self.normalisation.value}"
            )


@dataclass
class CovarianceConfig:
    """How tokens are chosen whose probability and advantage go together; covariances are taken over a micro-batch."""

    share: float = 2e-4
    """share of the trained tokens that are chosen, at least one"""
    least: float = 1.0
    """clip_cov: tokens of a smaller covariance are never chosen"""
    most: float = 5.0
    """clip_cov: tokens of a larger covariance are never chosen"""
    strength: float = 1.0
    """kl_cov: weight of |ln(policy / old)| at the chosen tokens"""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"algorithm.covariance.share: expected above 0 and at most 1, found {self.share}")
        if not self.least < self.most:
            raise ValueError(
                f"algorithm.covariance.least, algorithm.covariance.most: expected the first to be less, found "
                f"{self.least} and {self.most}"
            )
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"algorithm.covariance.strength: expected 0 or more, found {self.strength}")


@dataclass
class ClipCovConfig(AlgorithmConfig):
    """Clip-Cov (arXiv 2505.22617): a few of the tokens whose probability and advantage go together most lose their
    gradient, which keeps the entropy up.
    """

    name: str = "clip_cov"
    covariance: CovarianceConfig = field(default_factory=CovarianceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_tokens(self)


@dataclass
class KlCovConfig(AlgorithmConfig):
    """KL-Cov (arXiv 2505.22617): no clip, and a distance to the old policy for the few tokens whose probability and
    advantage go together most, which keeps the entropy up. The share is the paper's for 7B; for 32B it takes 2e-4.
    """

    name: str = "kl_cov"
    covariance: CovarianceConfig = field(default_factory=lambda: CovarianceConfig(share=2e-3))

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_dual_clip(self, "it has no clip")
        _require_tokens(self)


def _require_tokens(config: AlgorithmConfig) -> None:
    if config.ratio_level is not RatioLevel.token:
        raise ValueError(
            f"algorithm.ratio_level: expected token with algorithm={config.name}, which chooses tokens, found "
            f"{config.ratio_level.value}"
        )


@dataclass
class CustomConfig(AlgorithmConfig):
    """A class of your own in a file of your own; docs/algorithms.md."""

    name: str = "FILE.py:CLASS"
    """your subclass of rlhf.algorithms.algorithm.Algorithm; it runs in the trainer's process"""
    settings: dict[str, float] = field(default_factory=dict)
    """numbers that your class reads from self.config.settings"""

    def __post_init__(self) -> None:
        super().__post_init__()
        path, _, name = self.name.rpartition(":")
        if not path.endswith(".py") or not name.isidentifier() or self.name == CustomConfig.name:
            raise ValueError(
                f"algorithm.name: expected the file and class of your algorithm as FILE.py:CLASS, found {self.name!r}"
            )


ALGORITHM_CONFIGS: dict[str, type[AlgorithmConfig]] = {
    "grpo": GrpoConfig,
    "dr_grpo": DrGrpoConfig,
    "dapo": DapoConfig,
    "gspo": GspoConfig,
    "cispo": CispoConfig,
    "rloo": RlooConfig,
    "reinforce_pp": ReinforcePpConfig,
    "sapo": SapoConfig,
    "gmpo": GmpoConfig,
    "clip_cov": ClipCovConfig,
    "kl_cov": KlCovConfig,
}
"""The choices of `algorithm=NAME`, beside `algorithm=custom`."""
