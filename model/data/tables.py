"""Files of rows as plain columns: JSONL, Parquet, VLMEvalKit's TSV, folders saved by `datasets`.

Parquet and `datasets` folders need pyarrow, the extra `sailvl2-rl[data]`; it is imported where it is used.
"""

import ast
import base64
import binascii
import csv
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from model.data.media import inside
from model.json_values import JsonObject, read_json_object

_ROWS_AT_ONCE = 64  # how much of a columnar file is read at once, because a row may carry megabytes of images
_LONGEST_REFERENCE = 64
"""VLMEvalKit: an image cell this short is the index of the row that has the image."""


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its file; `problem` says why there are no columns."""

    file: Path
    number: int  # line of a JSONL file, else row, from 1
    columns: JsonObject = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """One file of rows, or one folder that is a data set."""

    path: Path
    prefix: str = ""  # goes before the ids of its rows, where several tables are read together

    @cached_property
    def name(self) -> str:
        """The name of the data set that its rows belong to, unless they name one themselves."""
        return self.path.name if self.path.is_dir() else self.path.stem

    @cached_property
    def root(self) -> Path:
        """The folder that file names in it are relative to."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> list[Path]:
        """The files that hold its rows. `ValueError` for a folder that is no data set."""
        if not self.path.is_dir():
            return [self.path]
        if _folder_reader(self.path) is _saved_rows:
            return [self.path / "state.json", *_saved_files(self.path)]
        return sorted(self.path.glob("*.parquet"))

    def rows(self) -> Iterator[RawRow]:
        """Rows in order. `ValueError` when the file is missing or not what its name says, and when it has no rows."""
        found = False
        for row in _reader(self.path)(self.path):
            found = True
            yield row
        if not found:
            raise ValueError(f"data: {self.path}: expected at least one row, found none")


def _reader(path: Path) -> Callable[[Path], Iterator[RawRow]]:
    if path.is_dir():
        return _folder_reader(path)
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows, ".tsv": _tsv_rows}
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()]
    if not path.exists():
        raise ValueError(f"data: expected a file or folder at {path}, found none; write it or correct the path")
    raise ValueError(
        f"data: {path}: expected one of {', '.join(readers)}, a folder of Parquet files or a folder saved by datasets' "
        f"save_to_disk, found {path.suffix!r}; convert or rename it"
    )


def _folder_reader(path: Path) -> Callable[[Path], Iterator[RawRow]]:
    if (path / "state.json").is_file():
        return _saved_rows
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        raise ValueError(f"data: {path}: expected one split, found the splits {splits}; give {path}/NAME")
    if any(path.glob("*.parquet")):
        return _parquet_rows
    raise ValueError(
        f"data: {path}: expected *.parquet files, or state.json as datasets' save_to_disk writes it, found neither"
    )


def _json_rows(path: Path) -> Iterator[RawRow]:
    for number, line in numbered_lines(path):
        try:
            columns = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            yield RawRow(path, number, problem=f"expected a JSON object, found: {error}")
            continue
        if isinstance(columns, dict):
            yield RawRow(path, number, columns)
        else:
            yield RawRow(path, number, problem=f"expected a JSON object, found {type(columns).__name__}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which JSON does not have; leave the key out, or write null or a text")


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    arrow = _pyarrow(path)
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            with arrow.parquet.ParquetFile(file) as table:
                yield from _batched_rows(file, table.iter_batches(_ROWS_AT_ONCE))
        except FileNotFoundError:
            raise ValueError(f"data: expected a Parquet file at {file}, found none; correct the path") from None
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"data: {file}: expected a whole Parquet file, found: {error}") from None


