"""Every verifier takes bounded time on any text: in the caller at once, in a scorer process within its deadline."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable

import pytest

from rewards.answers import AnswerRule, extract
from rewards.result import Claim, Unscorable
from rewards.sandbox.pool import ScoringPool
from rewards.sandbox.tasks import Verify
from rewards.verifiers.registry import VERIFIERS, decide_quickly
from tests.rewards.adversarial_texts import PIECES, adversarial_texts

REFERENCES = {
    "math": "\\frac{3}{4}x+1", "geo3k": "\\frac{3}{4}", "numeric": "7", "choice": "B", "boolean": "yes", "exact": "Paris, France", "relaxed": "12.5",
    "anls": ["Paris is the capital", "Paris"], "count": 3, "box_iou": [1, 2, 300, 400], "point_in_box": [1, 2, 300, 400], "ordered_list": ["a", "b", "c"],
    "json_fields": {"a": 1, "b": "x"}, "gsm8k": "7", "math_dapo": "7",
}  # fmt: skip
COLUMNS = {"options": ["12 cm", "√3", "no", "not enough information"]}
IN_CALLER = 0.05  # seconds of the caller's thread
DEADLINE = 5.0  # seconds, the default of reward.timeout_seconds
WORKER_TEXTS = int(os.environ.get("WORKER_TEXTS", "2000"))  # docs/promises.md has what 20,000 took


def claims(name: str, text: str) -> list[Claim]:
    """The text as completion and answer, whole and cut to what a formula may be."""
    half = text[: len(text) // 2]
    reference = REFERENCES.get(name, "")
    return [Claim(text[: 10_000 - len(answer)], answer, reference, COLUMNS, len(text)) for answer in (half, half[:290])]


def seconds(action: Callable[[], object]) -> float:
    """Processor time of the calling thread, the least of three tries where the first takes long."""
    least = IN_CALLER
    for _ in range(3):
        begin = time.thread_time()
        action()
        least = time.thread_time() - begin
        if least < IN_CALLER:
            break
    return least


def quickly(name: str, claim: Claim) -> None:
    with contextlib.suppress(Unscorable):
        decide_quickly(name, claim, {})


def late_in_the_caller(name: str, seed: int, count: int) -> list[str]:
    return [
        claim.answer or ""
        for text in adversarial_texts(seed, count)
        for claim in claims(name, text)
        if seconds(lambda claim=claim: quickly(name, claim)) >= IN_CALLER
    ]


def late_in_a_worker(name: str, seed: int, count: int) -> list[str]:
    """Judge in a scorer process what the caller would decide as well, and print the slowest verdict."""
    asked = [claim for text in adversarial_texts(seed, count) for claim in claims(name, text)]
    with ScoringPool(1, DEADLINE) as pool:
        outcomes = pool.run([Verify(name, claim) for claim in asked])
    slowest = max(outcome.seconds for outcome in outcomes)
    failures = Counter(outcome.reason.partition(":")[0] for outcome in outcomes if outcome.reason)
    print(f"{name}: {len(asked)} claims, slowest verdict {slowest:.3f} s, without a verdict {dict(failures)}")
    return [
        f"{outcome.reason}: {claim.answer}"
        for claim, outcome in zip(asked, outcomes, strict=True)
        if outcome.reason.startswith(("timeout", "memory", "died"))
    ]


@pytest.mark.parametrize("name", VERIFIERS)
def test_no_text_holds_up_the_caller(name):
    assert late_in_the_caller(name, 1, len(PIECES) + 100) == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", VERIFIERS)
def test_none_of_twenty_thousand_texts_holds_up_the_caller(name):
    assert late_in_the_caller(name, 2, 20_000) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", VERIFIERS)
def test_no_text_takes_a_worker_past_its_deadline(name):
    assert late_in_a_worker(name, 3, WORKER_TEXTS) == []


@pytest.mark.parametrize("rule", AnswerRule)
def test_no_text_holds_up_the_search_for_an_answer(rule):
    texts = adversarial_texts(4, len(PIECES) + 100, 10_000)
    assert [text for text in texts if seconds(lambda text=text: extract(text, [rule])) >= IN_CALLER] == []
