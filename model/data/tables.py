"""Files of rows as plain columns: JSONL, Parquet, VLMEvalKit's TSV, folders saved by `datasets`.

Parquet and `datasets` folders need pyarrow, the extra `sailvl2-rl[data]`; it is imported where it is used.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model.data.columnar import parquet_rows, saved_files, saved_rows
from model.data.jsonl import json_rows
from model.data.raw_rows import RawRow
from model.data.tsv import tsv_rows
from model.json_values import JsonObject


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
        if _folder_reader(self.path) is saved_rows:
            return [self.path / "state.json", *saved_files(self.path)]
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
    readers = {".jsonl": json_rows, ".parquet": parquet_rows, ".tsv": tsv_rows}
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
        return saved_rows
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        raise ValueError(f"data: {path}: expected one split, found the splits {splits}; give {path}/NAME")
    if any(path.glob("*.parquet")):
        return parquet_rows
    raise ValueError(
        f"data: {path}: expected *.parquet files, or state.json as datasets' save_to_disk writes it, found neither"
    )


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
