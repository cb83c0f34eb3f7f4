"""Both modes of a policy on held-out prompts: what `rlhf.evaluate` reports, and what training watches."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import StoredDtype
from model.engine.base import TrainEngine
from model.interface import Mode
from model.json_values import JsonObject
from model.processing.processor import Processor
from model.run.failpoints import reach
from model.run.folder import RunFolder
from model.run.state import State
from rewards.rubric import Rubric
from rlhf.config import EvaluationConfig
from rlhf.prompts import PromptSet, Task
from rlhf.rewarding import name_failures, reward
from rollouts.rollout import Prompt, RolloutWorker, generate

FIRST_GROUP_INDEX = 2**40
"""Group indices of evaluations during training start here, so that no group of training shares their randomness."""

_OF_GROUPS = ("accuracy_think", "accuracy_direct", "score_think", "score_direct")

PORTION = 128
"""Prompts whose pixels are held at once."""


@dataclass(frozen=True)
class Answers:
    """The answers of one mode to every prompt: one list per prompt, None for a completion that could not be scored."""

    right: list[list[bool | None]]
    scores: list[list[float | None]]
    formatted: list[float]
    lengths: list[int]

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """To the prompts of all parts, in order."""
        return cls(
            [group for part in parts for group in part.right],
            [group for part in parts for group in part.scores],
            [value for part in parts for value in part.formatted],
            [length for part in parts for length in part.lengths],
        )

    def only(self, numbers: Sequence[int]) -> "Answers":
        """The answers to the prompts of these numbers, without their form and length."""
        return Answers([self.right[number] for number in numbers], [self.scores[number] for number in numbers], [], [])

    @property
    def accuracy(self) -> float | None:
        """pass@1: share of right completions among the scorable ones; None where there are none."""
        return _mean([float(right) for group in self.right for right in group if right is not None])

    @property
    def score(self) -> float | None:
        """Mean of the answer part among the scorable completions: the benchmark's number where a verifier grades."""
        return _mean([score for group in self.scores for score in group if score is not None])

    @property
    def pass_at_k(self) -> float | None:
        """Share of prompts with a right completion among their k, of those with a scorable one; None without any."""
        return _mean([float(any(group)) for group in self.right if any(right is not None for right in group)])

    @property
    def num_unscorable(self) -> int:
        return sum(right is None for group in self.right for right in group)


def ask(
    tasks: Sequence[Task],
    worker: RolloutWorker,
    rubric: Rubric,
    processor: Processor,
    num_samples: int = 1,
    greedy: bool = False,
    first_group_index: int = 0,
) -> Answers:
    """Put every task, `num_samples` completions each."""
    requests = [task.request(first_group_index + number, num_samples, greedy) for number, task in enumerate(tasks)]
    reach("ask")
    rollouts = generate(worker, requests)
    name_failures(rollouts)
    reach("score")
    rewarded = [pair for group in reward(tasks, rollouts, rubric, processor.tokenizer) for pair in group]
    results = [result for _, result in rewarded]
    groups = [results[start : start + num_samples] for start in range(0, len(results), num_samples)]
    return Answers(
        right=[[one.correct if one.is_judged else None for one in group] for group in groups],
        scores=[[one.answer_value if one.is_judged else None for one in group] for group in groups],
        formatted=[result.parts.get("format") or 0.0 for result in results if result.value is not None],
        lengths=[len(rollout.completion_ids) for rollout, _ in rewarded],
    )


def evaluate_modes(
    prompts: PromptSet,
    count: int,
    worker: RolloutWorker,
    rubric: Rubric,
    processor: Processor,
    num_samples: int = 1,
    first_group_index: int = 0,
    group_by: str = "",
) -> JsonObject:
    """Accuracy thinking (greedy, and sampled with pass@k) and direct (greedy), format rate and mean length.

    `prompts` were opened for thinking; the first `count` are asked, 0 asks all.
    Accuracies are shares of scorable completions, scores the means of their answer part (ANLS is one), None where there
    are none; `num_unscorable` counts the others. `majority_answer_rate` is the accuracy of always giving the most
    common reference. With `group_by` the values of that column are told apart.
    `ValueError` when nothing could be scored.
    """
    if group_by and not any(group_by in row.prompt.meta for row in prompts.items):
        raise ValueError(f"evaluation.group_by: expected a column of the prompts, found no row with {group_by!r}")
    asked: list[Prompt] = []
    answers: list[tuple[Answers, Answers, Answers]] = []
    for tasks in prompts.portions(count, PORTION):
        index = first_group_index + len(asked)
        greedy = ask(tasks, worker, rubric, processor, greedy=True, first_group_index=index)
        drawn = ask(tasks, worker, rubric, processor, num_samples, first_group_index=index)
        plain = [prompts.by_id(task.prompt.id, Mode.direct) for task in tasks]
        answers.append((greedy, drawn, ask(plain, worker, rubric, processor, greedy=True, first_group_index=index)))
        asked += [task.prompt for task in tasks]
    if not asked:
        raise ValueError("evaluation: expected a prompt whose images can be read, found none among those asked for")
    thinking, sampled, answered = map(Answers.joined, zip(*answers, strict=True))
    if thinking.num_unscorable == len(asked):
        raise ValueError(f"evaluation: none of {len(asked)} completions could be scored")
    references = [prompt.reference for prompt in asked]
    return {
        "accuracy_think": thinking.accuracy,
        "accuracy_think_sampled": sampled.accuracy,
        **({f"pass_at_{num_samples}": sampled.pass_at_k} if num_samples > 1 else {}),
        "accuracy_direct": answered.accuracy,
        "score_think": thinking.score,
        "score_think_sampled": sampled.score,
        "score_direct": answered.score,
        "format_rate": _mean(thinking.formatted),
        "mean_length": _mean(thinking.lengths),
        "mean_length_sampled": _mean(sampled.lengths),
        "mean_length_direct": _mean(answered.lengths),
        "num_eval": len(references),
        "num_unscorable": thinking.num_unscorable + sampled.num_unscorable + answered.num_unscorable,
        "majority_answer_rate": Counter(references).most_common(1)[0][1] / len(references),
        **({"by_group": _by_group(asked, thinking, answered, group_by)} if group_by else {}),
    }