def _saved_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a folder that `save_to_disk` wrote: state.json names the Arrow stream files beside it."""
    arrow = _pyarrow(path)
    for file in _saved_files(path):
        try:
            with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
                pieces = (
                    batch.slice(start, _ROWS_AT_ONCE)
                    for batch in stream
                    for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
                )
                yield from _batched_rows(file, pieces)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"data: {file}: expected a whole Arrow stream, found: {error}") from None


def _saved_files(path: Path) -> list[Path]:
    try:
        state = read_json_object(path / "state.json")
        if state.get("_indices_data_files"):
            raise ValueError("an index of selected rows; save it anew with a current version of datasets")
        return [inside(path, entry["filename"], "data file") for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"data: {path / 'state.json'}: expected what save_to_disk writes, found: {error}") from None


def _batched_rows(file: Path, batches: Iterator[Any]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # a cell that Python cannot hold: bytes that are no UTF-8, far years
            rows = [_converted(batch.slice(index, 1)) for index in range(batch.num_rows)]
        for columns in rows:
            number += 1
            is_bad = isinstance(columns, str)
            yield RawRow(file, number, problem=columns) if is_bad else RawRow(file, number, _filled(columns))


def _converted(row: Any) -> JsonObject | str:
    """The columns of a batch of one row, or which one cannot be read."""
    columns: JsonObject = {}
    for name, cells in zip(row.schema.names, row.columns, strict=True):
        try:
            columns[name] = cells[0].as_py()
        except (ValueError, OverflowError) as error:
            return f"{name}: expected a value that Python can hold, found: {error}"
    return columns


def _filled(columns: JsonObject) -> JsonObject:
    """Columnar files give every row, and every part of a message, all fields of its kin: those it lacks are null, or
    NaN where pandas wrote a column of numbers."""
    return {key: _without_nulls(value) for key, value in columns.items() if value is not None and value == value}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return _filled(value)
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"data: {path}: reading it needs pyarrow, which is not installed: pip install 'sailvl2-rl[data]'"
        ) from None
    return pyarrow


def _tsv_rows(path: Path) -> Iterator[RawRow]:
    """VLMEvalKit's tables. Cells that are empty count as absent."""
    wanted = {image for _, cells in _tsv_cells(path) if cells and _is_reference(image := cells.get("image", ""))}
    shared = {
        cells["index"]: cells["image"]
        for _, cells in (_tsv_cells(path) if wanted else ())
        if cells and cells.get("index") in wanted and not _is_reference(cells.get("image", ""))
    }
    for number, cells in _tsv_cells(path):
        if cells is None:
            yield RawRow(path, number, problem="expected as many cells as the first line has, found another number")
            continue
        try:
            yield RawRow(path, number, _tsv_columns(cells, shared))
        except ValueError as error:
            yield RawRow(path, number, problem=str(error))


def _tsv_cells(path: Path) -> Iterator[tuple[int, dict[str, str] | None]]:
    """(row number, cells by column), None for a row of another width."""
    csv.field_size_limit(2**31 - 1)  # holds for the whole process; an image is one cell
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t")
            header = next(lines, [])
            if len(header) < 2:
                raise ValueError(f"columns separated by tabs were expected in the first line, found {header!r:.80}")
            for number, cells in enumerate((line for line in lines if line), 1):
                named = zip(header, cells, strict=False)
                yield number, {k: v for k, v in named if v} if len(cells) == len(header) else None
    except FileNotFoundError:
        raise ValueError(f"data: expected a TSV file at {path}, found none; write it or correct the path") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"data: {path}: expected a readable TSV file in UTF-8, found: {error}") from None


def _is_reference(cell: str) -> bool:
    return 0 < len(cell) <= _LONGEST_REFERENCE


def _tsv_columns(cells: dict[str, str], shared: dict[str, str]) -> JsonObject:
    """Question with its lettered options, the images' bytes or names, and every other cell."""
    columns: JsonObject = {key: value for key, value in cells.items() if key not in string.ascii_uppercase}
    if options := {key: cells[key] for key in string.ascii_uppercase if key in cells}:
        hint = f"Hint: {cells['hint']}\n" if "hint" in cells else ""
        listed = "".join(f"{key}. {text}\n" for key, text in options.items())
        columns["question"] = (
            f"{hint}Question: {cells.get('question', '')}\nOptions:\n{listed}One of these is right: give its letter."
        )
        columns["options"] = options
    image = columns.pop("image", "")
    names = columns.pop("image_path", "")
    if _is_reference(image) and image not in shared:
        raise ValueError(f"image: expected base64, or the index of a row that has an image, found {image!r}")
    if image:
        columns["images"] = [from_base64(text) for text in _cell_list(shared.get(image) or image)]
    elif names:
        columns["images"] = _cell_list(names)
    return columns


def _cell_list(cell: str) -> list[str]:
    """A cell holds one text, or a Python list of texts."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"image: expected one text or a list of texts in the cell, found {cell!r:.80}")
    return found


def from_base64(text: str) -> bytes:
    """`ValueError` for text that is no base64; white space and a data URL's head are left out."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"image: expected base64, found {text!r:.80}") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a JSONL file that are not blank, counted from 1. `ValueError` for a file that cannot be read."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="\n") as file:  # U+2028 and the like may stand in a string
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise ValueError(f"data: expected a JSONL file at {path}, found none; write it or correct the path") from None
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable JSONL file, found: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path}: expected UTF-8, found: {error}") from None


def text_list(columns: JsonObject, name: str) -> list[str]:
    """A column of texts; a cell that is one text, as in a TSV, is a list of one. `ValueError` for anything else."""
    found = columns.get(name)
    texts = [found] if isinstance(found, str) and found else found
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: expected a list of at least one text, found {found!r:.80}")
    return texts


def as_json(value: object) -> object:
    """A cell as JSON data: dates and the like become text, bytes their number."""
    if value is None or isinstance(value, str | int | float):
        return value
    return json.loads(json.dumps(value, default=lambda v: f"{len(v)} bytes" if isinstance(v, bytes) else str(v)))
