"""Ten public data sets: the columns that each is published with, and how a row of it becomes a prompt."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from model.data.convert.prompt import (
    Converted,
    LeftOut,
    answer_of,
    is_choice,
    judged,
    kept,
    lettered,
    options_in,
    question_text,
    text_of,
    untagged,
)
from model.json_values import parse_json

Row = Mapping[str, object]
_CONCLUSION = ("<CONCLUSION>", "</CONCLUSION>")


@dataclass(frozen=True)
class Layout:
    """One form in which a data set is published: the columns that every row has, and how a row is read."""

    columns: tuple[str, ...]
    read: Callable[[Row], Converted]


@dataclass(frozen=True)
class DataSet:
    """A data set: the forms in which it is published, and what its files are called where they are no Parquet."""

    layouts: tuple[Layout, ...]
    verifiers: tuple[str, ...]  # those that its rows may need
    files: tuple[str, ...] = ()  # patterns below the folder
    list_key: str = ""  # the key of the list of rows in a JSON file that is one object
    images: tuple[str, ...] = ("",)  # folders that images are named from, below the source; "" is the source

    def name_of(self, name: str, verifier: str) -> str:
        """The name of the data set in a row: one for each verifier, because `reward.datasets` goes by it."""
        return f"{name}_{verifier}" if len(self.verifiers) > 1 else name


def _cells(row: Row, *names: str) -> list[object]:
    """The images of the first of these columns that is there, one or several."""
    for name in names:
        value = row.get(name)
        if value is not None:
            return list(value) if isinstance(value, list) else [value]
    return []


def _geometry3k(row: Row) -> Converted:
    images = _cells(row, "images")
    question = question_text(text_of(row, "problem"), len(images))
    return Converted(question, answer_of(row, "answer"), "math", images)


def _mmk12(row: Row) -> Converted:
    return _letter_or_mathematics(text_of(row, "question"), row, _cells(row, "image"), "subject")


def _mm_eureka(row: Row) -> Converted:
    question, images = _asked(row.get("conversations", row.get("message")))
    return _letter_or_mathematics(question, row, _cells(row, "image_urls") or images)


def _letter_or_mathematics(question: str, row: Row, images: Sequence[object], *columns: str) -> Converted:
    answer = untagged(answer_of(row, "answer"))
    options = options_in(question)
    text = question_text(question, len(images))
    known = {**kept(row, *columns), **_source_id(row)}
    if is_choice(answer, options):
        return Converted(text, answer, "choice", images, options, known)
    return Converted(text, answer, "math", images, {}, known)


def _asked(conversation: object) -> tuple[str, list[object]]:
    """(text, images) of the last user's message in messages, or in their JSON text."""
    messages = parse_json(conversation) if isinstance(conversation, str) else conversation
    listed = messages if isinstance(messages, list) else []
    users = [one for one in listed if isinstance(one, dict) and one.get("role") == "user"]
    if not users:
        raise ValueError(f"conversations: expected messages with one of a user, found {conversation!r:.80}")
    content = users[-1].get("content")
    if isinstance(content, str):
        return content, []
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [str(part["text"]) for part in parts if part.get("type") == "text" and part.get("text")]
    if not texts:
        raise ValueError(f"conversations: expected a text in the user's message, found {content!r:.80}")
    return "\n".join(texts), [part["image"] for part in parts if part.get("type") == "image" and part.get("image")]


def _scienceqa(row: Row) -> Converted:
    choices = row.get("choices")
    options = lettered(choices if isinstance(choices, list) else [])
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise ValueError(f"answer: expected the number of a choice, 0 to {len(options) - 1}, found {answer!r:.80}")
    images = _cells(row, "image")
    hint = row.get("hint")
    hint = hint.strip() if isinstance(hint, str) else ""
    question = question_text(text_of(row, "question"), len(images), options, hint)
    columns = kept(row, "subject", "topic", "category", "skill", "grade")
    return Converted(question, string.ascii_uppercase[answer], "choice", images, options, columns)


def _clevr_solution(row: Row) -> Converted:
    images = _cells(row, "image")
    answer = untagged(answer_of(row, "solution"))
    return Converted(question_text(text_of(row, "problem"), len(images)), answer, _clevr_verifier(answer), images)


def _clevr(row: Row) -> Converted:
    answer = answer_of(row, "answer")
    name = PurePosixPath(text_of(row, "split")) / text_of(row, "image_filename")
    question = question_text(text_of(row, "question"), 1)
    return Converted(question, answer, _clevr_verifier(answer), [str(name)], columns=kept(row, "question_index"))


def _clevr_verifier(answer: str) -> str:
    return "count" if answer.isdecimal() else "boolean" if answer.lower() in ("yes", "no") else "exact"


def _mathv360k(row: Row) -> Converted:
    question, answer = _first_turns(row)
    return _short_answer(row, question, untagged(answer).rstrip("。").removesuffix(" ."))


def _llava_cot(row: Row) -> Converted:
    question, answer = _first_turns(row)
    _, opening, rest = answer.rpartition(_CONCLUSION[0])
    conclusion, closing, _ = rest.partition(_CONCLUSION[1])
    if not opening or not closing:
        raise LeftOut("no conclusion")
    if not conclusion.strip():
        raise LeftOut("no answer")
    return _short_answer(row, question, untagged(conclusion.strip()))


def _short_answer(row: Row, question: str, answer: str) -> Converted:
    if not answer:
        raise LeftOut("no answer")
    images = _cells(row, "image")
    verifier, reference, options = judged(question, answer)
    return Converted(question_text(question, len(images)), reference, verifier, images, options, _source_id(row))


