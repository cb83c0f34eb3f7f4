"""Multiple choice whose right option is a number or a formula, as free response: guessing a letter is no longer right.

It is the first filter of the report's RL data (section 4.1.3), by rules instead of a language model.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from model.data.chat_rows import ChatRow, first_of
from model.data.convert.prompt import is_mathematical, options_in
from model.data.media_cells import Message
from model.json_values import JsonObject
from rewards.mathematics.answer import compare_plainly
from rewards.mathematics.plain_numbers import read_plain
from rewards.mathematics.text import read
from rewards.result import Unscorable
from rewards.verifiers.choices import pick
from rewards.verifiers.option_set import OptionSet, read_options
from sft.prepare.cleaning import HintCutter, question_text
from sft.prepare.config import FreeResponseConfig, Others
from sft.prepare.output import UNREADABLE, MadeRow, Output
from sft.prepare.rows import FreeIds, Source, SourceRow, check_row, other_columns

NO_CHOICE, NO_RIGHT_OPTION, NO_NUMBER = "no_multiple_choice", "no_right_option", "no_number_or_formula"
ASKS_ABOUT_OPTIONS, OPTIONS_IN_QUESTION = "asks_about_options", "options_within_question"
"""Why a row is not rewritten."""

_OPTION_LINE = re.compile(r"^\s*(?:\([A-Z]\)|[A-Z]\s*[.、:：)])\s*\S.*$")
_HEAD_LINE = re.compile(
    r"^\s*(?:the\s+)?(?:options|choices|answer\s+choices|possible\s+answers)\s*(?:are)?\s*:?\s*$", re.I
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_MOLECULE = re.compile(r"(?:[A-Z][a-z]?[0-9]*){2,}[+-]?")
_LONGEST_FORMULA = 300
_INLINE = re.compile(r"\(([A-Z])\)\s*")
_ABOUT_OPTIONS = re.compile(
    r"\b(?:which|what)\s+(?:one\s+)?of\s+(?:the\s+)?(?:following|these|above|options|choices)\b"
    r"|\bthe\s+(?:following|above)\s+(?:options|choices|statements|answers)\b|\bfollowing\s+is\b|\bof\s+the\s+following\b"
    r"|\b(?:closest|nearest)\s+to\b|\bbest\s+(?:describes|approximat\w+|estimate)\b|\bcould\s+be\b|\bmight\s+be\b"
    r"|\bexcept\b|\bnot\s+(?:true|correct|possible)\b|下列|以下|哪",
    re.IGNORECASE,
)


class _Left(Exception):
    """A row that is not rewritten: the text is the reason under which it is counted."""


@dataclass(frozen=True)
class _Rewritten:
    messages: list[Message]
    reference: str
    letter: str


class FreeResponseMaker:
    """One call of the maker."""

    def __init__(self, config: FreeResponseConfig) -> None:
        self._config = config
        self.output = Output(config.out, "prompts.jsonl", "free_response", config.prompts)
        self.source = Source("prompts", config.prompts, config.data, self.output.folder)
        self._cutter = HintCutter(config.hints)
        self._ids = FreeIds()
        self._left: Counter[str] = Counter()
        self._num_rewritten = 0

    def run(self) -> None:
        """Read, rewrite and write. `ValueError` where nothing is left, after summary.json says why."""
        rows = [made for row in self.source if (made := self._row(row)) is not None]
        counts = {"rewritten": self._num_rewritten, "left_as_they_are": dict(sorted(self._left.items()))}
        self.output.finish(rows, self.source.num_rows, {**counts, "ids_shared": self._ids.num_shared})
        print(f"{self._num_rewritten} rows are rewritten as free response")
        self.source.check()
        self.output.write(rows)

    def _row(self, row: SourceRow) -> MadeRow | None:
        """None for a row that is dropped, which is counted."""
        own_id = self.source.reader.own_id(row.raw) or f"{row.table.name}-{row.ordinal}"
        try:
            chat = self.source.reader.read(row.raw, row.table, row.ordinal)
            check_row(chat)
            question = self.source.reader.reading.row.columns["question"]
            columns = other_columns(chat, self.source.reader, row.raw, question, "reference")
            try:
                found = self._rewritten(row, chat)
            except _Left as reason:
                if self._config.others is Others.drop:
                    self.output.drop(row, own_id, str(reason))
                    return None
                self._left[str(reason)] += 1
                return self._made(row, chat, chat.messages, {**columns, "reference": chat.reference})
            self._num_rewritten += 1
            columns = {name: value for name, value in columns.items() if name not in _OPTIONS}
            before = {"letter": found.letter, "question": question_text(chat.messages)}
            dataset = f"{chat.dataset}{self._config.dataset_suffix}"
            line = {**columns, "dataset": dataset, "reference": found.reference, "multiple_choice": before}
            return self._made(row, chat, found.messages, line)
        except ValueError as error:
            self.output.drop(row, own_id, UNREADABLE, self.source.note_bad(row, str(error)))
            return None

    def _made(self, row: SourceRow, chat: ChatRow, messages: list[Message], line: JsonObject) -> MadeRow:
        row_id = self._ids.take(chat.id)
        return self.output.made(row, row_id, {**line, "id": row_id}, messages, chat.root)

    def _rewritten(self, row: SourceRow, chat: ChatRow) -> _Rewritten:
        """The row as free response. `_Left` says why it stays as it is."""
        if chat.reference is None:
            raise _Left(NO_RIGHT_OPTION)
        messages = self._cutter.messages(chat.messages)
        last = _last_text(messages)
        options = self._options(row, last)
        letter = _right(options, chat.reference)
        text = options.given[letter].strip().rstrip(".;,")
        if not is_number_or_formula(text):
            raise _Left(NO_NUMBER)
        asked = self._cutter.cut(without_options(last, options))
        if not asked.strip() or options_in(asked) or "(A)" in asked:
            raise _Left(OPTIONS_IN_QUESTION)
        if _ABOUT_OPTIONS.search(asked):
            raise _Left(ASKS_ABOUT_OPTIONS)
        return _Rewritten(_with_last_text(messages, asked), text, letter)

    def _options(self, row: SourceRow, question: str) -> OptionSet:
        names = [self._config.options_column] if self._config.options_column else list(_OPTIONS)
        given = first_of({**row.raw.columns, **_known_options(row)}, names)[1]
        try:
            options = read_options(given) if given is not None else OptionSet(listed_options(question))
        except Unscorable:
            raise _Left(NO_CHOICE) from None
        if len(options.given) < 2:
            raise _Left(NO_CHOICE)
        return options


_OPTIONS = ("options", "choices")


def make(config: FreeResponseConfig) -> None:
    """Write `config.out`: prompts.jsonl, dropped.jsonl, summary.json and media."""
    FreeResponseMaker(config).run()


def is_number_or_formula(text: str) -> bool:
    """Tell whether an option can be asked for without options: a number, perhaps with a unit, or a formula without
    words. A lone letter is neither, because it may be a name."""
    if not 0 < len(text) <= _LONGEST_FORMULA or re.fullmatch(r"\W*[A-Za-z]\W*", text) or _MOLECULE.fullmatch(text):
        return False
    found = read(text)
    if found.words:
        return False
    has_digit = re.search(r"[0-9]", found.formula) is not None
    is_plain = has_digit and not re.search(r"[^\W\d_]{3}", _COMMAND.sub(" ", found.formula))
    return is_mathematical(text) or read_plain(found) is not None or is_plain


def listed_options(question: str) -> dict[str, str]:
    """The options by letter that a question lists: on lines of their own, or `(A) ... (B) ...` at its end."""
    if options := options_in(question):
        return options
    marks = [*_INLINE.finditer(question)]
    letters = "".join(mark[1] for mark in marks)
    if len(marks) < 2 or letters != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(marks)]:
        return {}
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    texts = [question[mark.end() : end].strip(" \n,;") for mark, end in zip(marks, ends, strict=True)]
    return dict(zip(letters, texts, strict=True)) if all(texts) and not any("\n" in text for text in texts) else {}


def without_options(question: str, options: OptionSet) -> str:
    """The question without the options that it lists at its end, and without the line that announces them."""
    lines = question.rstrip().split("\n")
    if options_in(question):
        while lines and _OPTION_LINE.match(lines[-1]):
            lines.pop()
    elif listed_options(question):
        first = _INLINE.search(question)
        lines = question[: first.start() if first else None].rstrip().split("\n")
    while lines and (not lines[-1].strip() or _HEAD_LINE.match(lines[-1])):
        lines.pop()
    return "\n".join(lines)


def _right(options: OptionSet, reference: str) -> str:
    """The letter of the right option. `_Left` where the reference names none, or several."""
    letter = pick(reference, options, lambda one, other: bool(compare_plainly(one, other)))
    if letter is None or letter not in options.given:
        raise _Left(NO_RIGHT_OPTION)
    return letter


def _known_options(row: SourceRow) -> Mapping[str, object]:
    """The options of a row that has them in columns A, B, C ... ."""
    letters = [letter for letter in "ABCDEFGHIJ" if isinstance(row.raw.columns.get(letter), str | int | float)]
    if len(letters) < 2 or "options" in row.raw.columns:
        return {}
    return {"options": {letter: str(row.raw.columns[letter]) for letter in letters}}


def _last_text(messages: list[Message]) -> str:
    """The last text of the last user's message. `_Left` where it has none."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    parts = [part for part in content or [] if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    if not texts or len(texts) < len(parts):
        raise _Left(NO_CHOICE)
    return texts[-1]


def _with_last_text(messages: list[Message], text: str) -> list[Message]:
    *before, last = messages
    content = last.get("content")
    if isinstance(content, str):
        return [*before, {**last, "content": text}]
    parts = list(content or [])
    place = max(number for number, part in enumerate(parts) if isinstance(part, dict) and part.get("type") == "text")
    parts[place] = {**parts[place], "text": text}
    return [*before, {**last, "content": parts}]
