"""The way of a claim: decided at once, remembered, or judged by a scorer process once."""

import asyncio
import threading
from collections import Counter
from types import MappingProxyType

import pytest

from rewards.result import Claim, Outcome, Status
from rewards.sandbox.pool import ScoringPool
from rewards.sandbox.tasks import Verify
from rewards.scoring import Scorer
from rewards.verifiers.registry import VERIFIERS


class CountingPool(ScoringPool):
    """A pool that remembers what it was asked."""

    def __init__(self, *settings) -> None:
        super().__init__(*settings)
        self.asked: list[Verify] = []

    def submit(self, tasks):
        self.asked += tasks
        return super().submit(tasks)


@pytest.fixture(scope="module")
def pool():
    with CountingPool(2, 2.0, 256) as pool:
        yield pool


@pytest.fixture
def scorer(pool):
    pool.asked.clear()
    return Scorer(pool)


def claim(answer: str | None, reference="3", completion: str = "", **columns) -> Claim:
    return Claim(completion, answer, reference, columns)


def values(outcomes: list[Outcome]) -> list:
    return [outcome.value for outcome in outcomes]


def test_cheap_claims_never_reach_the_pool(scorer, pool):
    outcomes = scorer.score("math", [claim("3"), claim("3.0"), claim("4"), claim(None), claim("blue", "blue")])
    assert values(outcomes) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert pool.asked == []


def test_duplicates_are_judged_once_and_the_order_is_kept(scorer, pool):
    answers = ["\\sqrt{9}", "3", "\\sqrt{8}", "\\sqrt{9}", "\\frac{6}{2}", "\\sqrt{8}", "\\sqrt{9}"]
    outcomes = scorer.score("math", [claim(a, completion=f"text {n}") for n, a in enumerate(answers)])
    assert values(outcomes) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    asked = Counter(task.claim.answer for task in pool.asked)
    assert set(asked.values()) == {1} and set(asked) <= {"\\sqrt{9}", "\\sqrt{8}", "\\frac{6}{2}"}


def test_verdicts_are_remembered_and_failures_are_not(scorer, pool):
    claims = [claim("\\sqrt{9}"), claim("x", "\\frac{1}{"), claim("\\sqrt{7}")]
    first = scorer.score("math", claims)
    assert values(first) == [1.0, None, 0.0] and first[1].status is Status.unscorable
    assert first[1].reason.startswith("refused: ") and "does not parse" in first[1].reason
    asked = len(pool.asked)
    again = scorer.score("math", claims)
    assert values(again) == [1.0, None, 0.0] and again[1].reason == first[1].reason
    assert [task.claim.answer for task in pool.asked[asked:]] == ["x"]


def test_another_reference_is_another_verdict(scorer):
    assert values(scorer.score("math", [claim("\\sqrt{9}"), claim("\\sqrt{9}", "-3")])) == [1.0, 0.0]
    assert values(scorer.score("math", [claim("\\sqrt{9}", "-3"), claim("\\sqrt{9}")])) == [0.0, 1.0]


def test_what_a_verifier_reads_beside_the_answer_is_part_of_the_key(scorer, pool):
    """geo3k looks at the form of the whole completion."""
    good = "<think>a</think>\\boxed{\\sqrt{9}}"
    claims = [claim("\\sqrt{9}", completion=good), claim("\\sqrt{9}", completion="\\boxed{\\sqrt{9}}")]
    for _ in range(2):
        assert values(scorer.score("geo3k", claims)) == pytest.approx([1.0, 0.9])
    assert values(scorer.score("geo3k", claims, {"format_score": 0.5})) == pytest.approx([1.0, 0.5])


def test_the_memory_is_bounded(pool):
    pool.asked.clear()
    scorer = Scorer(pool, max_verdicts=3)
    claims = [claim(f"\\sqrt{{{n}}}", "\\sqrt{5}") for n in range(2, 8)]
    first = values(scorer.score("math", claims))
    assert first == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert len(scorer._verdicts) == 3
    asked = len(pool.asked)
    assert values(scorer.score("math", claims[-3:])) == first[-3:] and len(pool.asked) == asked
    assert values(scorer.score("math", claims)) == first and len(pool.asked) > asked


@pytest.mark.parametrize(
    ("verifier", "options"), [("maths", {}), ("math", {"tolerance": 1}), ("numeric", {"tolerance": "x"})]
)
def test_bad_settings_are_the_callers_error(scorer, verifier, options):
    with pytest.raises(ValueError):
        scorer.score(verifier, [claim("3")], options)
    with pytest.raises(ValueError):
        scorer.score(verifier, [], options)


def test_odd_claims_are_outcomes(scorer):
    odd = [claim("\\sqrt{9}", {"a": object()}), claim("3", ""), claim("3", None)]
    outcomes = scorer.score("math", odd)
    assert all(outcome.value is None and outcome.status is Status.unscorable for outcome in outcomes)
    assert all(outcome.reason.startswith(("refused: ", "error: ")) for outcome in outcomes)


def test_what_is_too_long_to_hand_over_is_refused(scorer, pool):
    long = "x" * 10_000_001
    (outcome,) = scorer.score("geo3k", [claim("3", completion=long)])
    assert outcome.reason == "refused: expected at most 10000000 characters to judge, found 10000002"
    assert values(scorer.score("math", [claim("\\sqrt{9}", completion=long)])) == [1.0]


def test_columns_of_any_mapping_type(scorer):
    outcomes = scorer.score("geo3k", [Claim("\\boxed{\\sqrt{9}}", "\\sqrt{9}", "3", MappingProxyType({"a": 1}))])
    assert values(outcomes) == pytest.approx([0.9])


@pytest.mark.parametrize("verifier", sorted(VERIFIERS))
def test_the_fast_path_and_the_worker_agree(scorer, pool, verifier):
    """Every verifier, on claims of every shape: what the scorer says is what a scorer process says."""
    references = ["3", "\\frac{1}{2}", "B", "yes", "[0, 0, 500, 500]", '{"a": 1}', "no solution", ""]
    answers = ["3", "0.5", "B", "yes", "[0, 0, 500, 500]", '{"a": 1}', "\\sqrt{9}", "no solution", "x y", "", None]
    claims = [
        Claim(f"<think>t</think>\\boxed{{{answer}}}", answer, reference, {"options": ["1", "3"]}, 40, "stop")
        for reference in references
        for answer in answers
    ]
    options = {name: 64 for name, option in VERIFIERS[verifier].options.items() if option.required}
    ours = scorer.score(verifier, claims, options)
    theirs = pool.run([Verify(verifier, each, options) for each in claims])
    assert values(ours) == values(theirs)
    assert [one.reason for one in ours] == [other.reason for other in theirs]
    assert not [outcome.reason for outcome in ours if outcome.reason.startswith(("error", "died", "timeout"))]


def test_threads_and_asyncio_share_a_scorer(scorer):
    claims = [claim(f"\\sqrt{{{n * n}}}", str(n % 3 + n)) for n in range(1, 13)]
    expected = [float(n % 3 == 0) for n in range(1, 13)]
    found: list[list] = []
    threads = [threading.Thread(target=lambda: found.append(values(scorer.score("math", claims)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def both():
        return await asyncio.gather(scorer.score_async("math", claims), scorer.score_async("math", claims))

    found += [values(outcomes) for outcomes in asyncio.run(both())]
    assert found == [expected] * 6
