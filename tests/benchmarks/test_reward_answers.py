"""The answers that the reward benchmarks are about: seeded, distinct, of many kinds, and really ordinary or hostile."""

from collections import Counter

from benchmarks.parts.hostile_answers import FAMILIES, hostile_answers
from benchmarks.parts.ordinary_answers import PLAIN, SYMBOLIC, ordinary_answers
from rewards.mathematics.answer import MAX_CHARACTERS, verify_symbolic
from rewards.result import Claim, Unscorable
from rewards.verifiers.registry import UNDECIDED, decide_quickly


def test_hostile_answers_are_distinct_seeded_and_of_every_family():
    made = list(hostile_answers(1500, seed=3))
    assert made == list(hostile_answers(1500, seed=3))
    assert made != list(hostile_answers(1500, seed=4))
    assert len(set(made)) == len(made) and len(FAMILIES) >= 10
    assert {family for family, _ in made} == set(FAMILIES)


def test_the_fast_path_stands_any_hostile_answer():
    """Bounded and without an exception but the refusal of long answers, here in this process."""
    verdicts = Counter()
    for _, (answer, reference) in hostile_answers(1500, seed=5):
        try:
            verdicts[str(decide_quickly("math", Claim(answer, answer, reference), {}))] += 1
        except Unscorable:
            assert len(answer) > MAX_CHARACTERS
    assert verdicts["UNDECIDED"] > 500 and set(verdicts) <= {"UNDECIDED", "0.0", "1.0"}


def test_ordinary_answers_are_distinct_and_most_symbolic_ones_take_mathematics():
    seen: set = set()
    plain, symbolic = ordinary_answers(PLAIN, 300, 1, seen), ordinary_answers(SYMBOLIC, 300, 1, seen)
    assert len(seen) == 600
    undecided = [
        sum(decide_quickly("math", Claim("", *pair), {}) is UNDECIDED for _, pair in made) for made in (plain, symbolic)
    ]
    assert undecided[0] < 60 and undecided[1] > 200


def test_ordinary_answers_of_every_kind_are_right_and_wrong():
    verdicts = Counter()
    for kind, (answer, reference) in ordinary_answers([*PLAIN, *SYMBOLIC], 160, 2, set()):
        verdicts[kind, verify_symbolic(answer, reference)] += 1
    assert {kind for kind, _ in verdicts} == {kind.__name__.strip("_") for kind in [*PLAIN, *SYMBOLIC]}
    assert {(kind, verdict) for kind, _ in verdicts for verdict in (True, False)} == set(verdicts)
