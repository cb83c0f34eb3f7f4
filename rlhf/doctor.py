"""The doctor: it looks at every step of RL, and says what keeps the policy from learning and which key to change."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from model.processing.tokenizer import Tokenizer
from model.run.printable import printable
from model.run.state import State
from rlhf.collect import Collected
from rlhf.trajectory import Group, Trajectory
from rollouts.rollout import question_of

_CUT_OFF = 0.9  # share of completions from which on the limit is the likely cause
_UNSCORABLE = 0.1  # share of completions; `reward.max_unscorable_share` ends a run later, over 1,000 completions
_NO_ANSWER = 0.9
_ENTROPY_LEFT = 0.1  # compared with the mean of the first steps
_LENGTH_LEFT = 0.2
_SHORTEST_WAIT = 5.0  # seconds; a shorter wait for rewards is nothing to mend
_AGAIN = 10  # a warning comes again when it was true for this many times as many steps
_NUM_EXAMPLES = 3
_NUM_FIRST = 3  # steps whose mean is the beginning


class NothingLearned(RuntimeError):
    """No update was applied in a whole run: its model would be the one that it started from."""

    exit_code = 9

    def __init__(self, doctor: "Doctor") -> None:
        super().__init__(
            f"no update was applied in {doctor.num_steps} steps, so final/ is not written: the model is the one that "
            f"the run started from. {doctor.diagnosis()}\n"
            "Every completion is in rollouts/ of the run's folder"
        )


@dataclass(frozen=True)
class Example:
    """A completion to look at."""

    prompt: str  # the text of the last message
    completion: str
    answer: str | None
    reference: str
    reward: float | None

    def __str__(self) -> str:
        answer = "none found" if self.answer is None else printable(self.answer, 80)
        reward = "-" if self.reward is None else f"{self.reward:.3g}"
        return (
            f"    prompt ...{printable(self.prompt[-100:], 120)}\n"
            f"      completion {_ends(self.completion)}\n"
            f"      extracted answer {answer}  reference {printable(self.reference, 80) or '-'}  reward {reward}"
        )


@dataclass(frozen=True)
class StepFacts:
    """One step in numbers, as the doctor sees it."""

    step: int
    applied: bool  # an update was applied
    learned: bool  # one in which some token had an advantage, or needed none
    metrics: Mapping[str, float]
    dropped: Mapping[str, int]  # reason -> groups
    reasons: Mapping[str, int]  # why completions are unscorable -> how many are
    spread: int  # groups whose rewards differ
    groups: int  # groups of two scored completions and more

    def get(self, name: str) -> float:
        return self.metrics.get(name, math.nan)


@dataclass(frozen=True)
class Check:
    """Something that may be wrong: how it is seen in a step, how it is said, and what to change."""

    seen: Callable[[StepFacts, "Beginning"], bool]
    said: Callable[[StepFacts, "Beginning"], str]
    remedy: str
    shows: Callable[[Trajectory], bool] = lambda _: True  # completions that are good examples of it
    part: str = ""  # the reward part that it is about; where that is not paid, it is no fault


@dataclass(frozen=True)
class Finding:
    """A check that was true for several steps in a row."""

    kind: str
    num_steps: int
    text: str
    remedy: str

    def __str__(self) -> str:
        steps = "the last step" if self.num_steps == 1 else f"the last {self.num_steps} steps"
        return f"doctor: {self.text} (in {steps}); {self.remedy}"


class Beginning:
    """The means of the first steps, against which later ones are held."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"entropy": [], "length/mean": []}

    def add(self, facts: StepFacts) -> None:
        for name, found in self.values.items():
            if len(found) < _NUM_FIRST and math.isfinite(facts.get(name)):
                found.append(facts.get(name))

    def below(self, facts: StepFacts, name: str, share: float) -> bool:
        found = self.values[name]
        return len(found) == _NUM_FIRST and facts.get(name) < share * mean(found)

    def said(self, facts: StepFacts, name: str, what: str) -> str:
        return f"{what} is {facts.get(name):.3g}, at the beginning it was {mean(self.values[name]):.3g}"


def commonest(counts: Mapping[str, int]) -> str:
    """The commonest of some reasons with its count; empty without any."""
    if not counts:
        return ""
    reason, count = Counter(dict(counts)).most_common(1)[0]
    return f"{printable(reason, 200)} ({count} of {sum(counts.values())})"


def _no_update(facts: StepFacts, _: Beginning) -> str:
    reason = commonest(facts.dropped)
    why = f"; groups were dropped, most often as {reason}" if reason else "; no group had an advantage"
    return f"no update changed the policy{why}"


def _bad_references(facts: StepFacts) -> int:
    return sum(count for reason, count in facts.reasons.items() if "reference" in reason.lower())


