"""What evaluations say where nothing could be scored, and what they do to the best policy and to patience."""

import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rewards.config import RewardConfig
from rlhf.config import EvaluationConfig, EvaluationMode
from rlhf.evaluation.evaluator import Evaluator


@pytest.fixture
def evaluate(monkeypatch):
    """Evaluates with these accuracies of the direct mode, one a step; returns (metrics of each, exported steps, the
    evaluator)."""

    def run(
        *accuracies: float | None, patience: int = 2, **reward: Any
    ) -> tuple[list[dict[str, float]], list[int], Evaluator]:
        exported: list[int] = []
        step = 0

        class Run:
            folder = Path("run")

            @contextmanager
            def space_for(self, what):
                yield

            def append(self, *_):
                pass

        engine = SimpleNamespace(export=lambda *_: exported.append(step))
        rubric = SimpleNamespace(take_metrics=dict, config=RewardConfig(**reward))
        config = EvaluationConfig(prompts="p", every=1, metric=EvaluationMode.direct, patience=patience)
        made = Evaluator(config, cast(Any, engine), cast(Any, None), cast(Any, None), cast(Any, rubric), cast(Any, "p"))
        found = []
        for step, accuracy in enumerate(accuracies):
            group = {"accuracy_think": 0.5, "accuracy_direct": accuracy, "score_think": 0.5, "score_direct": accuracy}
            figures = {"accuracy": accuracy, "reward": step / 8, "mean_length": 7.0, "cut_off_share": 0.25}
            result = {"accuracy_think": 0.5, "accuracy_direct": accuracy, "by_group": {"sum": group}, "num_eval": 2}
            result["reward_direct"] = step / 8
            result["modes"] = {"direct": figures}
            monkeypatch.setattr("rlhf.evaluation.evaluator.evaluate_modes", lambda *_, result=result: result)
            found.append(made.evaluate_if_due(step, 9, cast(Any, Run())))
        return found, exported, made

    return run


def test_an_evaluation_without_a_number_is_neither_best_nor_counted(evaluate, capsys):
    found, exported, made = evaluate(None, 0.25, None, None, 0.5, None)
    assert exported == [1, 4] and (made.best, made.best_step, made.without_new_best) == (0.5, 4, 0)
    assert not made.stops and capsys.readouterr().err.count("no direct completion could be scored") == 4
    best = [one["eval/best"] for one in found]
    assert math.isnan(best[0]) and best[1:] == [0.25, 0.25, 0.25, 0.5, 0.5]
    assert math.isnan(found[0]["eval/accuracy_direct"]) and math.isnan(found[0]["eval/sum/accuracy_direct"])
    assert (found[0]["eval/accuracy_think"], found[0]["eval/num_eval"]) == (0.5, 2.0)


def test_each_evaluation_reaches_the_terminal(evaluate, capsys):
    evaluate(0.25, None)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "  held out, step 0: direct 25.0% (length 7, cut off 25%); best direct 0.25 of step 0"
    assert second.startswith("  held out, step 1: direct - (length 7")


def test_the_reward_decides_where_answers_are_not_rewarded(evaluate, capsys):
    _, exported, made = evaluate(0.5, 0.0, answer_weight=0.0, format_weight=1.0)
    assert exported == [0, 1] and (made.best, made.best_step) == (0.125, 1)
    assert "step 1: direct 0.125 (length 7" in capsys.readouterr().out


def test_zero_is_a_number(evaluate):
    found, exported, made = evaluate(0.0, 0.0, None, 0.0)
    assert exported == [0] and made.stops and [one["eval/best"] for one in found] == [0.0] * 4
