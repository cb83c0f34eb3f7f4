"""Rows whose data set has a reward of its own, in the loop of RL: what is read, shown, trained and counted of them."""

import json

import pytest

from model.interface import Mode
from rewards.config import RewardConfig
from rewards.result import RewardResult
from rlhf.algorithms.config import GroupFilter
from rlhf.algorithms.filters import drop_reason
from rlhf.collect import Collector
from rlhf.planning.inputs import digest_of_functions, inputs_of
from rlhf.planning.limits import describe
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from tests.rlhf.groups import group

UNANSWERED = {"captions": {"weights": {"answer": 0, "format": 1}}}


def unjudged(*values: float):
    """A group of a data set whose answers are not asked about."""
    made = group(0, *values)
    for one in made.trajectories:
        object.__setattr__(one, "reward", RewardResult(one.reward.value, {"format": 1.0}))
    return made


def test_a_group_whose_answers_nobody_judged_goes_by_its_rewards_and_is_not_all_wrong():
    assert drop_reason(unjudged(0.2, 0.8), GroupFilter.correctness_spread) == ""
    assert drop_reason(unjudged(0.5, 0.5), GroupFilter.correctness_spread) == "equal_rewards"
    assert drop_reason(group(0, 0.0, 0.0), GroupFilter.correctness_spread) == "all_wrong"


def test_the_success_of_a_completion_whose_answer_nobody_judged_is_its_reward():
    class Scores:
        config = RewardConfig(datasets=UNANSWERED)

    collector = object.__new__(Collector)
    collector._rubric = Scores()  # pyright: ignore
    assert collector._success(RewardResult(0.7, {"format": 0.7})) == 0.7
    assert collector._success(RewardResult(0.1, {"answer": 0.0, "format": 1.0})) == 0.0


def test_rows_need_a_reference_where_somebody_is_asked_about_their_answers(tiny, tmp_path):
    rows = [{"question": "Describe it.", "dataset": "captions"}, {"question": "1+1?", "answer": "2", "dataset": "sums"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits, config = RolloutConfig(max_prompt_tokens=200), RewardConfig(datasets=UNANSWERED)
    found = PromptSet(path, tiny[1], Mode.think, limits, needs_reference=config.needs_reference)
    assert [row.prompt.reference for row in found.items] == ["", "2"]
    path.write_text("".join(json.dumps({**row, "answer": None}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="reference: expected"):
        PromptSet(path, tiny[1], Mode.think, limits, needs_reference=config.needs_reference)


def test_the_first_lines_of_a_run_show_the_formula_that_the_rubric_computes():
    from conf.cli import load_config

    own = "reward.datasets={a: {weights: {format: 0.3}}, b: {weights: {format: 0}}}"
    config, _ = load_config("rlhf", ["checkpoint=c", "prompts=p", "reward.combine=product_plus_format", own])
    lines = describe(config, 9).splitlines()
    assert "reward: (answer (math)) x 0.9 + format x 0.1 (product_plus_format)" in lines
    assert "reward of rows of a: (answer (math)) x 0.7 + format x 0.3" in lines
    assert "reward of rows of b: (answer (math)) x 1" in lines


@pytest.mark.parametrize("where", ["verifier", "datasets"])
def test_the_code_of_a_function_that_judges_answers_is_part_of_what_a_run_is(tmp_path, tiny_folder, where):
    from conf.cli import load_config

    code = tmp_path / "mine.py"
    spec = f"{code}:right" if where == "verifier" else f"{{a: '{code}:right'}}"
    code.write_text("def right(completion):\n    return 1.0\n")
    config, _ = load_config("rlhf", [f"checkpoint='{tiny_folder}'", "prompts=p", f"reward.{where}={spec}"])
    before = digest_of_functions(config.reward), inputs_of(config)["reward.functions"].sha256
    code.write_text("def right(completion):\n    return 0.0\n")
    assert before[0] != digest_of_functions(config.reward) and before[1] != inputs_of(config)["reward.functions"].sha256