def _by_group(
    asked: Sequence[Prompt], thinking: Answers, answered: Answers, column: str
) -> dict[str, dict[str, float | None]]:
    """For each value of a column: its accuracies, number of prompts, and that of its most common answer."""
    members: dict[str, list[int]] = {}
    for number, prompt in enumerate(asked):
        members.setdefault(str(prompt.meta.get(column, "")), []).append(number)
    return {
        value: {
            "accuracy_think": thinking.only(numbers).accuracy,
            "accuracy_direct": answered.only(numbers).accuracy,
            "score_think": thinking.only(numbers).score,
            "score_direct": answered.only(numbers).score,
            "num_eval": len(numbers),
            "majority_answer_rate": Counter(asked[n].reference for n in numbers).most_common(1)[0][1] / len(numbers),
        }
        for value, numbers in sorted(members.items())
    }


class Evaluator:
    """Evaluates a run now and then, keeps the best policy in RUN/best, and says when to stop early.

    Without held-out prompts it does nothing.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        engine: TrainEngine,
        processor: Processor,
        worker: RolloutWorker,
        rubric: Rubric,
        prompts: PromptSet | None,
        dtype: StoredDtype = StoredDtype.keep,
    ) -> None:
        """`engine` holds the weights that train, `prompts` what is held out, opened for thinking. The best policy is
        stored as `dtype`."""
        self.config = config
        self.best: float | None = None
        self.best_step = 0
        self.without_new_best = 0
        self._engine, self._processor, self._worker, self._rubric = engine, processor, worker, rubric
        self._prompts, self._dtype = prompts, dtype

    @property
    def stops(self) -> bool:
        """Whether patience ran out."""
        return 0 < self.config.patience <= self.without_new_best

    def start(self, step: int, run: RunFolder) -> None:
        """Evaluate what a run starts from."""
        if step == 0:
            self.evaluate_if_due(0, 0, run)
        elif self.best is not None and not (run.folder / "best").exists():
            gone = run.folder / "best"
            print(f"{gone} is gone, the policy of step {self.best_step}; the next better one is kept", file=sys.stderr)

    def is_due(self, step: int, last: int) -> bool:
        """Whether the policy after `step` steps is evaluated."""
        return self._prompts is not None and (step % self.config.every == 0 or step == last)

    def evaluate_if_due(self, step: int, last: int, run: RunFolder) -> dict[str, float]:
        """Evaluate the policy after `step` steps; what metrics.jsonl keeps of it, empty when it is not due."""
        if self._prompts is None or not self.is_due(step, last):
            return {}
        result = evaluate_modes(
            self._prompts,
            self.config.num_prompts,
            self._worker,
            self._rubric,
            self._processor,
            self.config.num_samples,
            FIRST_GROUP_INDEX,
            self.config.group_by,
        )
        self._rubric.take_metrics()  # these completions are no part of the step
        self._compare(result[f"accuracy_{self.config.metric.value}"], step, run)
        run.append("evaluations.jsonl", step, [result])
        by_group = result.get("by_group", {})
        kept = {name: n for name, n in result.items() if name != "by_group" and not name.startswith("majority")}
        for group, numbers in by_group.items():
            kept |= {f"{group}/{name}": numbers[name] for name in _OF_GROUPS}
        kept["best"] = self.best
        return {f"eval/{name}": math.nan if number is None else float(number) for name, number in kept.items()}

    def _compare(self, value: float | None, step: int, run: RunFolder) -> None:
        """Keep the policy if it is the best so far. An evaluation without a number is neither better nor worse."""
        if value is None:
            print(f"step {step}: no {self.config.metric.value} completion could be scored", file=sys.stderr)
        elif self.best is None or value > self.best:
            self.best, self.best_step, self.without_new_best = value, step, 0
            with run.space_for("best"):
                self._engine.export(run.folder / "best", self._processor, self._dtype)
        else:
            self.without_new_best += 1
        if self.stops:
            print(
                f"step {step}: no better {self.config.metric.value} accuracy than {self.best:.1%} of step "
                f"{self.best_step} in {self.without_new_best} evaluations; the run ends",
                file=sys.stderr,
            )

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        best = [self.best, self.best_step, self.without_new_best]
        return {"best": best, "bad_rows": [] if self._prompts is None else self._prompts.bad_rows.state()}

    def restore(self, state: State) -> None:
        self.best, self.best_step, self.without_new_best = state["best"]
        if self._prompts is not None:
            self._prompts.bad_rows.restore(state["bad_rows"])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
