"""The golden set of verdicts: no false positive, at most 0.5 % false negatives, nothing unscorable."""

from collections import Counter

import pytest

from rewards.result import Unscorable
from rewards.verifiers.registry import UNDECIDED, VERIFIERS, decide_quickly, verify
from tests.rewards.golden import golden_cases


@pytest.fixture(scope="module")
def judged():
    """(case, value) of every case; the reason where it was unscorable."""
    results = []
    for case in golden_cases():
        try:
            results.append((case, verify(case.verifier, case.claim, case.options)))
        except Unscorable as error:
            results.append((case, str(error)))
    return results


@pytest.mark.slow
def test_verdicts(judged):
    counts, too_high, too_low = Counter(), [], []
    for case, value in judged:
        counts[case.verifier] += 1
        if isinstance(value, str) or (value is None) != (case.value is None):
            too_low.append((case, value))
        elif case.value is not None and value > case.value + 1e-9:
            too_high.append((case, value))
        elif case.value is not None and value < case.value - 1e-9:
            too_low.append((case, value))
    print(f"golden set: {sum(counts.values())} cases", dict(counts), f"false negatives: {len(too_low)}")
    assert set(counts) == set(VERIFIERS) and sum(counts.values()) >= 2000
    assert min(counts.values()) >= 5
    assert too_high == []
    assert len(too_low) <= 0.005 * len(judged), too_low


@pytest.mark.slow
def test_the_fast_path_says_the_same(judged):
    decided = 0
    for case, value in judged:
        try:
            quick = decide_quickly(case.verifier, case.claim, case.options)
        except Unscorable as error:
            quick = str(error)
        if quick is not UNDECIDED:
            decided += 1
            assert quick == value, case
    assert decided > 0.4 * len(judged)


def test_no_case_occurs_twice_with_two_verdicts():
    values = {}
    for case in golden_cases():
        key = (case.verifier, repr(case.claim), repr(case.options))
        assert values.setdefault(key, case.value) == case.value
