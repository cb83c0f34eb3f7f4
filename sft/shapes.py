"""The rows that others write for SFT, in one form: what is asked, and what is answered.

Known are our own rows (`completions`), conversations that end with the assistant (OpenAI's `messages`, LLaVA's and
ShareGPT's `conversations`), TRL's `prompt` and `completion`, and a question with an answer, with or without a thought.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from model.data.chat_rows import Asked, first_of
from model.data.config import ReferenceForm
from model.data.conversations import assistant_text, conversation
from model.data.references import read_reference
from model.data.tables import text_list
from model.interface import THINK_END, THINK_START
from model.json_values import JsonObject

_QUESTIONS = ("messages", "conversations", "question", "problem", "prompt", "instruction")
COMPLETION_COLUMNS = ("completions", "completion")
ANSWER_COLUMNS = ("solution", "answer", "response", "output")
_ANSWERS_TO_THOUGHTS = ("answer", "solution", "response", "output")
THOUGHT_COLUMNS = ("thinking", "reasoning", "reasoning_content", "cot", "rationale")


@dataclass(frozen=True)
class Demonstration:
    """One row: a question, and the completions that answer it. Assistants' turns in the question are trained too."""

    asked: Asked
    completions: list[str]
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ShapeColumns:
    """The columns that the config names; empty where the known ones are taken."""

    question: str = ""
    completion: str = ""
    thinking: str = ""


def read_demonstration(columns: Mapping[str, object], names: ShapeColumns, form: ReferenceForm) -> Demonstration:
    """`ValueError` for a row in no known shape, with what was found."""
    column, question = _question_of(columns, names.question)
    if isinstance(question, list):
        question = conversation(column, question, columns.get("system"))
    where, given = first_of(columns, [names.completion] if names.completion else COMPLETION_COLUMNS)
    if where and not _is_messages(given):
        return Demonstration(Asked(column, question, where), text_list({where: given}, where))
    if where:
        question = [*_as_messages(column, question), *conversation(where, given, None)]
    if isinstance(question, list) and question and question[-1]["role"] == "assistant":
        *before, last = question
        several = any(message["role"] == "assistant" for message in before)
        remarks = ["have several turns of the assistant; each is a sample of its own"] if several else []
        return Demonstration(Asked(column, before, where or column), [assistant_text(last)], remarks)
    return _answered(columns, Asked(column, question, ""), names, form)


def _question_of(columns: Mapping[str, object], named: str) -> tuple[str, object]:
    """(column, question): as RL has them, a prompt of messages comes before texts. Alpaca's `input` belongs to its
    instruction."""
    column, question = first_of(columns, [named] if named else _QUESTIONS)
    if not named and column not in ("messages", "conversations") and _is_messages(columns.get("prompt")):
        return "prompt", columns["prompt"]
    given = columns.get("input")
    if not named and column == "instruction" and isinstance(question, str) and isinstance(given, str) and given.strip():
        return "instruction and input", f"{question}\n{given}"
    return column, question


def _answered(columns: Mapping[str, object], asked: Asked, names: ShapeColumns, form: ReferenceForm) -> Demonstration:
    """A question with an answer in a column of its own, with a thought in another one or without."""
    thought_column, thought = first_of(columns, [names.thinking] if names.thinking else THOUGHT_COLUMNS)
    where, answer = first_of(columns, _ANSWERS_TO_THOUGHTS if thought_column else ANSWER_COLUMNS)
    if not where:
        raise ValueError(
            "completions: expected a column of completions, a conversation that ends with the assistant, or a question "
            f"with an answer, found {sorted(columns)}"
        )
    if not thought_column:
        return Demonstration(replace(asked, answer_column=where), [read_reference(answer, ReferenceForm.plain)[0]])
    if not isinstance(thought, str) or not thought.strip():
        raise ValueError(f"{thought_column}: expected a text, found {thought!r:.80}")
    completion = _with_thought(thought, read_reference(answer, form)[0])
    return Demonstration(replace(asked, answer_column=f"{thought_column} and {where}"), [completion])


def _as_messages(column: str, question: object) -> list[JsonObject]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if not isinstance(question, list):
        raise ValueError(f"{column or 'prompt'}: expected text or messages, found {question!r:.80}")
    return question


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _with_thought(thought: str, answer: str) -> str:
    """A completion of thinking mode: the thought between its tags, the answer in a box."""
    inner = thought.strip().removeprefix(THINK_START).removesuffix(THINK_END)
    if THINK_START in inner or THINK_END in inner:
        raise ValueError(f"thinking: expected a text without think tags in it, found {thought!r:.80}")
    boxed = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    return f"{THINK_START}{inner}{THINK_END}{boxed}"
