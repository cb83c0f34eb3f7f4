"""Rows to train on: sources that build them one by one, a bounded cache, and which rows belong to which step."""

from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from model.batch import Row
from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatReader
from model.data.config import LoaderConfig, TableConfig
from model.data.media_error import MediaError
from model.data.media_store import MediaStore
from model.data.order import KeyedOrder
from model.data.raw_rows import RawRow
from model.data.tables import Table
from model.run.failpoints import reach
from model.run.identity import Input, input_of
from model.run.printable import printable
from model.run.state import State

Item = TypeVar("Item")
Built = TypeVar("Built", covariant=True)
_BYTES_OF_ID = 36  # a Python int and its place in a list
_COLUMNS = tuple(
    f"{use}_column" for use in ("id", "image", "question", "reference", "dataset", "completion", "thinking")
)
"""The settings of `data` that name a column."""


class RowSource(Protocol[Built]):
    """Rows by number. What they say is checked at opening; pixels are decoded when a row is built, as a `Row` to train
    on or as a prompt to sample from.
    """

    def __len__(self) -> int: ...

    def build(self, index: int) -> Built:
        """`MediaError` for a row whose images cannot be read."""
        ...

    def length(self, index: int) -> int:
        """Packed tokens of the row (of a prompt: its ids), without building it."""
        ...

    def name_bad(self, index: int, reason: str) -> None:
        """Count and name a row that could not be built. `ValueError` past `data.max_bad_rows`."""
        ...

    def described(self) -> list[str]:
        """Say in a few lines what was read from which columns, and how."""
        ...

    @property
    def bad_rows(self) -> BadRows:
        """The rows that cannot be used; their state belongs into a checkpoint."""
        ...

    @property
    def inputs(self) -> Mapping[str, Input]:
        """The inputs of the rows, by key of the config, with checksums."""
        ...


@dataclass(frozen=True)
class DataFolders:
    """Where a run keeps what its data needs."""

    media: Path | None = None  # images that come as bytes; None: a temporary folder
    report: Path | None = None  # JSONL that names bad rows

    def named(self, name: str) -> "DataFolders":
        """For another table of the same run: a report of its own."""
        return replace(self, report=self.report and self.report.with_stem(f"{self.report.stem}_{name}"))


def input_of_tables(tables: Mapping[str, str]) -> dict[str, Input]:
    """Checksums of tables by key of the config, without reading rows. Those that are gone are left out."""
    found: dict[str, Input] = {}
    for key, path in tables.items():
        if path and Path(path).exists():
            found[key] = input_of(*Table(Path(path)).files)
    return found


