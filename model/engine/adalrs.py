"""AdaLRS: the learning rate is searched while a run trains (SAIL-VL2 report, section 3.2.3; arXiv 2506.13274).

`AdaLrs` decides from losses alone. `RateSearch` does in a run what it decides: it saves before a trial and goes back to
that checkpoint where the trial failed. docs/adalrs.md explains both, and names the choices that the report leaves open.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum

from model.engine.config import AdaLrsConfig
from model.run.folder import RunFolder, Saves
from model.run.state import State, Stateful, restore_sections, sections_of

RECORDS = "adalrs.jsonl"
"""The log of a run with one line for each trial."""


class Verdict(Enum):
    """How a trial ended."""

    kept = "kept"
    undecided = "undecided"  # neither faster nor slower beyond the margin: the updates stay, the rate does not
    rolled_back = "rolled_back"  # slower, or stopped by the guard: weights, moments and rows are those before it


@dataclass(frozen=True)
class Descent:
    """How fast a loss falls over a window of updates."""

    velocity: float  # nats per token and update: the slope of the least-squares line, with the sign turned
    error: float  # its standard error

    @classmethod
    def of(cls, losses: Sequence[float | None]) -> "Descent | None":
        """Fit a line to losses of consecutive updates, None where one was skipped. None with fewer than three."""
        points = [(float(step), loss) for step, loss in enumerate(losses) if loss is not None]
        if len(points) < 3:
            return None
        middle = math.fsum(step for step, _ in points) / len(points)
        mean = math.fsum(loss for _, loss in points) / len(points)
        spread = math.fsum((step - middle) ** 2 for step, _ in points)
        slope = math.fsum((step - middle) * (loss - mean) for step, loss in points) / spread
        squares = math.fsum((loss - mean - slope * (step - middle)) ** 2 for step, loss in points)
        return cls(-slope, math.sqrt(squares / (len(points) - 2) / spread))

    @classmethod
    def gained(cls, before: Sequence[float | None], tried: Sequence[float | None]) -> "Descent | None":
        """Fit how much faster the second losses fall, over the same rows from the same weights.

        Both begin with the same loss, that of the weights before the trial, so the line through their differences
        begins at 0. None where fewer than three updates of both were made.
        """
        both = enumerate(zip(before, tried, strict=False))
        points = [(float(step), one - two) for step, (one, two) in both if one is not None and two is not None]
        if len(points) < 3:
            return None
        spread = math.fsum(step**2 for step, _ in points)
        slope = math.fsum(step * gain for step, gain in points) / spread
        squares = math.fsum((gain - slope * step) ** 2 for step, gain in points)
        return cls(slope, math.sqrt(squares / (len(points) - 2) / spread))


@dataclass(frozen=True)
class Trial:
    """A trial that ended; the updates after `start` were made at `tried` times the scheduled rate."""

    start: int  # updates before it
    scale: float  # factor of the scheduled rate before it
    tried: float
    next_scale: float  # the factor after it
    losses: list[float | None]  # one of each update, None for one that was skipped
    losses_before: list[float | None]  # those of the same updates at `scale`, which were undone
    velocity: float | None  # nats per token and update at `scale`; None where too few updates were made
    tried_velocity: float | None
    margin: float | None
    verdict: Verdict
    reason: str

    def to_json(self) -> State:
        """Data for a line of adalrs.jsonl."""
        return {**asdict(self), "verdict": self.verdict.value}

    def described(self) -> str:
        """Say in one line what was tried and what came of it."""
        outcome = {
            Verdict.kept: "kept",
            Verdict.undecided: "no clear difference, so the updates stay and the rate goes back to what it was",
            Verdict.rolled_back: f"rolled back, and the rate becomes {self.next_scale:.3g} times the scheduled one",
        }[self.verdict]
        return (
            f"adalrs: updates {self.start + 1} to {self.start + len(self.losses)} at {self.tried:.3g} instead of "
            f"{self.scale:.3g} times the scheduled rate: {self.reason}; {outcome}"
        )


@dataclass(frozen=True)
class Outcome:
    """The consequence of an update."""

    goes_back: bool = False  # the updates since the trial's start are to be undone
    trial: Trial | None = None  # the trial that ended


@dataclass
class _Progress:
    """All that the controller knows, as JSON data."""

    scale: float = 1.0  # factor of the scheduled rate without a trial
    latest: list[float] | None = None  # velocity and error of the newest window at this scale
    losses: list[float | None] = field(default_factory=list)  # those of the window under way
    tried: float | None = None  # factor of the trial under way
    trial_start: int = 0  # updates before it
    losses_before: list[float | None] | None = None  # those of its updates at `scale`, once they are made
    goes_down: bool = False  # the next trial, or the one under way, is at a lower scale
    highest: float | None = None  # loss of all updates that stand
    ceiling: float | None = None  # scale at which a loss exceeded it
    num_rises: int = 0  # windows in a row in which the loss rose
    rounds: int = 0  # windows since the search began, those that were undone too
    extra_updates: int = 0  # updates that were undone


class AdaLrs:
    """Decides the factor of the scheduled learning rate from the losses of the updates. A `Stateful` part of a run.

    Example: with a window of 20 and 400 updates, updates 41 to 60 are the first window, and a trial may follow it.
    """

    def __init__(self, config: AdaLrsConfig, total_steps: int) -> None:
        """`ValueError` where the run is too short for a trial."""
        self.config = config
        self.first, self.last = config.steps(total_steps)
        self._now = _Progress()

    @property
    def scale(self) -> float:
        """Factor of the scheduled rate for the next update."""
        now = self._now
        return now.scale if now.tried is None or now.losses_before is None else now.tried

    @property
    def trial_start(self) -> int | None:
        """How many updates were made before the trial under way; None where there is no trial."""
        return None if self._now.tried is None else self._now.trial_start

    @property
    def metrics(self) -> dict[str, float | None]:
        """Figures for metrics.jsonl: velocity and margin are those of the newest window at the rate that stands."""
        latest = self._now.latest or [None, None]
        return {
            "adalrs/slope": None if latest[0] is None else -latest[0],
            "adalrs/margin": None if latest[1] is None else 2.0 * latest[1],
            "adalrs/extra_updates": float(self._now.extra_updates),
        }

    @property
    def up(self) -> float:
        """max(lambda^t alpha, 1), where t counts windows."""
        return max(self.config.decay**self._now.rounds * self.config.up, 1.0)

    @property
    def down(self) -> float:
        """1 / max(lambda^t beta, 1), where t counts windows."""
        return 1.0 / max(self.config.decay**self._now.rounds * self.config.down, 1.0)

    def observe(self, step: int, loss: float | None) -> Outcome:
        """Take the loss per token of update `step` (1-based), None where it was skipped.

        Where the outcome goes back, the next loss is again that of the update after the trial's start.
        """
        now = self._now
        if now.tried is not None:
            now.losses.append(loss)
            return self._measure() if now.losses_before is None else self._try(now.tried, now.losses_before)
        if loss is not None:
            now.highest = loss if now.highest is None else max(now.highest, loss)
        if self.first < step <= self.last:
            now.losses.append(loss)
            if len(now.losses) == self.config.window:
                self._end_window(step)
        return Outcome()

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        return asdict(self._now)

    def restore(self, state: State) -> None:
        self._now = _Progress(**state)

    def _end_window(self, step: int) -> None:
        """Measure a window at the scale that stands, and begin a trial where the descent has not become faster."""
        now, found = self._now, Descent.of(self._now.losses)
        now.losses, now.rounds = [], now.rounds + 1
        if found is None:
            return
        velocity, error = now.latest or [found.velocity, found.error]
        is_faster = found.velocity > velocity + 2.0 * math.hypot(error, found.error)
        now.latest = [found.velocity, found.error]
        now.num_rises = now.num_rises + 1 if found.velocity < -found.error else 0
        if now.num_rises == 2:
            self._stand_at(now.scale * self.down)
            return
        tried = now.scale * (self.down if now.goes_down else self.up)
        is_open = tried != now.scale and (now.ceiling is None or tried < now.ceiling)
        if is_open and not is_faster and not now.num_rises and step + self.config.window <= self.last:
            now.tried, now.trial_start = tried, step

    def _measure(self) -> Outcome:
        """Go back and try once the trial's updates were made at the scale that stands."""
        now = self._now
        if len(now.losses) < self.config.window:
            return Outcome()
        now.extra_updates += len(now.losses)
        now.losses_before, now.losses = now.losses, []
        return Outcome(goes_back=True)

    def _try(self, tried: float, before: list[float | None]) -> Outcome:
        """End the trial if its last loss decides it."""
        now = self._now
        loss, losses = now.losses[-1], now.losses
        gain = Descent.gained(before, losses)
        verdict, reason = Verdict.rolled_back, ""
        if loss is None:
            reason = "an update was skipped"
        elif self.config.guard and now.highest is not None and loss > now.highest:
            now.ceiling = tried
            reason = f"the loss exceeded {now.highest:.4g}, its highest value so far"
        elif len(losses) < self.config.window:
            return Outcome()
        elif gain is None:
            verdict, reason = Verdict.undecided, "too many updates were skipped"
        else:
            e = gain.error  # bounds the velocities' error; their difference has twice that
            verdict = (
                Verdict.kept if gain.velocity > 2 * e else verdict if gain.velocity < -2 * e else Verdict.undecided
            )
            reason = f"an update lowers the loss by {gain.velocity:+.2g} more (+-{2 * e:.2g})"
        return self._end_trial(tried, before, gain, verdict, reason)

    def _end_trial(
        self, tried: float, before: list[float | None], gain: Descent | None, verdict: Verdict, reason: str
    ) -> Outcome:
        now = self._now
        scale, losses = now.scale, now.losses
        now.tried, now.losses_before, now.losses, now.rounds = None, None, [], now.rounds + 1
        standing, found = Descent.of(before), Descent.of(losses)
        if verdict is Verdict.rolled_back:
            now.extra_updates += len(losses)
            if not now.goes_down:
                self._stand_at(scale * self.down)
        else:
            now.highest = max([loss for loss in [*losses, now.highest] if loss is not None])
        if verdict is Verdict.kept and found is not None:
            now.scale, now.latest = tried, [found.velocity, found.error]
        else:
            now.goes_down = verdict is Verdict.undecided and not now.goes_down
        trial = Trial(
            start=now.trial_start,
            scale=scale,
            tried=tried,
            next_scale=now.scale,
            losses=losses,
            losses_before=before,
            velocity=None if standing is None else standing.velocity,
            tried_velocity=None if found is None else found.velocity,
            margin=None if gain is None else 2.0 * gain.error,
            verdict=verdict,
            reason=reason,
        )
        return Outcome(verdict is Verdict.rolled_back, trial)

    def _stand_at(self, scale: float) -> None:
        """Go on at another scale, of which nothing is known yet."""
        now = self._now
        now.scale, now.latest, now.num_rises = scale, None, 0


