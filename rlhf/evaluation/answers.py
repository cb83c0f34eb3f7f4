"""An answer to a held-out question: the figures that count, and the line of NAME.answers.jsonl that a person reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from model.interface import Mode
from model.json_values import JsonObject
from model.processing.tokenizer import Tokenizer
from model.run.failpoints import reach
from rewards.answers import THINK_END, THINK_START, parse_completion
from rewards.result import RewardResult
from rewards.sections import REQUIRES_REASONING, fact_of, parse_sections
from rlhf.config import EvaluationMode
from rlhf.evaluation.responses import Responses
from rlhf.prompts import Task
from rlhf.rewarding import Scoring, name_failures, reward
from rollouts.rollout import FinishReason, Rollout, RolloutWorker, generate, question_of

FORMAT = 1
"""Version of a line. A change that readers would misread raises it."""


@dataclass(frozen=True)
class Answer:
    """One completion in numbers. None: nothing is known, as of a completion that could not be scored."""

    prompt_id: str
    dataset: str
    mode: EvaluationMode
    right: bool | None
    score: float | None  # the answer part; between 0 and 1 where a verifier grades
    reward: float | None
    formatted: float | None  # the format part
    num_tokens: int
    is_cut_off: bool  # the token limit came before the end of the turn
    answer: str | None = None  # the answer that was judged
    has_tags: bool = False  # a think tag stands in it
    has_thought: bool = False  # a think block that closes has text in it
    judgement: "Judgement | None" = None  # in mode auto: what the completion decided
    is_empty_thought: bool = False  # a think block has no text in it
    extraction: str = ""  # who found the answer of a benchmark: rule, judge, none, or failed

    @property
    def obeys(self) -> bool:
        """Whether it thinks if it was asked to, and has no think tag if it was not. In mode auto the completion itself
        says which."""
        if self.judgement is not None:
            return self.judgement.is_kept
        return self.has_thought if self.mode.asked is Mode.think else not self.has_tags

    @property
    def is_unscorable(self) -> bool:
        return self.reward is None

    @property
    def verdict(self) -> str:
        """One of right, wrong, unscorable, and unjudged where no verifier says what is right."""
        if self.is_unscorable:
            return "unscorable"
        return "unjudged" if self.right is None else "right" if self.right else "wrong"


@dataclass(frozen=True)
class Judgement:
    """The decision of a completion of mode auto, and whether it was right."""

    thought: bool  # it thinks, to the end or not
    is_kept: bool  # a decision can be read, and the completion does what it says
    is_right: bool | None  # whether the decision is what the row says of itself; None: the row says nothing


def judgement_of(text: str, columns: Mapping[str, object]) -> Judgement:
    """The judgement of a completion of mode auto. `columns` are the row's."""
    sections, fact = parse_sections(text), fact_of(columns.get(REQUIRES_REASONING))
    is_right = None if fact is None else sections.requires_reasoning == fact
    return Judgement(sections.thought, sections.obeys, is_right)


def has_empty_thought(text: str) -> bool:
    """Whether a think tag stands in a completion and no thinking. One that is cut off while it thinks has thinking."""
    return (THINK_START in text or THINK_END in text) and not parse_completion(text).thinking.strip()


def ask(
    tasks: Sequence[Task],
    mode: EvaluationMode,
    worker: RolloutWorker,
    scoring: Scoring,
    tokenizer: Tokenizer,
    num_samples: int = 1,
    first_group_index: int = 0,
    responses: Responses | None = None,
) -> list[tuple[Answer, JsonObject]]:
    """Put every task, `num_samples` completions each, or one greedy one. (answer, its line) of each completion.

    Completions that `responses` keeps are not asked again.
    """
    count = num_samples if mode.is_sampled else 1
    numbered = list(enumerate(tasks, first_group_index))
    reach("ask")

    def sampled() -> list[list[Rollout]]:
        found = generate(worker, [task.request(number, count, not mode.is_sampled) for number, task in numbered])
        name_failures(found)
        return found

    rollouts = sampled() if responses is None else responses.rollouts(first_group_index, tasks, sampled)
    reach("score")
    return [
        _answered(task, mode, rollout, result, tokenizer)
        for task, group in zip(tasks, reward(tasks, rollouts, scoring, tokenizer), strict=True)
        for rollout, result in group
    ]


def _answered(
    task: Task, mode: EvaluationMode, rollout: Rollout, result: RewardResult, tokenizer: Tokenizer
) -> tuple[Answer, JsonObject]:
    prompt = task.prompt
    text = tokenizer.decode(rollout.completion_ids)
    thinking = parse_completion(text).thinking
    answer = Answer(
        prompt_id=prompt.id,
        dataset=str(prompt.meta.get("dataset", prompt.meta.get("data_source", ""))),
        mode=mode,
        right=result.correct if result.is_judged else None,
        score=result.answer_value if result.is_judged else None,
        reward=result.value,
        formatted=result.parts.get("format"),
        num_tokens=len(rollout.completion_ids),
        is_cut_off=rollout.finish_reason is FinishReason.length,
        answer=result.answer,
        has_tags=THINK_START in text or THINK_END in text,
        has_thought=THINK_END in text and bool(thinking.strip()),
        is_empty_thought=has_empty_thought(text),
        judgement=judgement_of(text, prompt.meta) if mode is EvaluationMode.auto else None,
        extraction=getattr(result, "extraction", ""),
    )
    line: JsonObject = {
        "format": FORMAT,
        "id": prompt.id,
        "dataset": answer.dataset,
        "mode": mode.value,
        "sample": rollout.sample_index,
        "question": question_of(prompt.messages),
        "images": task.paths,
        "completion": text,
        "thinking": thinking,
        "answer": result.answer,
        "reference": prompt.reference,
        "verdict": answer.verdict,
        "reward": result.value,
        "parts": result.parts,
        "reason": result.reason,
        "cut_off": answer.is_cut_off,
        "num_tokens": answer.num_tokens,
        "finish_reason": rollout.finish_reason.value,
        "obeys": answer.obeys,
        **({"judgement": asdict(answer.judgement)} if answer.judgement else {}),
        **({"extraction": answer.extraction} if answer.extraction else {}),
        **({"unit": str(prompt.meta["unit"])} if prompt.meta.get("unit") else {}),
    }
    return answer, line