CHECKS: dict[str, Check] = {
    "no_update": Check(
        lambda facts, _: not facts.learned,
        _no_update,
        "look at the examples: an answer that is right and counts as wrong needs another reward.verifier, "
        "reward.answer_rules or reference column (data.reference_column); an own reward alone needs "
        "reward.verifier=none; a policy that never succeeds needs easier prompts or SFT first",
    ),
    "references": Check(
        lambda facts, _: _bad_references(facts) > 0 and facts.get("unscorable_share") >= _UNSCORABLE,
        lambda facts, _: f"references cannot be read: {commonest(facts.reasons)}",
        "name the column that holds the answer alone (data.reference_column), how it holds it (data.reference_form), "
        "or the verifier that reads it (reward.verifier)",
        lambda t: not t.is_scored,
    ),
    "unscorable": Check(
        lambda facts, _: not _bad_references(facts) and facts.get("unscorable_share") >= _UNSCORABLE,
        lambda facts, _: (
            f"{facts.get('unscorable_share'):.0%} of the completions are unscorable: {commonest(facts.reasons)}"
        ),
        "mend the reward (python -m rewards.check FILE.py:NAME --data PROMPTS)",
        lambda t: not t.is_scored,
    ),
    "cut_off": Check(
        lambda facts, _: facts.get("overlong_share") >= _CUT_OFF,
        lambda facts, _: f"{facts.get('overlong_share'):.0%} of the completions are cut off at the limit",
        "raise rollouts.max_completion_tokens, or begin with a policy that ends its turn (SFT)",
        lambda t: t.is_overlong,
    ),
    "no_answer": Check(
        lambda facts, _: facts.get("reward/answer") == 0 and facts.get("answer_share") <= 1 - _NO_ANSWER,
        lambda facts, _: f"an answer was found in {facts.get('answer_share'):.0%} of the completions",
        "say where it stands (reward.answer_rules=[boxed,answer_tag,answer_line,last_number]), or teach the form (SFT)",
        lambda t: t.reward.answer is None,
        part="answer",
    ),
    "format": Check(
        lambda facts, _: facts.get("reward/format") == 0,
        lambda facts, _: "no completion keeps the format (one think block, then one boxed answer)",
        "begin with a policy that knows it (SFT), or take the part out (reward.format_weight=0 reward.answer_weight=1)",
        part="format",
    ),
    "no_spread": Check(
        lambda facts, _: facts.groups > 0 and facts.spread == 0,
        lambda facts, _: f"the completions of each of {facts.groups} prompts have the same reward, so none is better",
        "raise algorithm.group_size or rollouts.temperature, or give prompts that the policy solves sometimes",
    ),
    "entropy": Check(
        lambda facts, beginning: beginning.below(facts, "entropy", _ENTROPY_LEFT),
        lambda facts, beginning: beginning.said(facts, "entropy", "the entropy has collapsed: it"),
        "lower optimizer.learning_rate, raise algorithm.clip_high, or set algorithm.entropy.target or "
        "algorithm.kl.coefficient above 0, from an earlier checkpoint",
    ),
    "length": Check(
        lambda facts, beginning: beginning.below(facts, "length/mean", _LENGTH_LEFT),
        lambda facts, beginning: beginning.said(facts, "length/mean", "completions have become short: the mean length"),
        "look whether the reward pays for short texts; reward.gates=[format] closes empty ones out, and a lower "
        "optimizer.learning_rate or algorithm.kl.coefficient above 0 slows the drift",
    ),
    "slow_rewards": Check(
        lambda facts, _: facts.get("time/rewards_wait") > max(facts.get("time/sampling"), _SHORTEST_WAIT),
        lambda facts, _: (
            f"the step sampled for {facts.get('time/sampling'):.0f} s and then waited "
            f"{facts.get('time/rewards_wait'):.0f} s for rewards"
        ),
        "raise requests_per_minute of a judge (reward.options.NAME.requests_per_minute), or reward.num_workers",
    ),
}


