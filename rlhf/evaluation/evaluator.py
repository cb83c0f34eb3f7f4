"""Both modes of a policy on held-out prompts: what `rlhf.evaluate` reports, and what training watches."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence

from model.config import StoredDtype
from model.engine.base import TrainEngine
from model.json_values import JsonObject
from model.processing.processor import Processor
from model.run.folder import RunFolder
from model.run.state import State
from rewards.rubric import Rubric
from rlhf.config import BOTH_MODES, EvaluationConfig, EvaluationMode
from rlhf.evaluation.answers import Answer, ask
from rlhf.evaluation.figures import result_of
from rlhf.evaluation.responses import Responses
from rlhf.prompts import PromptSet
from rlhf.rewarding import Scoring
from rollouts.rollout import Prompt, RolloutWorker

FIRST_GROUP_INDEX = 2**40
"""Group indices of evaluations during training start here, so that no group of training shares their randomness."""

_OF_GROUPS = tuple(f"{what}_{mode}" for what in ("accuracy", "score") for mode in ("think", "direct", "auto"))
_OF_METRICS = (
    *(
        "accuracy",
        "score",
        "reward",
        "pass",
        "majority",
        "format",
        "mean",
        "num",
        "mode_obedience",
        "overthinking_share",
        "thought",
        "decision",
    ),
)
"""How figures of an evaluation begin that metrics.jsonl keeps."""

PORTION = 64
"""Prompts whose pixels are held at once."""


def evaluate_modes(
    prompts: PromptSet,
    count: int,
    worker: RolloutWorker,
    scoring: Scoring,
    processor: Processor,
    num_samples: int = 1,
    first_group_index: int = 0,
    group_by: str = "",
    modes: Sequence[EvaluationMode] = BOTH_MODES,
    keep: Callable[[Sequence[JsonObject]], None] = lambda lines: None,
) -> JsonObject:
    """Accuracy thinking (greedy, and sampled with pass@k), direct (greedy) and as the model judges (greedy), format
    rate, lengths and more, of the modes that are asked for.

    `prompts` were opened for the longest of the modes (`longest_mode`); the first `count` are asked, 0 asks all. `keep`
    is given the lines of the answers, portion by portion.
    Accuracies are shares of judged completions, scores the means of their answer part (ANLS is one), None where there
    are none; `num_unscorable` counts completions without a reward. `majority_answer_rate` is the accuracy of always
    giving the most common reference. With `group_by` the values of that column are told apart.
    `ValueError` when nothing could be scored.
    """
    if group_by and not any(group_by in row.prompt.meta for row in prompts.items):
        raise ValueError(f"evaluation.group_by: expected a column of the prompts, found no row with {group_by!r}")
    asked, answers = answers_of(prompts, count, worker, scoring, processor, num_samples, first_group_index, modes, keep)
    return result_of(asked, answers, num_samples, group_by)


def answers_of(
    prompts: PromptSet,
    count: int,
    worker: RolloutWorker,
    scoring: Scoring,
    processor: Processor,
    num_samples: int = 1,
    first_group_index: int = 0,
    modes: Sequence[EvaluationMode] = BOTH_MODES,
    keep: Callable[[Sequence[JsonObject]], None] = lambda lines: None,
    responses: Mapping[EvaluationMode, Responses] | None = None,
) -> tuple[list[Prompt], dict[EvaluationMode, list[Answer]]]:
    """(what was asked, the answers of each mode), portion by portion; see `evaluate_modes`.

    Completions that `responses` keeps are not asked again.
    """
    asked: list[Prompt] = []
    answers: dict[EvaluationMode, list[Answer]] = {mode: [] for mode in modes}
    for tasks in prompts.portions(count, PORTION):
        index = first_group_index + len(asked)
        for mode, found in answers.items():
            put = [task if task.mode is mode.asked else prompts.by_id(task.prompt.id, mode.asked) for task in tasks]
            kept = responses[mode] if responses else None
            pairs = ask(put, mode, worker, scoring, processor.tokenizer, num_samples, index, kept)
            found += [answer for answer, _ in pairs]
            keep([line for _, line in pairs])
        asked += [task.prompt for task in tasks]
    if not asked:
        raise ValueError("evaluation: expected a prompt whose images can be read, found none among those asked for")
    everything = [one for found in answers.values() for one in found]
    if all(one.is_unscorable for one in everything):
        raise ValueError(f"evaluation: none of {len(everything)} completions could be scored")
    return asked, answers


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
        say: Callable[[str], None] = print,
    ) -> None:
        """`engine` holds the weights that train, `prompts` what is held out, opened for the longest mode. The best
        policy is stored as `dtype`. `say` tells a person what an evaluation gave."""
        self.config = config
        self.best: float | None = None
        self.best_step = 0
        self.without_new_best = 0
        self._engine, self._processor, self._worker, self._rubric = engine, processor, worker, rubric
        self._prompts, self._dtype, self._say = prompts, dtype, say

    @property
    def stops(self) -> bool:
        """Whether patience ran out."""
        return 0 < self.config.patience <= self.without_new_best

    def start(self, step: int, run: RunFolder) -> None:
        """Evaluate what a run starts from. A run that ended early before is told that it does not go on."""
        if step == 0:
            self.evaluate_if_due(0, 0, run)
        if step and self.stops:
            print(
                f"step {step}: the run ended early, after {self.without_new_best} evaluations without a new best, and "
                "takes no more steps; evaluation.patience=0 run.accept_changes=[evaluation.patience] goes on",
                file=sys.stderr,
            )
        if step and self.best is not None and not (run.folder / "best").exists():
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
            self.config.modes,
        )
        self._rubric.take_metrics()  # these completions are no part of the step
        what = "accuracy" if self._rubric.config.pays_answers else "reward"
        self._compare(result[f"{what}_{self.config.metric.value}"], what, step, run)
        run.append("evaluations.jsonl", step, [result])
        self._say(f"  held out, step {step}: {summary(result, what)}{self._place()}")
        kept = {name: number for name, number in result.items() if name.startswith(_OF_METRICS)}
        for group, numbers in result.get("by_group", {}).items():
            kept |= {f"{group}/{name}": numbers[name] for name in _OF_GROUPS if name in numbers}
        kept["best"] = self.best
        return {f"eval/{name}": math.nan if number is None else float(number) for name, number in kept.items()}

    def _place(self) -> str:
        name = self.config.metric.value
        return "" if self.best is None else f"; best {name} {self.best:.3g} of step {self.best_step}"

    def _compare(self, value: float | None, what: str, step: int, run: RunFolder) -> None:
        """Keep the policy if it is the best so far. An evaluation without a number is neither better nor worse."""
        if value is None:
            print(f"step {step}: no {self.config.metric.value} completion could be scored", file=sys.stderr)
        elif self.best is None or value > self.best:
            self.best, self.best_step, self.without_new_best = value, step, 0
            with run.space_for("best"):
                self._engine.export(run.folder / "best", self._processor, self._dtype)
        else:
            self.without_new_best += 1
        if self.stops and self.best is not None:
            best = f"{self.best:.1%}" if what == "accuracy" else f"{self.best:.3f}"
            print(
                f"step {step}: no better {self.config.metric.value} {what} than {best} of step "
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


def summary(result: JsonObject, what: str = "accuracy") -> str:
    """The modes of a result in a line."""
    parts = []
    for mode, found in result.get("modes", {}).items():
        share = "-" if found[what] is None else f"{found[what]:.1%}" if what == "accuracy" else f"{found[what]:.3f}"
        parts.append(f"{mode} {share} (length {found['mean_length']:.0f}, cut off {found['cut_off_share']:.0%})")
    return ", ".join(parts)
