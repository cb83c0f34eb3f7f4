"""The controller of AdaLRS on curves whose best learning rate is known."""

import json
import math
import random
from collections.abc import Callable

import pytest

from model.engine.adalrs import AdaLrs, Descent, Trial, Verdict
from model.engine.config import AdaLrsConfig, EngineConfig, OptimizerConfig, SupervisedConfig
from model.run.config import RunConfig

STEPS = 400


def share_taken(scale: float) -> float:
    """Share of the excess loss that an update at this scale takes away, relative to the best one, which is 1."""
    return scale * math.exp(1.0 - scale)


class Run:
    """A loss that falls from 3 towards 1, by 1 % of the excess in an update at the best rate; with a rollback."""

    def __init__(self, start: float, noise: float = 0.0, seed: int = 0, is_paired: bool = True, **settings) -> None:
        """`start`: the scheduled rate as a share of the best one. `is_paired`: the noise belongs to a step, as its rows
        do; else it is another at every rate."""
        self.is_paired = is_paired
        self.controller = AdaLrs(AdaLrsConfig(**{"window": 10, **settings}), STEPS)
        self.start, self.noise, self.seed = start, noise, seed
        self.step, self.excess = 0, 2.0
        self.before = self.excess
        self.extra = 0
        self.trials: list[Trial] = []
        self.used: list[float] = []

    def update(self, loss_of: Callable[[float], float | None] = lambda loss: loss) -> Trial | None:
        """Make one update."""
        scale = self.controller.scale
        self.step += 1
        drawn = random.Random(f"{self.seed} {self.step} {0 if self.is_paired else scale}").gauss(0.0, self.noise)
        loss = loss_of(1.0 + self.excess + drawn)
        self.excess *= 1.0 - 0.01 * share_taken(scale * self.start)
        self.used = [*self.used[: self.step - 1], scale]
        start = self.controller.trial_start
        outcome = self.controller.observe(self.step, loss)
        if outcome.trial is not None:
            self.trials.append(outcome.trial)
        if outcome.goes_back:
            assert start is not None
            self.extra += self.step - start
            self.step, self.excess = start, self.before
        elif self.controller.trial_start == self.step:
            self.before = self.excess
        return outcome.trial

    def to_trial(self) -> "Run":
        """To the first update at the rate that is tried."""
        while self.controller.trial_start is None or self.controller.scale == 1.0:
            self.update()
        return self

    def to(self, step: int) -> "Run":
        while self.step < step:
            self.update()
        return self

    @property
    def rate(self) -> float:
        """The rate that stands, as a share of the best one."""
        return self.start * self.controller.scale


def test_a_slope_and_its_error_are_those_of_least_squares():
    """Checked by hand: losses 3, 2, 2, 1 have the slope -0.6, residuals 0.1, -0.3, 0.3, -0.1, an error of 0.1 ** 0.5."""
    found = Descent.of([3.0, 2.0, 2.0, 1.0])
    assert found is not None
    assert found.velocity == pytest.approx(0.6, abs=1e-12)
    assert found.error == pytest.approx((0.2 / 2 / 5) ** 0.5, abs=1e-12)
    assert Descent.of([3.0, None, 2.0, 1.0, None]) == Descent.of([3.0, None, 2.0, 1.0])
    assert Descent.of([3.0, None, 2.0]) is None


def test_a_gain_is_the_slope_of_the_differences_through_the_common_start():
    """By hand: gains 0, 1, 2, 6 have the slope 23 / 14, residuals of -9, -18 and 15 over 14, whose squares sum to 630 / 196.

    A loss that jumps at once and falls alike from then on is slower.
    """
    found = Descent.gained([9.0, 8.0, 7.0, 9.0], [9.0, 7.0, 5.0, 3.0])
    assert found is not None and found.velocity == pytest.approx(23 / 14, abs=1e-12)
    assert found.error == pytest.approx((630 / 196 / 2 / 14) ** 0.5, abs=1e-12)
    losses = [3.0 - 0.1 * step for step in range(10)]
    jumped = Descent.gained(losses, [losses[0], *(loss + 1.0 for loss in losses[1:])])
    assert jumped is not None and jumped.velocity < -2 * jumped.error
    assert Descent.gained(losses, losses[:2]) is None


@pytest.mark.parametrize("start", [0.1, 10.0])
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_rate_ten_times_off_comes_within_a_factor_of_three_of_the_best(start, noise):
    for seed in range(5):
        run = Run(start, noise, seed).to(STEPS)
        assert 1 / 3 <= run.rate <= 3, (seed, run.rate, [trial.described() for trial in run.trials])
        assert run.excess < 2 * math.prod(1.0 - 0.01 * share_taken(start) for _ in range(STEPS))


def test_a_low_rate_is_raised_and_a_high_one_falls_back():
    low, high = Run(0.1).to(STEPS), Run(3.0).to(STEPS)
    assert low.trials[0].verdict is Verdict.kept and low.trials[0].next_scale == low.trials[0].tried
    first = high.trials[0]
    assert first.verdict is Verdict.rolled_back and first.next_scale < first.scale < first.tried
    assert (
        high.controller.metrics["adalrs/extra_updates"]
        == high.extra
        == sum(
            len(trial.losses_before) + len(trial.losses) * (trial.verdict is Verdict.rolled_back)
            for trial in high.trials
        )
    )