class Doctor:
    """Counts for how many steps in a row each check was true, and says it after `warn_after` of them, 0: never.

    A warning comes again after ten times as many steps.
    """

    def __init__(
        self,
        warn_after: int,
        needs_advantage: bool,
        tokenizer: Tokenizer,
        say: Callable[[str], None],
        paid: Collection[str] = ("answer", "format"),
    ) -> None:
        """`needs_advantage`: an update whose tokens have advantage 0 changes nothing. `paid`: parts that the reward
        depends on."""
        self.ever_applied = self.ever_learned = False
        self.num_steps = 0
        self.last_reasons: Counter[str] = Counter()  # why groups of the run were dropped
        self._warn_after, self._needs_advantage = warn_after, needs_advantage
        self._tokenizer, self._say, self._parts = tokenizer, say, {"", *paid}
        self._streaks = dict.fromkeys(CHECKS, 0)
        self._beginning = Beginning()

    def look(self, step: int, metrics: Mapping[str, float], collected: Collected) -> dict[str, float]:
        """Warn of what is wrong; the figures that metrics.jsonl keeps: for how many steps each check is true."""
        facts = facts_of(step, metrics, collected, self._needs_advantage)
        if found := self.examine(facts):
            examples = examples_of(collected.sampled, self._tokenizer, CHECKS[found[0].kind].shows)
            self._say("\n".join([*map(str, found), *map(str, examples)]))
        return {f"doctor/{kind}_steps": float(streak) for kind, streak in self._streaks.items()}

    def examine(self, facts: StepFacts) -> list[Finding]:
        """The findings that are to be said after this step."""
        self._beginning.add(facts)
        self.ever_applied |= facts.applied
        self.ever_learned |= facts.learned
        self.num_steps = facts.step
        self.last_reasons.update(facts.dropped)
        found = []
        for kind, check in CHECKS.items():
            is_true = check.part in self._parts and check.seen(facts, self._beginning)
            self._streaks[kind] = streak = self._streaks[kind] + 1 if is_true else 0
            if is_true and self._is_due(streak):
                found.append(Finding(kind, streak, check.said(facts, self._beginning), check.remedy))
        return found

    def end(self) -> None:
        """Say at the end of a run that it taught nothing. `NothingLearned` where no update was applied at all."""
        if self.num_steps and not self.ever_applied:
            raise NothingLearned(self)
        if self.num_steps and not self.ever_learned:
            self._say(
                f"doctor: in {self.num_steps} steps no completion was better than another of its prompt, so no update "
                f"had an advantage and the policy has learned nothing. {self.diagnosis()}"
            )

    def diagnosis(self) -> str:
        """Why a run did not learn: the commonest reason, and what to change."""
        true = [kind for kind, streak in self._streaks.items() if streak]
        reason = commonest(self.last_reasons)
        dropped = f"groups were dropped, most often as {reason}" if reason else "no group was dropped"
        remedies = "".join(f"\n  {kind}: {CHECKS[kind].remedy}" for kind in true)
        return f"{dropped}; true to the end:{remedies}" if remedies else dropped

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        return {
            "streaks": dict(self._streaks),
            "beginning": self._beginning.values,
            "ever_applied": self.ever_applied,
            "ever_learned": self.ever_learned,
            "num_steps": self.num_steps,
            "reasons": dict(self.last_reasons),
        }

    def restore(self, state: State) -> None:
        self._streaks |= {kind: count for kind, count in state["streaks"].items() if kind in CHECKS}
        self._beginning.values |= state["beginning"]
        self.ever_applied, self.ever_learned = state["ever_applied"], state["ever_learned"]
        self.num_steps = state["num_steps"]
        self.last_reasons = Counter(state["reasons"])

    def _is_due(self, streak: int) -> bool:
        """After `warn_after` steps, ten times as many, a hundred times as many ..."""
        due = self._warn_after
        while 0 < due < streak:
            due *= _AGAIN
        return due == streak


def facts_of(step: int, metrics: Mapping[str, float], collected: Collected, needs_advantage: bool = True) -> StepFacts:
    """A step as the doctor sees it."""
    scored = [group.scored for group in collected.sampled]
    rewards = [[t.shaped_reward for t in group] for group in scored if len(group) > 1]
    spread = sum(max(values) > min(values) for values in rewards)
    applied = metrics.get("updates", 0.0) > metrics.get("skipped_updates", 0.0)
    silent = metrics.get("zero_advantage_share", float(spread == 0)) == 1.0  # TRL does not say the share
    everything = [t for group in collected.sampled for t in group.trajectories]
    return StepFacts(
        step=step,
        applied=applied,
        learned=applied and not (needs_advantage and silent),
        metrics=metrics,
        dropped=Counter(reason for _, reason in collected.dropped),
        reasons=Counter(t.reward.reason for t in everything if not t.is_scored),
        spread=spread,
        groups=len(rewards),
    )


def examples_of(
    groups: Sequence[Group], tokenizer: Tokenizer, shows: Callable[[Trajectory], bool] = lambda _: True
) -> list[Example]:
    """Up to three completions of different prompts."""
    chosen = [(group, [t for t in group.trajectories if shows(t)]) for group in groups]
    return [
        Example(
            prompt=question_of(group.prompt.messages),
            completion=tokenizer.decode(found[0].rollout.completion_ids),
            answer=found[0].reward.answer,
            reference=group.prompt.reference,
            reward=found[0].reward.value,
        )
        for group, found in chosen
        if found
    ][:_NUM_EXAMPLES]


def _ends(text: str, most: int = 240) -> str:
    """A text in one line; of a long one the beginning and the end, where the answer should stand."""
    if len(text) <= most:
        return printable(text, most) or "(empty)"
    half = most // 2
    return f"{printable(text[:half], half)} ... {printable(text[-half:], half)} ({len(text)} characters)"
