"""Whole runs of RL in this process: stopped and continued, ended early, ended by their budget."""

import json
import os
import signal
from pathlib import Path

import pytest

from conf.cli import load_config
from model.checkpoint import load_model
from model.run.interrupt import Interrupted, Terminated
from rewards.result import RewardResult
from rewards.rubric import Rubric
from rlhf.collect import BudgetExhausted
from rlhf.doctor import NothingLearned
from rlhf.stage import run_stage


class LengthRubric(Rubric):
    """Right is who has an even number of tokens; at the `killed`-th call SIGTERM comes to this process."""

    calls, killed = 0, 0

    def score(self, inputs):
        cls = type(self)
        cls.calls += 1
        if cls.calls == cls.killed:
            os.kill(os.getpid(), signal.SIGTERM)
        rights = [float(sum(item.token_ids) % 2) for item in inputs]
        return [RewardResult(right, {"answer": right, "format": 1.0}) for right in rights]


class WrongButDifferentRubric(Rubric):
    """No answer is right, and yet there is something to learn."""

    def score(self, inputs):
        return [RewardResult(0.1 * (sum(item.token_ids) % 2), {"answer": 0.0, "format": 1.0}) for item in inputs]


class WrongRubric(Rubric):
    def score(self, inputs):
        return [RewardResult(0.1, {"answer": 0.0, "format": 1.0}) for _ in inputs]