class RateSearch:
    """AdaLRS in a supervised run: checkpoints before trials, goes back to them, and reports. Without a window it leaves
    the scheduled rate alone."""

    def __init__(
        self,
        config: AdaLrsConfig,
        total_steps: int,
        run: RunFolder,
        engine: Saves,
        sections: Mapping[str, Stateful],
        say: Callable[[str], None],
    ) -> None:
        """`sections` are the other parts of the run with state; `say` prints a line for a person."""
        self._run, self._engine, self._parts, self._say = run, engine, sections, say
        self._controller = AdaLrs(config, total_steps) if config.window else None
        self._sections = {**sections, **({"adalrs": self._controller} if self._controller else {})}
        self._kept: State = {}  # the state before the trial under way
        self.metrics: dict[str, float | None] = {}
        """figures of the newest update"""
        self.settled_step = 0
        """updates that no trial takes back"""

    @property
    def scale(self) -> float:
        """Factor of the scheduled rate for the next update."""
        return self._controller.scale if self._controller else 1.0

    @property
    def is_trying(self) -> bool:
        """Whether the next update may be taken back. No checkpoint and no evaluation belong there."""
        return self._controller is not None and self._controller.trial_start is not None

    def state(self, step: int) -> State:
        """Give what a checkpoint after `step` updates holds; within a trial that is the state before it."""
        return self._kept if self.is_trying and self._kept else sections_of(step, self._sections)

    def restore(self, state: State) -> None:
        """Go on from a checkpoint's state, if there is one. That of a trial's start begins the trial again."""
        self.settled_step = state["step"]
        if state["step"]:
            restore_sections(state, self._sections)
            self._kept = sections_of(state["step"], self._sections)

    def observe(self, step: int, loss: float | None) -> bool:
        """Take the loss per token of an update, None where it was skipped.

        True where the updates of a trial are undone: the run is then at the trial's start again. `ValueError` where the
        checkpoint of its start is not intact any more.
        """
        if self._controller is None:
            self.settled_step = step
            return False
        scale = self._controller.scale
        start = self._controller.trial_start
        outcome = self._controller.observe(step, loss)
        if outcome.goes_back and start is not None:
            self._roll_back(start)
        if (trial := outcome.trial) is not None:
            # A line of the first update that was tried: a restart cuts both alike.
            self._run.append(RECORDS, trial.start + 1, [trial.to_json()])
            self._say(trial.described())
        if outcome.goes_back:
            return True
        self.metrics = {"adalrs/rate_scale": scale, **self._controller.metrics}
        if not self.is_trying:
            self.settled_step = step
        return False

    def save_if(self, is_due: bool, step: int) -> None:
        """Write a checkpoint after `step` updates where one is due or a trial begins; none within a trial."""
        begins = self._controller is not None and self._controller.trial_start == step
        if begins or (is_due and not self.is_trying):
            self._kept = sections_of(step, self._sections)
            self._run.save(self._engine, self._kept)

    def _roll_back(self, start: int) -> None:
        state = self._run.roll_back(self._engine)
        if state["step"] != start:
            raise ValueError(
                f"adalrs: expected the checkpoint of step {start}, at which a trial began, found "
                f"{state['step'] or 'none'} as the newest intact one; the same command goes on from there"
            )
        restore_sections(state, self._parts)
