"""The rows that a maker reads, in any shape, with their media as files; what cannot be read is said, not lost."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatReader, ChatRow
from model.data.config import ChatTableConfig
from model.data.media import check_images
from model.data.media_cells import VIDEO_COLUMNS, media_parts
from model.data.media_store import MediaStore
from model.data.raw_rows import RawRow
from model.data.tables import Table
from model.json_values import JsonObject
from model.run.durable import STAGING_SUFFIX
from model.run.failpoints import reach
from sft.shapes import Demonstration, ShapeColumns

_COLUMNS = (
    "id_column",
    "question_column",
    "reference_column",
    "image_column",
    "dataset_column",
    "completion_column",
    "thinking_column",
)


@dataclass(frozen=True)
class SourceRow:
    """A row as it stands in its table, and where that is."""

    raw: RawRow
    table: Table
    ordinal: int  # from 1

    @property
    def place(self) -> JsonObject:
        """The file and the row, without the folder, so that moved data give the same."""
        return {"file": self.raw.file.name, "row": self.raw.number}


class Source:
    """All rows of some files. Images that come as bytes lie in a folder of `out` until `close`."""

    def __init__(
        self, key: str, paths: Sequence[str], config: ChatTableConfig, out: Path, is_prefixed: bool = False
    ) -> None:
        """`key`: the setting that names the files. `is_prefixed`: ids of all files but the first begin with the name of
        their file, as in RL."""
        self._key, self._config = key, config
        tables = [Table(Path(path)) for path in paths]
        prefixes = [f"{table.name}/" if is_prefixed and place else "" for place, table in enumerate(tables)]
        self._tables = [replace(table, prefix=prefix) for table, prefix in zip(tables, prefixes, strict=True)]
        self._columns: set[str] = set()
        self._held = out / f"{key}{STAGING_SUFFIX}"
        self.reader = ChatReader(config, MediaStore(self._held))
        self.num_rows = 0
        self.bad = BadRows(config.max_bad_rows)

    def __iter__(self) -> Iterator[SourceRow]:
        """Rows in order. `ValueError` for a file that is missing or not what its name says."""
        for table in self._tables:
            try:
                for ordinal, raw in enumerate(table.rows(), 1):
                    self.num_rows += 1
                    self._columns |= raw.columns.keys()
                    reach("read")
                    yield SourceRow(raw, table, ordinal)
            except ValueError as error:
                head, colon, rest = str(error).partition(": ")
                raise ValueError(f"{self._key if head == 'data' else head}{colon}{rest}") from None

    def note_bad(self, row: SourceRow, reason: str) -> str:
        """Note a row that cannot be read; the reason without the place of held images."""
        said = reason.replace(f"{self._held.resolve()}/", "").replace(f"{self._held}/", "")
        self.bad.add(row.raw.file, row.raw.number, said, self.reader.own_id(row.raw))
        return said

    def check(self) -> None:
        """`ValueError` for a column of the settings that no row has, and past `data.max_bad_rows`."""
        for name in _COLUMNS:
            wanted = getattr(self._config, name, "")
            if wanted and wanted.partition(".")[0] not in self._columns:
                raise ValueError(
                    f"data.{name}: {self._key}: expected a column of the rows ({sorted(self._columns)}), "
                    f"found {wanted!r}"
                )
        self.bad.opened(self.num_rows)


class FreeIds:
    """Ids that are all different: one that is there already gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self.num_shared = 0

    def take(self, wanted: str) -> str:
        free = wanted
        if wanted in self._taken:
            self.num_shared += 1
            free = next(name for n in itertools.count(2) if (name := f"{wanted}#{n}") not in self._taken)
        self._taken.add(free)
        return free


def other_columns(chat: ChatRow, reader: ChatReader, raw: RawRow, *read: str) -> JsonObject:
    """The columns of a row beside those that became its messages and completions, which `read` names. Numbers that JSON
    does not have become null."""
    written = {"id", "mode", "messages", "completions", "completion_ids", "made_from", "system"}
    media = {"images", "image", "image_path", reader.image_column(raw.columns), *VIDEO_COLUMNS}
    names = {name for column in read for name in column.split(" and ")}
    kept = {name: value for name, value in chat.meta.items() if name not in written | media | names}
    return {name: _finite(value) for name, value in kept.items()}


def check_row(chat: ChatRow) -> None:
    """`ValueError` for messages that are none, `MediaError` for images that are none."""
    if not chat.messages:
        raise ValueError("messages: expected at least one, found none")
    for message in chat.messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages: expected objects with role and content, found {message!r:.80}")
    names = [part["image"] for part in media_parts(chat.messages) if part.get("type") == "image"]
    check_images(chat.root, [name for name in names if isinstance(name, str)])


def read_columns(shown: Demonstration, named: ShapeColumns) -> list[str]:
    """The columns that became messages and completions. An answer beside a thought stays, as the reference that it may
    be."""
    read = shown.asked.answer_column.split(" and ")[:1]
    return [shown.asked.column, *read, named.question, named.completion, named.thinking]


def without_system(chat: ChatRow) -> ChatRow:
    """The row without system messages."""
    return replace(chat, messages=[message for message in chat.messages if message.get("role") != "system"])


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return {key: _finite(one) for key, one in value.items()} if isinstance(value, dict) else value
