"""Verdicts on single answers, in scorer processes that can be killed."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from model.interface import Mode
from rewards.answers import AnswerRule, extract, parse_completion
from rewards.result import Claim, RewardInput, Status, Unscorable
from rewards.sandbox.pool import ScoringPool
from rewards.scoring import Scorer

TIMEOUT_SECONDS = 5.0
"""A verdict that takes longer is given up: `Unscorable`."""


def verify(
    verifier: str,
    answer: str,
    reference: object,
    *,
    columns: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> float | None:
    """Judge an answer by itself, such as `verify("math", "1/2", "0.5")`. None says that the verifier does not apply.

    `columns` are what else the data row has, the `options` of a choice question among them; `options` are settings of
    the verifier. `Unscorable` says why the answer cannot be judged, `ValueError` names an unknown verifier or option.
    """
    return _judged(verifier, Claim(answer, answer, reference, columns or {}), options)


def score(
    verifier: str,
    completion: object,
    reference: object,
    *,
    answer_rules: Sequence[AnswerRule | str] = (AnswerRule.boxed,),
    columns: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> float | None:
    """Judge the answer that stands in a completion, which is a text or what `sample` returns.

    `answer_rules` say where the answer stands, by default in the last box behind the thinking. A completion without an
    answer earns what the verifier gives for none, which is 0 for most. See `verify` for the rest.
    """
    text = _text(completion)
    claim = Claim(text, extract(text, list(_rules(answer_rules))), reference, columns or {})
    return _judged(verifier, claim, options)


def reward_input(
    completion: object,
    reference: str,
    messages: Sequence[Mapping[str, Any]] = (),
    *,
    images: Sequence[str] = (),
    prompt_id: str = "",
    columns: Mapping[str, Any] | None = None,
    mode: Mode | str = Mode.think,
) -> RewardInput:
    """Make of a completion what reward functions and `Rubric.score` take. Completions of one prompt share its id.

    `mode` is how the prompt was asked, which decides the form that the completion should have.
    """
    text = _text(completion)
    parsed = parse_completion(text)
    return RewardInput(
        prompt_id=prompt_id,
        messages=[dict(message) for message in messages],
        images=list(images),
        reference=reference,
        completion=text,
        thinking=parsed.thinking,
        answer=parsed.answer,
        token_ids=list(getattr(completion, "token_ids", [])),
        finish_reason=getattr(completion, "finish_reason", "stop"),
        meta=dict(columns or {}),
        mode=Mode.of(mode).value,
    )


def _text(completion: object) -> str:
    """`ValueError` for None: a completion that is missing is not a wrong one."""
    if completion is None:
        raise ValueError("completion: expected a text, or what `sample` returns, found None")
    return str(completion)


def _judged(verifier: str, claim: Claim, options: Mapping[str, object] | None) -> float | None:
    if not isinstance(verifier, str):
        raise ValueError(
            f"verifier: expected a name, found {verifier!r:.80}; a function of your own is called by "
            "Rubric(RewardConfig(functions=[it]))"
        )
    (outcome,) = _scorer().score(verifier, [claim], options)
    if outcome.status is Status.unscorable:
        raise Unscorable(f"{verifier}: {outcome.reason}")
    return outcome.value


def _rules(given: Iterable[AnswerRule | str]) -> Iterable[AnswerRule]:
    for rule in given:
        known = [one.value for one in AnswerRule]
        if not isinstance(rule, AnswerRule) and rule not in known:
            raise ValueError(f"answer_rules: expected some of {', '.join(known)}, found {rule!r:.80}")
        yield AnswerRule(rule)


@cache
def _scorer() -> Scorer:
    """Return the one scorer of this process; its scorer process starts when it is first needed."""
    return Scorer(ScoringPool(1, TIMEOUT_SECONDS))