def test_the_factors_decay_and_never_pass_one():
    controller = Run(1.0).controller
    assert (controller.up, controller.down) == (3.0, 0.5)
    controller.restore({**controller.state(), "rounds": 10})
    assert controller.up == pytest.approx(3 * 0.99**10) and controller.down == pytest.approx(1 / (2 * 0.99**10))
    controller.restore({**controller.state(), "rounds": 1000})
    assert (controller.up, controller.down) == (1.0, 1.0)


def test_trials_lie_in_the_part_of_the_run_that_is_searched():
    run = Run(0.1, begin=0.25, end=0.5).to(STEPS)
    assert run.trials and all(trial.start >= 100 + 10 and trial.start + 10 <= 200 for trial in run.trials)
    assert set(run.used[:110]) == {1.0} and len(set(run.used[200:])) == 1


def test_noise_of_the_rows_is_common_to_both_rates_and_decides_nothing():
    """Ten times the noise of the slopes, which the rows bring: the trials end as they do without it."""
    found = [Run(0.1, noise).to(STEPS) for noise in (0.0, 0.2)]
    verdicts = [[trial.verdict for trial in run.trials[:2]] for run in found]
    assert verdicts[0] == verdicts[1] == [Verdict.kept, Verdict.kept]


def test_differences_within_the_margin_decide_nothing():
    """The updates of such a trial stay, the scale is what it was, and the next trial looks the other way."""
    run = Run(1.0, noise=0.3, seed=2, is_paired=False).to(STEPS)
    undecided = [trial for trial in run.trials if trial.verdict is Verdict.undecided]
    assert undecided and all(trial.next_scale == trial.scale for trial in undecided)
    first, second = run.trials[:2]
    assert first.verdict is Verdict.undecided and first.tried > first.scale
    assert second.tried < second.scale and second.start > first.start


def test_the_guard_ends_a_trial_at_once_and_no_rate_as_high_is_tried_again():
    run = Run(1.0).to_trial()
    tried = run.controller.scale
    trial = run.update(lambda loss: 3.5)
    assert trial is not None and trial.verdict is Verdict.rolled_back and len(trial.losses) == 1
    assert "the loss exceeded 3, its highest value so far" in trial.reason
    run.to(STEPS)
    assert all(later.tried < tried for later in run.trials[1:])
    free = Run(1.0, guard=False).to_trial()
    assert free.update(lambda loss: 3.5) is None


def test_a_skipped_update_ends_a_trial():
    run = Run(0.1).to_trial()
    run.update()
    trial = run.update(lambda loss: None)
    assert trial is not None and trial.verdict is Verdict.rolled_back and trial.losses[1] is None
    assert "skipped" in trial.described() and run.controller.metrics["adalrs/extra_updates"] == 10 + 2


def test_a_loss_that_rises_over_two_windows_lowers_the_rate_without_a_trial():
    run = Run(1.0)
    while run.step < 60:
        run.update(lambda loss: 2.0 + 0.01 * run.step)
    assert run.trials == []
    assert run.controller.scale == pytest.approx(1 / (2 * 0.99**2))


@pytest.mark.parametrize("seed", range(5))
def test_a_restored_controller_goes_on_alike(seed):
    """At any update, in a trial or not; the state is JSON data."""
    run = Run(0.3, noise=0.05, seed=seed)
    stop = random.Random(seed).randint(45, 160)
    run.to(stop)
    other = Run(0.3, noise=0.05, seed=seed)
    other.controller.restore(json.loads(json.dumps(run.controller.state())))
    other.step, other.excess, other.before, other.used = run.step, run.excess, run.before, [*run.used]
    before = len(run.trials)
    assert [t.to_json() for t in other.to(STEPS).trials] == [t.to_json() for t in run.to(STEPS).trials[before:]]
    assert other.used == run.used and other.excess == run.excess


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 2}, "adalrs.window: expected 0, or the 3 updates or more"),
        ({"window": 5, "up": 1.0}, "adalrs.up: expected a factor above 1, found 1.0"),
        ({"window": 5, "down": 0.5}, "adalrs.down: expected a factor above 1, found 0.5"),
        ({"window": 5, "decay": 0.0}, "adalrs.decay: expected above 0, and 1 at most, found 0.0"),
        ({"window": 5, "begin": 0.5, "end": 0.5}, "adalrs.begin, adalrs.end: expected shares of the run"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaLrsConfig(**settings)


def test_a_run_that_is_too_short_for_a_trial_is_refused():
    with pytest.raises(ValueError, match=r"adalrs.window: expected at most 15 updates.*10 and 40 of 100; found 16"):
        AdaLrs(AdaLrsConfig(window=16), 100)
    with pytest.raises(ValueError, match=r"engine\.max_skipped_updates: expected at least 2 with adalrs\.window"):
        SupervisedConfig(
            adalrs=AdaLrsConfig(window=16),
            engine=EngineConfig(max_skipped_updates=1),
            optimizer=OptimizerConfig(1e-3),
            run=RunConfig("r"),
        )