class TableSource(ABC, Generic[Item]):
    """The usable rows of one or several tables, each kept as what `admit` makes of it: text, not ids or pixels."""

    def __init__(self, key: str, paths: Sequence[Path], config: TableConfig, folders: DataFolders) -> None:
        """`key`: the setting that names the first path; `data.also` names the others, whose ids begin with the name of
        their table.

        `ValueError` for a file that is missing or not what its name says, and past `data.max_bad_rows`.
        """
        self._key = key
        self._media = MediaStore(folders.media)
        self.reader = ChatReader(config, self._media)
        self.items: list[Item] = []
        self._lengths = array("q")
        self._places: list[tuple[Path, int]] = []
        self._ids: dict[str, int] = {}
        self.bad_rows = BadRows(config.max_bad_rows, folders.report)
        total = 0
        columns: set[str] = set()
        tables = _tables(paths)
        for table in tables:
            for ordinal, raw in enumerate(_rows_of(table, key), 1):
                total += 1
                reach("read")
                columns |= raw.columns.keys()
                try:
                    self._take(raw, table, ordinal)
                except ValueError as error:
                    reason = self._media.without_folder(str(error))
                    self.bad_rows.add(raw.file, raw.number, reason, self.reader.own_id(raw))
        for name in _COLUMNS:
            wanted = getattr(config, name, "")
            if wanted and wanted.partition(".")[0] not in columns:
                raise ValueError(
                    f"data.{name}: {paths[0]}: expected a column of the rows ({sorted(columns)}), found {wanted!r}"
                )
        self.bad_rows.opened(total)
        self.inputs = self._digests(tables)

    def described(self) -> list[str]:
        """Say in a few lines what was read from which columns, and how."""
        lengths = sorted(self._lengths)
        samples = "" if len(self) == self.reader.reading.num_rows else f"{len(self)} samples, "
        shown = f"{samples}median {lengths[len(lengths) // 2]} tokens, longest {lengths[-1]}" if lengths else ""
        return [printable(line) for line in self.reader.reading.lines(self._key, shown)]

    @abstractmethod
    def admit(
        self, raw: RawRow, table: Table, ordinal: int
    ) -> tuple[str, Item, int] | list[tuple[str, Item, int]] | None:
        """(id, what is kept, packed tokens) of the `ordinal`-th row of a table, None for one that is not wanted; a list
        where a row is several items.

        `ValueError` says why it cannot be used.
        """

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[str]:
        return list(self._ids)

    def index_of(self, row_id: str) -> int:
        return self._ids[row_id]

    def knows(self, row_id: str) -> bool:
        """Whether a row has this id."""
        return row_id in self._ids

    def refuse_known(self, row_id: str) -> None:
        """`ValueError` for an id that another row has."""
        if row_id in self._ids:
            raise ValueError(f"id: expected a unique value, found {row_id!r} again")

    def length(self, index: int) -> int:
        return self._lengths[index]

    def name_bad(self, index: int, reason: str) -> None:
        file, number = self._places[index]
        self.bad_rows.add_later(file, number, self.ids[index], self._media.without_folder(reason))

    def _digests(self, tables: Sequence[Table]) -> dict[str, Input]:
        """Checksums of the tables, and of the media files that their rows name."""
        first, *others = tables
        found = {
            self._key: replace(input_of(*first.files), path=str(first.path)),
            f"{self._key}.media": Input(f"a picture or video of {first.path}", self.reader.digest.finish()),
        }
        if others:
            found["data.also"] = input_of(*(file for table in others for file in table.files))
        return found

    def _take(self, raw: RawRow, table: Table, ordinal: int) -> None:
        admitted = self.admit(raw, table, ordinal)
        if admitted is None:
            return
        several = admitted if isinstance(admitted, list) else [admitted]
        for row_id, _, _ in several:
            self.refuse_known(row_id)
        self.reader.reading.keep(raw.columns)
        for row_id, item, length in several:
            self._ids[row_id] = len(self.items)
            self.items.append(item)
            self._lengths.append(length)
            self._places.append((raw.file, raw.number))


def _rows_of(table: Table, key: str) -> Iterator[RawRow]:
    """The rows of a table. A `ValueError` about its file is headed by the setting that names it."""
    try:
        yield from table.rows()
    except ValueError as error:
        head, colon, rest = str(error).partition(": ")
        setting = "data.also" if table.prefix else key
        raise ValueError(f"{setting if head == 'data' else head}{colon}{rest}") from None


def _tables(paths: Sequence[Path]) -> list[Table]:
    tables = [Table(path) for path in paths]
    names = [table.name for table in tables]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"data.also: expected files of different names, found {twice[0]!r} twice; rename one")
    return [replace(table, prefix=f"{table.name}/" if position else "") for position, table in enumerate(tables)]


class BoundedCache(Generic[Item]):
    """The items that were used last, as many as `capacity` bytes hold."""

    def __init__(self, capacity: int, size: Callable[[Item], int], least: int = 0) -> None:
        """`size` tells the bytes of an item; the `least` items that were used last stay, however large they are."""
        self._capacity, self._size, self._least, self.num_bytes = capacity, size, least, 0
        self._items: OrderedDict[object, Item] = OrderedDict()

    def get(self, key: object, build: Callable[[], Item]) -> Item:
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        item = self._items[key] = build()
        self.num_bytes += self._size(item)
        while self.num_bytes > self._capacity and len(self._items) > self._least:
            self.num_bytes -= self._size(self._items.popitem(last=False)[1])
        return item


