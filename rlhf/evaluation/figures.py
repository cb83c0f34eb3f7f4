"""From answers to the figures of an evaluation: shares with their intervals, for each mode and data set."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from model.json_values import JsonObject
from rlhf.config import EvaluationMode
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.estimates import majority_at_k, pass_at_k
from rollouts.rollout import Prompt

INTERVAL = "Wilson score interval, 95 %, over prompts"
OVERTHINKING = 5
"""Thinking an answer that is right without takes so many times the tokens before it counts as overthinking."""
_Z = 1.959964  # the 97.5 % point of the normal distribution


def wilson(share: float | None, count: int) -> list[float] | None:
    """The interval [low, high] of a share over `count` prompts.

    With several samples of a prompt the share is a mean of means, which varies less than Wilson's formula has it, so
    that the interval is rather too wide.
    """
    if share is None or not count:
        return None
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return [max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)]


def accuracy(answers: Sequence[Answer]) -> float | None:
    """Share of right completions among those that were judged; None where there are none."""
    return mean([float(one.right) for one in answers if one.right is not None])


def shares_at_k(answers: Sequence[Answer]) -> JsonObject:
    """`pass_at_K` for K = 1, 2, 4, ... and all samples, without bias, and `majority_at_K` of all, means over prompts.

    A prompt counts for K where as many of its samples were judged. Empty where prompts have one sample.
    """
    by_prompt: dict[str, list[Answer]] = {}
    for one in answers:
        by_prompt.setdefault(one.prompt_id, []).append(one)
    count = max(map(len, by_prompt.values()), default=0)
    if count < 2:
        return {}
    judged = [[one for one in own if one.right is not None] for own in by_prompt.values()]
    sizes = sorted({2**power for power in range(count.bit_length()) if 2**power < count} | {count})
    found: JsonObject = {
        f"pass_at_{k}": mean(
            [pass_at_k(len(own), sum(one.right is True for one in own), k) for own in judged if len(own) >= k]
        )
        for k in sizes
    }
    votes = [majority_at_k([(one.answer, one.right is True) for one in own]) for own in judged if len(own) == count]
    return {**found, f"majority_at_{count}": mean(votes)}


def figures(answers: Sequence[Answer]) -> JsonObject:
    """The figures of some answers of one mode."""
    share = accuracy(answers)
    return {
        "accuracy": share,
        "interval": wilson(share, len({one.prompt_id for one in answers if one.right is not None})),
        "score": mean([one.score for one in answers if one.score is not None]),
        "reward": mean([one.reward for one in answers if one.reward is not None]),
        "format_rate": mean([one.formatted for one in answers if one.formatted is not None]),
        "mean_length": mean([one.num_tokens for one in answers]),
        "cut_off_share": mean([float(one.is_cut_off) for one in answers]),
        "unscorable_share": mean([float(one.is_unscorable) for one in answers]),
        "mode_obedience": mean([float(one.obeys) for one in answers]),
        "empty_think_share": mean([float(one.is_empty_thought) for one in answers]),
        "num_prompts": len({one.prompt_id for one in answers}),
        "num_completions": len(answers),
        **judgement_figures(answers),
    }


def judgement_figures(answers: Sequence[Answer]) -> JsonObject:
    """Figures of answers of mode auto; empty for other modes: the share that thought, the accuracy of those that
    thought and of those that did not, and the share of decisions that are what the rows say of themselves."""
    judged = [(one, one.judgement) for one in answers if one.judgement is not None]
    if not judged:
        return {}
    right = [float(found.is_right) for _, found in judged if found.is_right is not None]
    return {
        "thought_share": mean([float(found.thought) for _, found in judged]),
        "accuracy_with_thought": accuracy([one for one, found in judged if found.thought]),
        "accuracy_without_thought": accuracy([one for one, found in judged if not found.thought]),
        "decision_accuracy": mean(right),
    }


def result_of(
    asked: Sequence[Prompt],
    answers: Mapping[EvaluationMode, Sequence[Answer]],
    num_samples: int = 1,
    group_by: str = "",
) -> JsonObject:
    """The result of an evaluation. A figure of nothing is None."""
    everything = [one for found in answers.values() for one in found]
    by_mode = {mode.value: figures(found) for mode, found in answers.items()}
    lengths = {mode: f"mean_length_{mode}" for mode in by_mode}
    lengths |= {"think": "mean_length", "think_sampled": "mean_length_sampled"}
    result: JsonObject = {}
    for name in ("accuracy", "score", "reward"):
        result |= {f"{name}_{mode}": found[name] for mode, found in by_mode.items()}
    if num_samples > 1 and EvaluationMode.think_sampled in answers:
        result |= shares_at_k(answers[EvaluationMode.think_sampled])
    result |= {f"mode_obedience_{mode}": found["mode_obedience"] for mode, found in by_mode.items()}
    result |= _overthinking(answers)
    result |= judgement_figures(everything)
    thinking = next((found for mode, found in by_mode.items() if mode != EvaluationMode.direct.value), None)
    result |= {
        "format_rate": thinking["format_rate"] if thinking else None,
        **{lengths[mode]: found["mean_length"] for mode, found in by_mode.items()},
        "num_eval": len(asked),
        "num_unscorable": sum(one.is_unscorable for one in everything),
        "num_cut_off": sum(one.is_cut_off for one in everything),
        "majority_answer_rate": _majority(asked),
        "interval": INTERVAL,
        "modes": by_mode,
        "by_dataset": _split(answers, lambda one: one.dataset),
    }
    if group_by:
        members = {prompt.id: str(prompt.meta.get(group_by, "")) for prompt in asked}
        result["by_group"] = _by_group(asked, answers, members)
    return result


def _overthinking(answers: Mapping[EvaluationMode, Sequence[Answer]]) -> JsonObject:
    """The share of the questions that are answered right directly, but with many more tokens thinking."""
    if not {EvaluationMode.think, EvaluationMode.direct} <= answers.keys():
        return {}
    thinking = {one.prompt_id: one.num_tokens for one in answers[EvaluationMode.think]}
    easy = [one for one in answers[EvaluationMode.direct] if one.right and one.prompt_id in thinking]
    longer = [float(thinking[one.prompt_id] > OVERTHINKING * one.num_tokens) for one in easy]
    return {"overthinking_share": mean(longer), "overthinking_factor": OVERTHINKING}


def _split(
    answers: Mapping[EvaluationMode, Sequence[Answer]], name_of: Callable[[Answer], str]
) -> dict[str, dict[str, JsonObject]]:
    """The figures of each mode, for the answers of each name."""
    names = sorted({name_of(one) for found in answers.values() for one in found})
    return {
        name: {mode.value: figures([one for one in found if name_of(one) == name]) for mode, found in answers.items()}
        for name in names
    }


def _by_group(
    asked: Sequence[Prompt], answers: Mapping[EvaluationMode, Sequence[Answer]], members: Mapping[str, str]
) -> dict[str, JsonObject]:
    """For each value of a column: accuracies, number of prompts, and the share of its most common answer."""
    groups: dict[str, JsonObject] = {}
    for value, by_mode in _split(answers, lambda one: members[one.prompt_id]).items():
        own = [prompt for prompt in asked if members[prompt.id] == value]
        groups[value] = {
            **{f"accuracy_{mode}": found["accuracy"] for mode, found in by_mode.items()},
            **{f"score_{mode}": found["score"] for mode, found in by_mode.items()},
            "num_eval": len(own),
            "majority_answer_rate": _majority(own),
        }
    return groups


def _majority(asked: Sequence[Prompt]) -> float | None:
    """The accuracy of always giving the most common reference."""
    if not asked:
        return None
    return Counter(prompt.reference for prompt in asked).most_common(1)[0][1] / len(asked)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
