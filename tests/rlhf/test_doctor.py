"""The doctor: facts of steps in, warnings out."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from rewards.result import RewardResult, Status
from rlhf.collect import Collected
from rlhf.doctor import CHECKS, Doctor, NothingLearned, StepFacts, examples_of, facts_of
from tests.rlhf.groups import group

HEALTHY = {
    "overlong_share": 0.1,
    "unscorable_share": 0.0,
    "answer_share": 1.0,
    "reward/answer": 0.5,
    "reward/format": 0.9,
    "entropy": 1.0,
    "length/mean": 100.0,
    "time/sampling": 20.0,
    "time/rewards_wait": 1.0,
}


def facts(step: int = 1, learned: bool = True, spread: int = 3, dropped=None, reasons=None, **metrics) -> StepFacts:
    numbers = {**HEALTHY, **{name.replace("__", "/"): value for name, value in metrics.items()}}
    return StepFacts(step, learned, learned, numbers, Counter(dropped or {}), Counter(reasons or {}), spread, groups=4)


@pytest.fixture
def doctor(tiny):
    """A doctor that warns after three steps, and keeps what it says."""
    said: list[str] = []
    one = Doctor(3, True, tiny[1].tokenizer, said.append)
    one.said = said  # type: ignore[attr-defined]
    return one


def kinds(doctor: Doctor, *steps: StepFacts) -> list[str]:
    return [finding.kind for one in steps for finding in doctor.examine(one)]


def test_a_healthy_run_is_told_nothing(doctor):
    assert kinds(doctor, *[facts(step) for step in range(1, 50)]) == []


@pytest.mark.parametrize(
    ("kind", "sick", "said"),
    [
        ("no_update", facts(learned=False, dropped={"all_wrong": 5, "surplus": 1}), "most often as all_wrong (5 of 6)"),
        (
            "references",
            facts(unscorable_share=0.5, reasons={"answer: refused: reference 'x' does not parse": 4}),
            "references cannot be read: answer: refused: reference 'x' does not parse (4 of 4)",
        ),
        ("unscorable", facts(unscorable_share=0.5, reasons={"judge: timeout": 4}), "50% of the completions are unscor"),
        ("cut_off", facts(overlong_share=0.95), "95% of the completions are cut off"),
        ("no_answer", facts(answer_share=0.0, reward__answer=0.0), "an answer was found in 0% of the completions"),
        ("format", facts(reward__format=0.0), "no completion keeps the format"),
        ("no_spread", facts(spread=0), "the completions of each of 4 prompts have the same reward"),
        ("slow_rewards", facts(time__rewards_wait=50.0), "sampled for 20 s and then waited 50 s"),
    ],
)
def test_each_sickness_is_said_after_three_steps_with_the_key_to_change(doctor, kind, sick, said):
    assert kinds(doctor, sick, sick) == []
    (finding,) = [one for one in doctor.examine(sick) if one.kind == kind]
    assert said in str(finding) and "(in the last 3 steps)" in str(finding) and CHECKS[kind].remedy in str(finding)


def test_a_warning_comes_again_only_when_it_stays_true_for_many_more_steps(doctor):
    found = [step for step in range(1, 400) for kind in kinds(doctor, facts(step, overlong_share=1.0))]
    assert found == [3, 30, 300]


def test_a_step_in_health_begins_the_count_anew(doctor):
    sick = facts(overlong_share=1.0)
    assert kinds(doctor, sick, sick, facts(), sick, sick) == []
    assert kinds(doctor, sick) == ["cut_off"]


@pytest.mark.parametrize(("kind", "name"), [("entropy", "entropy"), ("length", "length__mean")])
def test_a_collapse_is_measured_against_the_first_steps(doctor, kind, name):
    begin, low = facts(), facts(**{name: 0.01})
    assert kinds(doctor, begin, begin, begin, low, low) == []
    (finding,) = doctor.examine(low)
    assert finding.kind == kind and "at the beginning it was 1" in finding.text


def test_a_part_that_is_not_paid_is_no_fault(tiny):
    own = Doctor(3, True, tiny[1].tokenizer, print, paid=["mine"])
    assert kinds(own, *[facts(reward__format=0.0, answer_share=0.0, reward__answer=0.0)] * 5) == []


def test_zero_never_warns(tiny):
    silent = Doctor(0, True, tiny[1].tokenizer, print)
    assert kinds(silent, *[facts(learned=False)] * 50) == []


def test_what_a_restart_restores_goes_on_counting(doctor, tiny):
    sick = facts(2, learned=False, dropped={"all_wrong": 2})
    assert kinds(doctor, sick, sick) == []
    later = Doctor(3, True, tiny[1].tokenizer, print)
    later.restore(json.loads(json.dumps(doctor.state())))
    assert kinds(later, replace(sick, step=3)) == ["no_update"] and not later.ever_learned
    with pytest.raises(NothingLearned, match=r"in 3 steps[^\0]*all_wrong \(6 of 6\)[^\0]*reward\.verifier") as end:
        later.end()
    assert end.value.exit_code == 9


def test_a_run_whose_updates_had_no_advantage_ends_well_but_is_told(doctor):
    doctor.end()  # no step, nothing to say
    for step in (1, 2):
        doctor.examine(replace(facts(step, spread=0), learned=False))
    assert doctor.said == []
    doctor.end()
    assert "in 2 steps no completion was better than another" in doctor.said[0] and "no_spread: raise" in doctor.said[0]


@pytest.mark.parametrize(
    ("metrics", "learned"),
    [
        ({"updates": 0.0}, False),
        ({"updates": 2.0, "skipped_updates": 2.0, "zero_advantage_share": 0.0}, False),
        ({"updates": 2.0, "skipped_updates": 1.0, "zero_advantage_share": 0.5}, True),
        ({"updates": 1.0, "zero_advantage_share": 1.0}, False),
        ({"updates": 1.0}, True),  # TRL does not say the share, and these rewards differ
    ],
)
def test_a_step_has_learned_if_an_update_with_an_advantage_was_applied(metrics, learned):
    collected = Collected([group(0, 1.0, 0.0)], [(group(1, 0.0, 0.0), "all_wrong")], [], 2)
    found = facts_of(1, metrics, collected)
    assert found.learned is learned
    assert (found.spread, found.groups, found.dropped) == (1, 2, {"all_wrong": 1})


def test_a_warning_shows_three_completions_of_different_prompts_in_harmless_lines(doctor, tiny):
    bad = RewardResult(None, {}, Status.unscorable, "answer: refused: reference '2\x1b[2J' does not parse", "7")
    groups = [group(index, None, 1.0) for index in range(5)]
    groups = [one.with_trajectories([replace(one.trajectories[0], reward=bad), one.trajectories[1]]) for one in groups]
    collected = Collected(groups, [], [], 5)
    metrics = {**HEALTHY, "updates": 1.0, "unscorable_share": 0.5}
    for step in (1, 2, 3):
        found = doctor.look(step, metrics, collected)
    assert found["doctor/references_steps"] == 3.0 and found["doctor/cut_off_steps"] == 0.0
    (warning,) = [text for text in doctor.said if "references" in text]
    assert warning.count("extracted answer 7  reference 2  reward -") == 3
    assert warning.count("prompt ...1+1?") == 3 and "\x1b" not in warning
    assert len(examples_of(groups, tiny[1].tokenizer, lambda t: False)) == 0