def _first_turns(row: Row) -> tuple[str, str]:
    """The first question and its answer in LLaVA's conversations; later turns build on an answer that is given."""
    turns = row.get("conversations")
    said: list[str] = []
    for role, turn in zip(("human", "gpt"), turns if isinstance(turns, list) else [], strict=False):
        value = turn.get("value") if isinstance(turn, dict) and turn.get("from") == role else None
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"conversations: expected a turn of {role} with a text, found {turn!r:.80}")
        said.append(value.strip())
    if len(said) != 2:
        raise ValueError(f"conversations: expected a turn of human and one of gpt, found {turns!r:.80}")
    return said[0], said[1]


def _mathvision(row: Row) -> Converted:
    images = _cells(row, "decoded_image", "image")
    answer = answer_of(row, "answer")
    columns = {**kept(row, "subject", "level"), **_source_id(row)}
    given = row.get("options")
    if not given:
        return Converted(question_text(text_of(row, "question"), len(images)), answer, "math", images, {}, columns)
    options = lettered(given if isinstance(given, list) else [])
    if answer not in options:
        raise ValueError(f"answer: expected one of the letters {', '.join(options)}, found {answer!r:.80}")
    if all(letter == text for letter, text in options.items()):  # they are drawn in the picture
        question = question_text(text_of(row, "question"), len(images))
        question += f"\nOne of {', '.join(options)} is right: give its letter."
    else:
        question = question_text(text_of(row, "question"), len(images), options)
    return Converted(question, answer, "choice", images, options, columns)


def _chartqa(row: Row) -> Converted:
    name = row.get("imgname")
    images = _cells(row, "image") if name is None else [f"png/{name}"]
    label = row.get("label")
    answers = [one for one in label if isinstance(one, str) and one.strip()] if isinstance(label, list) else []
    if isinstance(label, list) and not answers:
        raise LeftOut("no answer")
    reference = answers if len(answers) > 1 else answers[0].strip() if answers else answer_of(row, "label")
    return Converted(
        question_text(text_of(row, "query"), len(images)), reference, "relaxed", images, {}, _chart_maker(row)
    )


def _chart_maker(row: Row) -> dict[str, object]:
    """Who wrote the question, where the row says so: `datasets` stores the number of the name."""
    made = row.get("human_or_machine")
    return {"human_or_machine": ("human", "machine")[made]} if made in (0, 1) else {}


def _chartqa_short(row: Row) -> Converted:
    images = _cells(row, "image")
    question = question_text(text_of(row, "question"), len(images))
    return Converted(question, answer_of(row, "answer"), "relaxed", images, {}, kept(row, "type"))


def _docvqa(row: Row) -> Converted:
    answers = row.get("answers")
    if not answers:
        raise LeftOut("no answer")
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise ValueError(f"answers: expected a list of texts, found {answers!r:.80}")
    references = [one for one in dict.fromkeys(text.strip() for text in answers) if one]
    if not references:
        raise LeftOut("no answer")
    images = _cells(row, "image")
    columns = kept(row, "questionId", "docId", "question_types")
    return Converted(question_text(text_of(row, "question"), len(images)), references, "anls", images, {}, columns)


def _source_id(row: Row) -> dict[str, object]:
    """The id that the data set gives the row."""
    found = row.get("id")
    return {"source_id": found} if isinstance(found, str | int) and not isinstance(found, bool) else {}


_SHORT = ("choice", "boolean", "math", "exact")

SETS: dict[str, DataSet] = {
    "geometry3k": DataSet((Layout(("images", "problem", "answer"), _geometry3k),), ("math",)),
    "mmk12": DataSet((Layout(("id", "question", "answer", "subject", "image"), _mmk12),), ("choice", "math")),
    "mm_eureka": DataSet(
        (
            Layout(("conversations", "answer"), _mm_eureka),
            Layout(("message", "answer"), _mm_eureka),
        ),
        ("choice", "math"),
        ("dataset.jsonl", "*.jsonl"),
    ),
    "scienceqa": DataSet((Layout(("question", "choices", "answer"), _scienceqa),), ("choice",)),
    "clevr": DataSet(
        (
            Layout(("image", "problem", "solution"), _clevr_solution),
            Layout(("question", "image_filename", "split"), _clevr),
        ),
        ("boolean", "count", "exact"),
        ("**/CLEVR_*_questions.json",),
        list_key="questions",
        images=("images", "CLEVR_v1.0/images", ""),
    ),
    "mathv360k": DataSet(
        (Layout(("image", "conversations"), _mathv360k),),
        _SHORT,
        ("train_samples_all_tuning.json",),
        images=("data_images", "images_data", "images", ""),
    ),
    "llava_cot": DataSet(
        (Layout(("image", "conversations"), _llava_cot),),
        _SHORT,
        ("train.jsonl",),
        images=("", "image", "images", "image_files"),
    ),
    "mathvision": DataSet((Layout(("question", "options", "answer"), _mathvision),), ("choice", "math")),
    "chartqa": DataSet(
        (
            Layout(("image", "query", "label"), _chartqa),
            Layout(("imgname", "query", "label"), _chartqa),
            Layout(("question", "answer", "image"), _chartqa_short),
        ),
        ("relaxed",),
        ("**/*_human.json", "**/*_augmented.json"),
    ),
    "docvqa": DataSet(
        (Layout(("questionId", "question", "image", "docId"), _docvqa),),
        ("anls",),
        ("**/*_v1.0*.json",),
        list_key="data",
    ),
}
