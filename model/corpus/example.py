"""From the columns of a row to what is trained: a conversation, or a document. Rows of many data sets as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.corpus.shard import Withheld
from model.data.chat_rows import first_of
from model.data.config import SourceKind
from model.data.conversations import assistant_text, conversation, mode_of
from model.data.media import HeldPicture, Picture, inside
from model.data.media_cells import VIDEO_COLUMNS, image_sources, media_parts, placed
from model.data.media_error import MissingFile
from model.data.raw_rows import check_text
from model.data.tables import text_list
from model.interface import Mode
from model.json_values import JsonObject

_CHATS = ("messages", "conversations", "texts", "conversation")
_QUESTIONS = ("question", "problem", "prompt", "instruction", "query")
_ANSWERS = (
    *("answer", "solution", "response", "output", "completion", "chosen", "generated_solution"),
    *("multiple_choice_answer", "answers"),
)
_COMPLETIONS = "completions"
_TEXTS = ("texts", "text", "caption", "captions", "words", "ocr", "pages")
_IMAGES = ("images", "image", "image_path")


@dataclass(frozen=True)
class Form:
    """How the rows of a source are read; a part of what its index is made for."""

    kind: SourceKind = SourceKind.auto
    template: str = ""
    question: str = ""
    answer: str = ""
    image: str = ""


@dataclass(frozen=True)
class Example:
    """A conversation, or a document; images are file names under a root or pictures.

    A conversation ends with the assistant, or with a user whom `texts` answer, each for itself.
    """

    messages: list[JsonObject] | None  # None: a document
    mode: Mode = Mode.direct
    prefix: str = ""  # text of a document before what is trained
    texts: list[str] = field(default_factory=list)  # each is trained behind what is common
    images: list[Any] = field(default_factory=list)  # those of a document
    columns: dict[str, str] = field(default_factory=dict)  # use -> the column that it came from


def read_example(columns: Mapping[str, Any], form: Form, root: Path) -> Example:
    """`ValueError` for a row in no known shape, with what was found. Images in `Withheld` columns stay that."""
    image_column, cell = first_of(columns, _image_columns(columns, form))
    images = [_source(one, root) for one in _images(cell)]
    videos = _videos(columns)
    column = _chat_column(columns, form)
    if form.kind is SourceKind.document or (form.kind is SourceKind.auto and not column and not form.template):
        return _document(columns, image_column, images, videos)
    messages, named = _messages(columns, column, form)
    if videos and not images:  # LLaVA-Video writes <image> for the video of a row
        messages = [_with_video_places(message) for message in messages]
    messages, _ = placed("conversations", messages, {"image": images, "video": videos}, first=True)
    for part in media_parts(messages):
        if part.get("type") == "image":
            part["image"] = _source(part["image"], root)
        elif part.get("type") == "video":
            _require_file(root, part["video"], "video")
    answers = _completions(columns) if messages[-1]["role"] == "user" else [assistant_text(messages[-1])]
    mode, texts, _ = mode_of(columns.get("mode"), answers)
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if len(texts) == 1:
        messages.append({"role": "assistant", "content": texts.pop()})
    check_text([*texts, *({**message, "content": _text_of(message.get("content"))} for message in messages)])
    return Example(messages, mode, texts=texts, columns={**named, "images": image_column if images else ""})


def _chat_column(columns: Mapping[str, Any], form: Form) -> str:
    """The column that holds a conversation or a question; empty where there is none."""
    if form.question:
        return form.question
    for name in _CHATS:
        value = columns.get(name)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return name
    name, _ = first_of(columns, _QUESTIONS)
    return name if name and (form.answer or first_of(columns, _ANSWERS)[0]) else ""


def _messages(columns: Mapping[str, Any], column: str, form: Form) -> tuple[list[JsonObject], dict[str, str]]:
    """(messages that end with the assistant, use -> column)."""
    if not column:
        if not form.template:
            raise ValueError(
                f"expected a conversation, or a question with an answer, found the columns {sorted(columns)}; "
                "data.sources.NAME.template gives a question to rows that have only a text"
            )
        text_column, texts = _texts_of(columns)
        if len(texts) != 1:
            raise ValueError(f"{text_column}: expected one text to answer the template with, found {len(texts)}")
        return _turns(form.template, texts[0]), {"text": text_column}
    value = columns.get(column)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        if "user" in value[0] or "assistant" in value[0]:  # FineVision's and the Cauldron's texts
            messages = [message for pair in value for message in _pair(column, pair)]
        else:
            messages = conversation(column, value, columns.get("system"))
        if messages and messages[-1]["role"] == "user" and (form.answer or _COMPLETIONS not in columns):
            if not first_of(columns, [form.answer] if form.answer else _ANSWERS)[0]:
                raise ValueError(
                    f"{column}: expected a conversation that ends with the assistant, or a column with the answer"
                )
            messages.append({"role": "assistant", "content": _answer(columns, form)[1]})
        if not messages or messages[-1]["role"] == "system":
            raise ValueError(f"{column}: expected a conversation that ends with the assistant")
        return messages, {"conversation": column}
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column}: expected a text or a conversation, found {value!r:.80}")
    answer_column, answer = _answer(columns, form)
    given = columns.get("input")
    if column == "instruction" and isinstance(given, str) and given.strip():
        value = f"{value}\n{given}"
    turns = _turns(value, answer)
    system = columns.get("system")
    if isinstance(system, str) and system.strip():
        turns.insert(0, {"role": "system", "content": system})
    return turns, {"question": column, "answer": answer_column}


def _completions(columns: Mapping[str, Any]) -> list[str]:
    """The answers of our own rows of SFT."""
    return text_list(dict(columns), _COMPLETIONS)


def _pair(column: str, pair: object) -> list[JsonObject]:
    if not isinstance(pair, dict) or not all(isinstance(pair.get(key), str) for key in ("user", "assistant")):
        raise ValueError(f"{column}: expected objects with the texts user and assistant, found {pair!r:.80}")
    return _turns(pair["user"], pair["assistant"])


def _turns(question: str, answer: str) -> list[JsonObject]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _answer(columns: Mapping[str, Any], form: Form) -> tuple[str, str]:
    """(column, answer): a text or number; the first one of a list of answers."""
    column, value = first_of(columns, [form.answer] if form.answer else _ANSWERS)
    if isinstance(value, list) and value:
        value = value[0].get("answer") if isinstance(value[0], dict) else value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"{column or 'answer'}: expected a text or a number, found {value!r:.80}")
    return column, str(value)


def _document(columns: Mapping[str, Any], image_column: str, images: list[Any], videos: Sequence[str]) -> Example:
    if videos:
        raise ValueError("videos: expected a conversation or a template in a row with a video, found a document")
    prefix = columns.get("prefix", "")
    if not isinstance(prefix, str):
        raise ValueError(f"prefix: expected a text, found {prefix!r:.80}")
    text_column, texts = _texts_of(columns)
    check_text({"prefix": prefix, "texts": texts})
    named = {"text": text_column, "images": image_column if images else "", "prefix": "prefix" if prefix else ""}
    return Example(None, prefix=prefix, texts=texts, images=images, columns=named)


def _texts_of(columns: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(column, texts). A list of words, and the lines of a page, are one text."""
    column, value = first_of(columns, _TEXTS)
    if not column:
        raise ValueError(
            f"expected a conversation, a question with an answer, or a text ({', '.join(_TEXTS)}), found the columns "
            f"{sorted(columns)}"
        )
    if column == "pages":
        return column, [_page_text(value)]
    if column == "words" and isinstance(value, list):
        value = " ".join(text_list(dict(columns), column))
    return column, text_list({column: value}, column)


