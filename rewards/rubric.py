"""Completions in, rewards out: named parts combined as configured, or an honest "unscorable"."""

import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from model.run.printable import printable
from rewards.answers import AnswerRule, extract
from rewards.config import DEFAULT_REQUESTS_PER_MINUTE, Combine, RewardConfig, dataset_of, earning
from rewards.result import CallResult, CallStyle, Claim, Outcome, RewardInput, RewardResult, Status
from rewards.sandbox.pool import ScoringPool
from rewards.sandbox.tasks import CallOne, CallSiblings, Load
from rewards.scoring import Scorer
from rewards.verifiers.registry import check_options

_NOT_APPLICABLE = "not_applicable/"
_LARGE = 5.0  # values beyond it, or below its negative, are remarked on: weights are meant for values up to 1


class TooManyUnscorable(RuntimeError):
    """The share of completions that could not be scored passed `reward.max_unscorable_share`."""

    exit_code = 3


class Rubric:
    """Scores completions. It holds scorer processes: close it, or use it as a context manager."""

    window, min_seen = 1000, 200
    most_shown = 5  # different failures of a part that are printed

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.step, self.max_steps = 0, 0  # the trainer's state, which functions may ask for
        self._pool = ScoringPool(config.num_workers, config.timeout_seconds)
        self._scorer = Scorer(self._pool)
        self._recent: deque[bool] = deque(maxlen=self.window)
        self._large_shown: set[str] = set()
        self._reasons_shown: dict[str, set[str]] = {}  # by part
        self._metrics: dict[str, list[float]] = {}
        self._weights = config.weights
        self._functions: dict[str, CallStyle] = {}  # how each function is called; filled when it is loaded
        self._check_options()

    def check_functions(self) -> None:
        """Load every user function in a scorer process now, so that a bad path or option fails before anything runs."""
        specs = [*self.config.functions, *self.config.answer_functions]
        outcomes = self._pool.run([Load(spec, self._options(_name(spec))) for spec in specs])
        for spec, outcome in zip(specs, outcomes, strict=True):
            if outcome.value is None:
                reason = outcome.reason.removeprefix("load: ")
                reason = reason if spec in reason else f"reward.functions: {spec!r}: {reason}"
                raise ValueError(reason.replace("reward.functions:", f"{self.config.key_of(spec)}:", 1))
            self._functions[spec] = outcome.value

    def check_datasets(self, rows: Iterable[Mapping[str, object]]) -> None:
        """`ValueError` for a name in `reward.datasets` that is the data set of none of these rows' columns."""
        if not self.config.datasets:
            return
        found = {dataset_of(columns) for columns in rows}
        if unknown := sorted(set(self.config.datasets) - found):
            raise ValueError(
                f"reward.datasets: expected names of data sets among {', '.join(sorted(found))}, found {unknown[0]!r}"
            )

    def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
        """Return one result per input, in order. `TooManyUnscorable` when failures pass the configured rate."""
        if self.config.answer_rules != [AnswerRule.boxed]:
            inputs = [replace(item, answer=extract(item.completion, self.config.answer_rules)) for item in inputs]
        weights = [self.config.weights_of(dataset_of(item.meta)) for item in inputs]
        functions = dict(zip(self.config.function_names, self.config.functions, strict=True))
        outcomes: list[dict[str, Outcome[float]]] = [{} for _ in inputs]
        for name in self.config.weights:
            asked = [i for i, own in enumerate(weights) if name in own]
            some = [inputs[i] for i in asked]
            if name in functions:
                found = self._call(name, functions[name], some)
                self._remark_large(name, [outcome.value for outcome in found if outcome.value is not None])
            elif name == "answer":
                found = self._answers(some)
            else:
                found = self._scorer.score(name, [_claim(item) for item in some], self._options(name))
            for i, outcome in zip(asked, found, strict=True):
                outcomes[i][name] = outcome
        combined = map(self._combine, outcomes, weights)
        results = [replace(result, answer=item.answer) for result, item in zip(combined, inputs, strict=True)]
        self._watch(results)
        return results

    def take_metrics(self) -> dict[str, float]:
        """Return metrics since the last call: means of what functions logged, shares of parts that did not apply."""
        means = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        return {name: mean for name, mean in means.items() if mean or not name.startswith(_NOT_APPLICABLE)}

    def awaited(self) -> str:
        """Say who is waited for while scores are missing, and how many requests a judge takes."""
        limits = []
        for name in (*self.config.function_names, *map(_name, self.config.answer_functions)):
            endpoint = self._options(name).get("base_url")
            if endpoint:
                rate = self._options(name).get("requests_per_minute", DEFAULT_REQUESTS_PER_MINUTE)
                limits.append(
                    f"the judge endpoint of {name} (reward.options.{name}.requests_per_minute = {rate:g} for each of "
                    f"reward.num_workers = {self.config.num_workers} scorer processes)"
                )
        return ", ".join(limits) or "the rewards"

    def state(self) -> dict[str, list[int]]:
        """Return the state for a checkpoint: which of the latest completions were unscorable."""
        return {"unscorable": [int(value) for value in self._recent]}

    def restore(self, state: Mapping[str, list[int]]) -> None:
        self._recent = deque(map(bool, state["unscorable"]), maxlen=self.window)

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> "Rubric":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_options(self) -> None:
        """Refuse unknown verifiers, options that belong to no part, and wrong options, before anything runs."""
        config = self.config
        verifiers = {*config.verifiers, *(["format"] if config.has_answers else []), *config.parts}
        for name in sorted(verifiers):
            check_options(name, self._options(name))
        functions = {*config.function_names, *map(_name, config.answer_functions)}
        unused = set(config.options) - verifiers - functions
        if unused:
            known = sorted(verifiers | functions)
            raise ValueError(f"reward.options: expected options of {known}, found some of {sorted(unused)[0]!r}")

    def _options(self, name: str) -> dict[str, object]:
        return self.config.options.get(name, {})

    def _answers(self, inputs: Sequence[RewardInput]) -> list[Outcome[float]]:
        """Return the answer part, judged by the verifier or the function of each row's data set."""
        routes = [self.config.verifier_of(dataset_of(item.meta)) for item in inputs]
        outcomes: list[Outcome[float]] = [Outcome()] * len(inputs)
        for verifier in sorted(set(routes)):
            where = [i for i, route in enumerate(routes) if route == verifier]
            some = [inputs[i] for i in where]
            if verifier in self.config.answer_functions:
                found = self._call(_name(verifier), verifier, some)
                self._remark_large("answer", [outcome.value for outcome in found if outcome.value is not None])
            else:
                found = self._scorer.score(verifier, [_claim(item) for item in some], self._options(verifier))
            for i, outcome in zip(where, found, strict=True):
                outcomes[i] = outcome
        return outcomes

    def _call(self, name: str, spec: str, inputs: Sequence[RewardInput]) -> list[Outcome[float]]:
        """Make a task per completion, or per prompt where a function wants siblings; a failure costs its task alone."""
        if spec not in self._functions:
            self.check_functions()
        style, options = self._functions[spec], self._options(name)
        limits = {"timeout_seconds": style.timeout_seconds, "memory_mb": style.memory_mb}
        if style.one_by_one:
            return self._pool.run([CallOne(spec, item, options, i, **limits) for i, item in enumerate(inputs)])
        groups = [list(group) for _, group in groupby(inputs, key=lambda item: (item.prompt_id, item.draw))]
        tasks = [CallSiblings(spec, group, options, self.step, self.max_steps, **limits) for group in groups]
        outcomes: list[Outcome[float]] = []
        for group, outcome in zip(groups, self._pool.run(tasks), strict=True):
            if outcome.value is None:
                failed = Outcome(None, outcome.status, outcome.reason, outcome.traceback, outcome.seconds)
                outcomes += [failed] * len(group)
                continue
            for metric, values in outcome.value.metrics.items():
                self._metrics.setdefault(metric, []).extend(values)
            outcomes += map(_call_outcome, outcome.value.results)
        return outcomes

    def _combine(self, outcomes: Mapping[str, Outcome[float]], weights: Mapping[str, float]) -> RewardResult:
        """Make the reward of one completion of the parts that it was asked about."""
        for name, outcome in outcomes.items():
            if outcome.status is Status.unscorable:
                matters = bool(weights[name]) or name in self.config.gates
                self._show_once(name, outcome, matters)
                if not matters:
                    continue
                return RewardResult(None, {}, Status.unscorable, f"{name}: {outcome.reason}")
        parts = {name: outcome.value for name, outcome in outcomes.items()}
        for name, value in parts.items():
            self._metrics.setdefault(f"{_NOT_APPLICABLE}{name}", []).append(float(value is None))
        applicable = {name: value for name, value in parts.items() if value is not None}
        if not earning(weights).keys() & applicable.keys():
            return RewardResult(None, parts, Status.unscorable, "no part that earns applies")
        if any(applicable.get(gate, 1.0) < 1.0 for gate in self.config.gates):
            return RewardResult(0.0, parts)
        if self.config.combine is not Combine.weighted_sum:
            if not self.config.multiplied(weights) & applicable.keys():
                return RewardResult(None, parts, Status.unscorable, "no part of the product applies")
            return RewardResult(self._product(applicable, weights), parts)
        return RewardResult(_weighted_sum(applicable, weights), parts)

    def _product(self, parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
        """Multiply the parts that earn, the format apart where it is added. Penalties are added with their weights,
        because their best value is 0."""
        earned, multiplied = earning(weights), self.config.multiplied(weights)
        penalties = sum(weights[name] * part for name, part in parts.items() if name not in earned)
        product = math.prod(part for name, part in parts.items() if name in multiplied)
        if self.config.combine is Combine.product_plus_format:
            share = weights.get("format", 0.0)
            product = (1.0 - share) * product + share * parts.get("format", 0.0)
        return product + penalties

    def _show_once(self, name: str, outcome: Outcome[float], matters: bool) -> None:
        # A line that raises again with other words is the same failure, so the last line of a traceback does not count.
        failure = outcome.traceback.rstrip().rpartition("\n")[0] or outcome.reason
        shown = self._reasons_shown.setdefault(name, set())
        if failure in shown or len(shown) > self.most_shown:
            return
        shown.add(failure)
        if len(shown) > self.most_shown:
            print(f"reward part {name!r}: further failures are counted, not shown", file=sys.stderr)
            return
        detail = "".join(f"\n{printable(line)}" for line in outcome.traceback.rstrip().split("\n") if line)
        weight = "" if matters else " (it is only logged, its weight is 0)"
        print(f"reward part {name!r} is unscorable: {printable(outcome.reason)}{weight}{detail}", file=sys.stderr)

    def _remark_large(self, name: str, values: Sequence[float]) -> None:
        """Say once that a part's values outweigh all others. They count as they are."""
        largest = max(values, key=abs, default=0.0)
        if abs(largest) > _LARGE and name not in self._large_shown:
            self._large_shown.add(name)
            print(
                f"reward part {name!r} gave {largest:g}, far beyond 1; with its weight of {self._weights[name]:g} it "
                f"adds {self._weights[name] * largest:g} to a reward; let the function divide, or lower its weight, "
                "unless that is meant",
                file=sys.stderr,
            )

    def _watch(self, results: Sequence[RewardResult]) -> None:
        """Count one completion after the other: how many are scored at a time must not decide whether a run ends."""
        reason = ""
        for result in results:
            is_unscorable = result.status is Status.unscorable
            reason = result.reason if is_unscorable else reason
            self._recent.append(is_unscorable)
            share = sum(self._recent) / len(self._recent)
            if len(self._recent) >= self.min_seen and share > self.config.max_unscorable_share:
                raise TooManyUnscorable(
                    f"reward.max_unscorable_share: expected at most {self.config.max_unscorable_share:.1%} of the last "
                    f"{len(self._recent)} completions unscorable, found {share:.1%}; latest reason: {reason}"
                )


def _weighted_sum(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Sum the parts. Weights of parts that do not apply go to those that do; penalties keep theirs."""
    value = sum(weights[name] * part for name, part in parts.items())
    if len(parts) == len(weights):
        return value
    earned = earning(weights)
    gain = sum(weight * parts[name] for name, weight in earned.items() if name in parts)
    present = sum(weight for name, weight in earned.items() if name in parts)
    return gain * sum(earned.values()) / present + (value - gain)


def _name(spec: str) -> str:
    """The name of a function, by which options are given to it."""
    return spec.rpartition(":")[2]


def _claim(item: RewardInput) -> Claim:
    length, mode = len(item.token_ids), item.mode
    return Claim(item.completion, item.answer, item.reference, item.meta, length, item.finish_reason, mode)


def _call_outcome(found: CallResult) -> Outcome[float]:
    if found.reason:
        return Outcome(None, Status.unscorable, found.reason, found.traceback)
    return Outcome(found.value)