def run(tiny_folder, prompts, folder, rubric=LengthRubric, *overrides):
    config, resolved = load_config(
        "rlhf",
        [
            "recipe=quickstart",
            f"checkpoint={tiny_folder}",
            f"prompts={prompts}",
            f"run.dir={folder}",
            *("trainer.max_steps=4", "trainer.groups_per_step=2", "trainer.max_draws=6", "trainer.mini_batch_size=8"),
            *(
                "algorithm.group_size=4",
                "algorithm.overlong.buffer=2",
                "rollouts.max_completion_tokens=5",
                "engine.num_threads=1",
                "run.save_every=3",
            ),
            *overrides,
        ],
    )
    run_stage(config, resolved, rubric)


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def straight(tiny_folder, digits_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run(tiny_folder, digits_folder / "train.jsonl", folder)
    return folder


def test_a_step_says_what_it_did(straight):
    found = rows(straight)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    wanted = {
        *("reward", "reward/answer", "accuracy", "groups/reward_spread", "groups/dead_share", "overlong_share"),
        *(
            "clip/low_share",
            "clip/high_share",
            "ratio/min",
            "ratio/max",
            "kl/old",
            "kl/sampler",
            "entropy",
            "length/mean",
        ),
        *("sampler_gap/mean", "sampler_gap/max", "sampler_gap/from_0", "sampler_gap/from_4", "policy_age/max"),
        *("learning_rate", "grad_norm", "grad_norm/vision_model", "grad_norm/mlp1", "grad_norm/language_model"),
    }
    for row in found:
        assert wanted <= row.keys()
        assert row["ratio/min"] == row["ratio/max"] == 1.0 and row["sampler_gap/max"] < 1e-4
        assert row["grad_norm"] == pytest.approx(
            sum(row[f"grad_norm/{tower}"] ** 2 for tower in ("vision_model", "mlp1", "language_model")) ** 0.5
        )
    timed = json.loads((straight / "metrics.jsonl").read_text().splitlines()[-1])
    assert timed["time/collect_tokens_per_second"] > 0 and timed["time/update_tokens_per_second"] > 0


def test_the_ledger_accounts_for_every_draw(straight):
    lines, last = rows(straight, "ledger.jsonl"), rows(straight)[-1]
    assert [line["draw"] for line in sorted(lines, key=lambda line: line["draw"])] == list(range(len(lines)))
    assert len(lines) == last["ledger/draws"] and last["ledger/in_flight"] == 0
    assert sum(line["end"] == "trained" for line in lines) == last["ledger/trained"]
    assert all((line["end"] == "dropped") == bool(line["reason"]) for line in lines)


@pytest.mark.parametrize("call", [pytest.param(2, marks=pytest.mark.nightly), 4])
def test_sigterm_saves_and_the_same_command_continues(
    tiny_folder, digits_folder, straight, tmp_path, monkeypatch, call
):
    """It comes while step 2 or later samples: that step is given up, and done again in the same way."""
    prompts = digits_folder / "train.jsonl"
    monkeypatch.setattr(LengthRubric, "calls", 0)
    monkeypatch.setattr(LengthRubric, "killed", call)
    with pytest.raises(Interrupted, match="SIGTERM came") as stop:
        run(tiny_folder, prompts, tmp_path)
    assert stop.value.exit_code == 5 and list((tmp_path / "checkpoints").iterdir())
    assert len(rows(tmp_path)) < 4 and not (tmp_path / "final").exists()
    run(tiny_folder, prompts, tmp_path)
    for name in ("metrics.jsonl", "ledger.jsonl"):
        assert rows(tmp_path, name) == rows(straight, name)
    assert (tmp_path / "final/model.safetensors").read_bytes() == (straight / "final/model.safetensors").read_bytes()


def test_a_finished_run_that_gets_more_steps_is_as_one_that_had_them_from_the_start(
    tiny_folder, digits_folder, tmp_path
):
    prompts = digits_folder / "train.jsonl"
    settings = ["optimizer.schedule=constant", "rollouts.pool.placement=trainer", "rollouts.pool.workers=1"]
    run(tiny_folder, prompts, tmp_path / "straight", LengthRubric, *settings, "trainer.max_steps=3")
    for steps in (2, 3):
        run(tiny_folder, prompts, tmp_path / "grown", LengthRubric, *settings, f"trainer.max_steps={steps}")
    for name in ("metrics.jsonl", "ledger.jsonl"):
        assert rows(tmp_path / "grown", name) == rows(tmp_path / "straight", name)
    grown, straight = (tmp_path / name / "final/model.safetensors" for name in ("grown", "straight"))
    assert grown.read_bytes() == straight.read_bytes()


def test_patience_ends_a_run_and_the_best_policy_is_kept(tiny_folder, digits_folder, tmp_path, capsys):
    held_out = digits_folder / "validation.jsonl"
    watch = [
        f"evaluation.prompts={held_out}",
        "evaluation.every=1",
        "evaluation.num_prompts=4",
        "evaluation.num_samples=2",
        "evaluation.group_by=family",
    ]
    run(
        tiny_folder,
        digits_folder / "train.jsonl",
        tmp_path,
        WrongButDifferentRubric,
        *watch,
        "evaluation.patience=2",
        "algorithm.group_filter=none",
        "trainer.max_steps=9",
    )
    evaluations = rows(tmp_path, "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 1, 2]
    assert {"accuracy_think", "accuracy_think_sampled", "pass_at_2", "accuracy_direct"} <= evaluations[0].keys()
    assert {name: group["num_eval"] for name, group in evaluations[0]["by_group"].items()} == {"gap": 2, "sum": 2}
    assert [row["eval/best"] for row in rows(tmp_path)] == [0.0, 0.0]
    assert "no better think accuracy than 0.0% of step 0 in 2 evaluations" in capsys.readouterr().err
    load_model(tmp_path / "best")
    assert (tmp_path / "done.json").exists()
    more = ["evaluation.patience=2", "algorithm.group_filter=none", "trainer.max_steps=10", "run.extend=true"]
    run(tiny_folder, digits_folder / "train.jsonl", tmp_path, WrongButDifferentRubric, *watch, *more)
    assert "step 2: the run ended early, after 2 evaluations" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 2


def test_sigterm_during_the_first_evaluation_ends_with_its_code(tiny_folder, digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(LengthRubric, "calls", 0)
    monkeypatch.setattr(LengthRubric, "killed", 1)
    watch = [f"evaluation.prompts={digits_folder / 'validation.jsonl'}", "evaluation.num_prompts=4"]
    with pytest.raises(Terminated) as stop:  # what a run starts from needs no saving
        run(tiny_folder, digits_folder / "train.jsonl", tmp_path, LengthRubric, *watch)
    assert stop.value.code == 5 and not (tmp_path / "checkpoints").exists()
    run(tiny_folder, digits_folder / "train.jsonl", tmp_path, LengthRubric, *watch)
    assert [row["step"] for row in rows(tmp_path, "evaluations.jsonl")] == [0, 4]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.patience=2", r"evaluation\.patience: 2 counts .* set evaluation\.prompts=FILE"),
        ("optimizer.learning_rate=inf", r"optimizer\.learning_rate: expected a positive number, found inf"),
        ("optimizer.beta2=1.0", r"optimizer\.beta2: expected at least 0 and below 1, found 1"),
        ("optimizer.weight_decay=nan", r"optimizer\.weight_decay: expected 0 or more, found nan"),
        ("optimizer.final_share=-1", r"optimizer\.final_share: expected 0 to 1, found -1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_read(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run("no/model", "no/prompts", tmp_path, LengthRubric, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.functions=[rewards.judge:reasoning]", "reasoning: expected base_url"),
        ("reward.functions=[nosuch.module:fn]", "importing nosuch.module failed"),
        ("reward.datasets={nosuch: exact}", "reward.datasets: expected names of data sets among .*, found 'nosuch'"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_before_a_step(tiny_folder, digits_folder, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run(tiny_folder, digits_folder / "train.jsonl", tmp_path / "run", Rubric, override)
    assert not (tmp_path / "run/metrics.jsonl").exists() and ("datasets" in override or not (tmp_path / "run").exists())


@pytest.mark.parametrize("policy", ["train_partial", "skip_step"])
def test_an_all_wrong_set_trains_nothing_and_ends_with_its_own_code(
    tiny_folder, digits_folder, tmp_path, policy, capsys
):
    for _ in range(2):  # the same command comes to the same end, so that a pipeline does not go on
        with pytest.raises(
            NothingLearned, match=r"no update .* in 4 steps, .*most often as all_wrong \(24 of 24\)"
        ) as end:
            run(tiny_folder, digits_folder / "train.jsonl", tmp_path, WrongRubric, f"trainer.when_budget_ends={policy}")
        assert end.value.exit_code == 9 and not (tmp_path / "final").exists()
    found = rows(tmp_path)
    assert [(row["updates"], row["dropped/all_wrong"]) for row in found] == [(0.0, 6.0)] * 4
    assert [row["doctor/no_update_steps"] for row in found] == [1.0, 2.0, 3.0, 4.0]
    warning = capsys.readouterr().out.partition("doctor: no update changed the policy")[2]
    assert "most often as all_wrong (6 of 6) (in the last 3 steps)" in warning
    assert warning.count("extracted answer") == 3  # once, whatever else is found in that step


def test_an_all_wrong_set_stops_a_run_that_says_so(tiny_folder, digits_folder, tmp_path):
    for _ in range(2):  # the same command comes to the same end
        with pytest.raises(BudgetExhausted, match=r"6 prompts were drawn and 0 of .*'all_wrong': 6") as stop:
            run(tiny_folder, digits_folder / "train.jsonl", tmp_path, WrongRubric, "trainer.when_budget_ends=stop")
        assert stop.value.exit_code == 7


def test_only_an_own_reward_trains_groups_that_differ_in_it_and_needs_no_reference(
    tiny_folder, digits_folder, tmp_path, capsys
):
    """A filter by right and wrong answers would drop every group, because no answer is judged."""
    own = tmp_path / "own.py"
    own.write_text(
        "def even(completions, completion_ids, **_):\n    return [float(sum(i) % 2) for i in completion_ids]\n"
    )
    lines = (digits_folder / "train.jsonl").read_text().splitlines()[:12]
    prompts = digits_folder / "no_reference.jsonl"
    rest = [{key: value for key, value in json.loads(line).items() if key != "reference"} for line in lines]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rest))
    mine = ["reward.verifier=none", f"reward.functions=[{own}:even]", "trainer.max_steps=1"]
    run(tiny_folder, prompts, tmp_path / "run", Rubric, *mine)
    (row,) = rows(tmp_path / "run")
    assert row["updates"] == 1.0 and row["groups/trained"] == 2.0 and row["accuracy"] is None
    assert row["reward"] == row["reward/even"] and "reward/answer" not in row
    assert (
        "answers are not rewarded: group filter, curriculum and best policy go by the reward" in capsys.readouterr().out
    )