def _page_text(pages: object) -> str:
    """The lines of the first page of an OCR document as IDL-WDS writes them, whose picture is the first page too."""
    page = pages[0] if isinstance(pages, list) and pages else None
    lines = page.get("text") if isinstance(page, dict) else None
    if isinstance(lines, str) and lines.strip():
        return lines
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"pages: expected pages with a list of texts, found {page!r:.80}")
    return "\n".join(lines)


def _images(cell: object) -> list[Any]:
    return cell if isinstance(cell, list) and _is_withheld(cell) else image_sources(cell)


def _is_withheld(cell: object) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(one, Withheld) for one in cell)


def _image_columns(columns: Mapping[str, Any], form: Form) -> Sequence[str]:
    """Where the images may be: one that was not read stands in its whole column, and not in a field of it."""
    if not form.image:
        return _IMAGES
    whole = form.image.partition(".")[0]
    return [whole if _is_withheld(columns.get(whole)) else form.image]


def _source(source: Any, root: Path) -> Any:
    """A file name that was checked, or a picture; what is one already stays."""
    if isinstance(source, bytes):
        return HeldPicture(source)
    if isinstance(source, str):
        _require_file(root, source, "image")
    elif not isinstance(source, Withheld | Picture):
        raise ValueError(f"image: expected a file name or bytes, found {source!r:.80}")
    return source


def _require_file(root: Path, name: str, kind: str) -> None:
    if not inside(root, name, kind).is_file():
        raise MissingFile(f"{kind} {inside(root, name, kind)}: expected a file, found none", name)


def _videos(columns: Mapping[str, Any]) -> list[str]:
    _, cell = first_of(columns, VIDEO_COLUMNS)
    found = []
    for value in cell if isinstance(cell, list) else [cell] if cell else []:
        name = value.get("path") or value.get("video") if isinstance(value, dict) else value
        if not isinstance(name, str) or not name:
            raise ValueError(f"video: expected the name of a file beside the data, found {value!r:.80}")
        found.append(name)
    return found


def _with_video_places(message: JsonObject) -> JsonObject:
    content = message.get("content")
    return {**message, "content": content.replace("<image>", "<video>")} if isinstance(content, str) else message


def _text_of(content: object) -> str:
    """The text of a message's content, images apart."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