def bytes_of_row(row: Row) -> int:
    """Memory of a built row, mostly pixels."""
    return sum(image.nbytes for image in row.images) + _BYTES_OF_ID * row.num_tokens


@dataclass(frozen=True)
class StepContent:
    """The rows of one step of a supervised stage."""

    rows: list[Row]
    bins: list[list[int]] | None = None  # numbers of the rows of each micro-batch; None: as the loop splits them
    sources: list[str] = field(default_factory=list)  # name of the source of each row; empty: there is one
    metrics: dict[str, float] = field(default_factory=dict)


class StepSource(Protocol):
    """The rows of every step: a function of its number, with state for a checkpoint (`Stateful`)."""

    def content(self, step: int) -> StepContent:
        """Rows of one step. `ValueError` where there are none."""
        ...

    def following(self) -> StepContent | None:
        """The rows of the step behind the last one that `content` gave, if they are ready; it will give them then."""
        ...

    @property
    def loader(self) -> LoaderConfig | None:
        """How images are read ahead; None where they are not."""
        ...

    def state(self) -> State: ...

    def restore(self, state: State) -> None: ...

    def described(self) -> list[str]:
        """Say how the rows were read."""
        ...

    def close(self) -> None:
        """End what works ahead."""
        ...

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    @property
    def steps_per_pass(self) -> int:
        """Steps after which every row was there once."""
        ...


@dataclass(frozen=True)
class StepPart:
    """How many rows of a source are in every step, in which order they come."""

    source: RowSource[Row]
    per_step: int
    order: KeyedOrder

    @classmethod
    def keyed(cls, source: RowSource[Row], per_step: int, seed: int, name: str) -> "StepPart":
        """Rows in an order that the seed and `name` decide."""
        return cls(source, per_step, KeyedOrder(len(source), seed, name))


class StepRows:
    """The rows of each step, as a function of the step's number alone."""

    def __init__(self, parts: Sequence[StepPart], cache_mib: int) -> None:
        self._parts = [part for part in parts if part.per_step]
        self._cache = BoundedCache[Row](cache_mib * 2**20, bytes_of_row)

    def state(self) -> State:
        """Rows that turned out bad after the opening, by part."""
        return {"bad_rows": [part.source.bad_rows.state() for part in self._parts]}

    def restore(self, state: State) -> None:
        for part, found in zip(self._parts, state["bad_rows"], strict=True):
            part.source.bad_rows.restore(found)

    @property
    def inputs(self) -> dict[str, Input]:
        """The inputs of all parts."""
        return {key: one for part in self._parts for key, one in part.source.inputs.items()}

    def described(self) -> list[str]:
        """Say how the rows of all parts were read."""
        return list(dict.fromkeys(line for part in self._parts for line in part.source.described()))

    @property
    def steps_per_pass(self) -> int:
        """Steps after which every row was there once."""
        return max(-(-len(part.source) // part.per_step) for part in self._parts)

    def content(self, step: int) -> StepContent:
        """The rows of one step, for a supervised loop."""
        return StepContent(self(step))

    def following(self) -> None:
        """Nothing is read ahead."""

    loader = None

    def close(self) -> None:
        pass

    def __call__(self, step: int) -> list[Row]:
        """Rows of one step. One whose images cannot be read is named and left out. `ValueError` when none is left."""
        rows = []
        for number, part in enumerate(self._parts):
            for index in part.order.rows(step * part.per_step, part.per_step):
                try:
                    rows.append(
                        self._cache.get((number, index), lambda part=part, index=index: part.source.build(index))
                    )
                except MediaError as error:
                    part.source.name_bad(index, str(error))
        if not rows:
            raise ValueError(f"data: no row of step {step + 1} can be used; see the bad rows named above")
        return rows
