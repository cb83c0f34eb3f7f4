"""Completions in, rewards out: the weighted sum of named parts, or an honest "unscorable"."""

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from rewards.answers import parse_completion
from rewards.config import RewardConfig
from rewards.math_answer import compare_plainly
from rewards.pool import Outcome, ScoringPool

_MAX_VERDICTS = 100_000  # remembered (answer, reference) pairs


class Status(Enum):
    ok = "ok"
    unscorable = "unscorable"


@dataclass(frozen=True)
class RewardInput:
    """All that a reward function may look at, as plain data."""

    prompt_id: str
    messages: list[dict[str, Any]]
    images: list[str]  # file paths
    reference: str
    completion: str  # decoded text, think tags kept, end of turn dropped
    thinking: str
    answer: str | None  # what stands in the last box, None without one
    token_ids: list[int]
    finish_reason: str  # stop | length
    meta: dict[str, Any]  # the data row's other columns


@dataclass(frozen=True)
class RewardResult:
    """`value` is None exactly when `status` is unscorable; then `reason` says why."""

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)
    status: Status = Status.ok
    reason: str = ""

    @property
    def correct(self) -> bool:
        """Whether the answer part is right; False for an unscorable completion."""
        return self.parts.get("answer", 0.0) >= 1.0


class TooManyUnscorable(RuntimeError):
    """The share of completions that could not be scored passed `reward.max_unscorable_share`."""

    exit_code = 3


class Rubric:
    """Scores completions. Holds worker processes: close it, or use it as a context manager."""

    window, min_seen = 1000, 200

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._pool = ScoringPool(config.num_workers, config.timeout_seconds)
        self._recent: deque[bool] = deque(maxlen=self.window)
        self._reasons_shown: set[str] = set()
        self._verdicts: dict[tuple[str, str], Outcome] = {}
        self.names = [spec.rpartition(":")[2] for spec in config.functions]
        taken = ["answer", "format"]
        for name in self.names:
            if name in taken:
                raise ValueError(f"reward.functions: the part name {name!r} is taken; rename the function")
            taken.append(name)

    def check_functions(self) -> None:
        """Load every user function in a worker now, so that a bad path fails before anything runs."""
        outcomes = self._pool.run([{"kind": "load", "function": spec} for spec in self.config.functions])
        for spec, outcome in zip(self.config.functions, outcomes, strict=True):
            if outcome.value is None:
                reason = outcome.reason
                raise ValueError(reason if spec in reason else f"reward.functions: {spec!r}: {reason}")

    def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
        """One result per input, in order. `TooManyUnscorable` when failures pass the configured rate."""
        answers = self._score_answers(inputs)
        tasks = [
            {"kind": "call", "function": spec, "input": asdict(item)}
            for item in inputs
            for spec in self.config.functions
        ]
        calls = self._pool.run(tasks)
        per_item = len(self.config.functions)
        results = [
            self._combine(item, answers[i], calls[i * per_item : (i + 1) * per_item]) for i, item in enumerate(inputs)
        ]
        self._watch(results)
        return results

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> "Rubric":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score_answers(self, inputs: Sequence[RewardInput]) -> list[Outcome]:
        """Plain numbers are decided here; what takes mathematics goes to the pool once per distinct pair."""
        outcomes: list[Outcome | None] = []
        for item in inputs:
            plain = False if item.answer is None else compare_plainly(item.answer, item.reference)
            outcomes.append(None if plain is None else Outcome(float(plain)))
        pairs = [(item.answer or "", item.reference) for item in inputs]
        open_pairs = sorted(
            {pair for pair, done in zip(pairs, outcomes, strict=True) if done is None and pair not in self._verdicts}
        )
        verdicts = self._pool.run([{"kind": "math", "answer": a, "reference": r} for a, r in open_pairs])
        if len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.clear()
        fresh = dict(zip(open_pairs, verdicts, strict=True))
        # A failure may be the machine's: it is asked again when the pair comes again.
        self._verdicts |= {pair: verdict for pair, verdict in fresh.items() if verdict.value is not None}
        known = self._verdicts | fresh
        return [done or known[pair] for pair, done in zip(pairs, outcomes, strict=True)]

    def _combine(self, item: RewardInput, answer: Outcome, calls: Sequence[Outcome]) -> RewardResult:
        for name, outcome in zip(["answer", *self.names], [answer, *calls], strict=True):
            if outcome.value is None:
                self._show_once(name, outcome)
                return RewardResult(None, {}, Status.unscorable, f"{name}: {outcome.reason}")
        parts = {"answer": answer.value or 0.0, "format": float(parse_completion(item.completion).well_formed)}
        parts |= {name: outcome.value or 0.0 for name, outcome in zip(self.names, calls, strict=True)}
        weights = [self.config.answer_weight, self.config.format_weight, *self.config.weights]
        value = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        return RewardResult(value, parts)

    def _show_once(self, name: str, outcome: Outcome) -> None:
        # The same line raising with other words is the same failure: the last line of a traceback does not count.
        failure = outcome.traceback.rstrip().rpartition("\n")[0] or outcome.reason
        if failure not in self._reasons_shown:
            self._reasons_shown.add(failure)
            detail = f"\n{outcome.traceback}" if outcome.traceback else ""
            print(f"reward part {name!r} is unscorable: {outcome.reason}{detail}", file=sys.stderr)

    def _watch(self, results: Sequence[RewardResult]) -> None:
        self._recent.extend(result.status is Status.unscorable for result in results)
        share = sum(self._recent) / max(1, len(self._recent))
        if len(self._recent) >= self.min_seen and share > self.config.max_unscorable_share:
            reason = next((r.reason for r in reversed(results) if r.status is Status.unscorable), "")
            raise TooManyUnscorable(
                f"reward.max_unscorable_share: expected at most {self.config.max_unscorable_share:.1%} of the last "
                f"{len(self._recent)} completions unscorable, found {share:.1%}; latest reason: {reason}"
            )
