"""The files of a downloaded data set by split, their rows, and the image files that rows name."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from model.corpus.lines import placed_items
from model.data.convert.layouts import DataSet, Layout
from model.data.jsonl import json_rows
from model.data.media import inside
from model.data.media_error import MissingFile
from model.data.raw_rows import RawRow
from model.data.tables import Table
from model.run.printable import names, printable

_SPLIT = re.compile(r"(?<![a-z0-9])(train|validation|valid|val|dev|testmini|test)(?![a-z0-9])", re.IGNORECASE)
_SPELLINGS = {"valid": "validation", "val": "validation", "dev": "validation"}
_ORDER = ("train", "validation", "testmini", "test")
_NUM_PEEKED = 32
_LEAST_PARTS = 2  # an absolute name is looked for by so many of its last parts: a file's own name alone is no proof


def split_files(source: Path, data_set: DataSet) -> dict[str, list[Path]]:
    """Files, or folders that `datasets` saved, by split. `ValueError` where there are none, or two copies of a split.

    The split is what a file's name says, or else the folder above it; without a word of it, `train`.
    """
    if not source.exists():
        raise ValueError(f"source: expected a folder or a file at {source}, found none; download the data set first")
    found = [source] if source.is_file() else _found(source, data_set)
    if not found:
        wanted = ", ".join(["*.parquet", "a folder that save_to_disk wrote", *data_set.files])
        there = names([path.name for path in source.iterdir()]) or "nothing"
        raise ValueError(f"source: {source}: expected {wanted}, found {there}; name the folder that holds them")
    splits: dict[str, list[Path]] = {}
    for path in found:
        splits.setdefault(_split_of(path, source), []).append(path)
    for split, paths in splits.items():
        folders = sorted({str(path.parent.relative_to(source)) for path in paths if path != source})
        if len(folders) > 1:
            raise ValueError(
                f"source: {source}: expected the files of split {split} in one folder, found {', '.join(folders)}, "
                "which are several forms of the data set; name one of them"
            )
    return dict(sorted(splits.items(), key=lambda item: _ORDER.index(item[0])))


def _found(source: Path, data_set: DataSet) -> list[Path]:
    if (source / "state.json").is_file():
        return [source]
    if (source / "dataset_dict.json").is_file():
        return sorted(folder for folder in source.iterdir() if (folder / "state.json").is_file())
    if parquet := sorted(source.rglob("*.parquet")):
        return parquet
    for pattern in data_set.files:
        if files := sorted(path for path in source.glob(pattern) if path.is_file()):
            return files
    return []


def _split_of(path: Path, source: Path) -> str:
    above = [] if path == source else path.relative_to(source).parts[-2::-1]
    for name in (path.stem if path.is_file() else path.name, *above):
        if found := _SPLIT.search(name.replace("_", " ")):
            return _SPELLINGS.get(found[1].lower(), found[1].lower())
    return "train"


def file_rows(path: Path, data_set: DataSet) -> Iterator[RawRow]:
    """The rows of a file as they stand there, one by one. `ValueError` for a file that is not what its name says."""
    if path.suffix.lower() != ".json":
        yield from json_rows(path) if path.suffix.lower() == ".jsonl" else Table(path).rows()
        return
    yield from (row for _, row in placed_items(path, data_set.list_key))


def with_layout(path: Path, rows: Iterator[RawRow], title: str, data_set: DataSet) -> tuple[Layout, Iterator[RawRow]]:
    """(the layout of a file, all its rows). `ValueError` names the columns of a file that has none of the set's."""
    first = list(islice(rows, _NUM_PEEKED))
    found = {name for row in first for name in row.columns}
    for layout in data_set.layouts:
        if found.issuperset(layout.columns):
            return layout, chain(first, rows)
    problem = next((f"; its first row: {printable(row.problem)}" for row in first if row.problem), "")
    wanted = " or ".join(f"({', '.join(layout.columns)})" for layout in data_set.layouts)
    columns = ", ".join(printable(name, 40) for name in sorted(found)) or "none"
    raise ValueError(
        f"source: {path}: expected the columns that {title} is published with, {wanted}, found {columns}{problem}; "
        "name the folder of that data set. Rows with other columns may be read as they are: docs/data.md"
    )


class ImageFiles:
    """Finds the image files that rows name, below the source and nowhere else."""

    def __init__(self, source: Path, folders: Sequence[str]) -> None:
        """`folders` below the source are searched in order, after the folder of the file that names an image."""
        self.root = source if source.is_dir() else source.parent
        self._folders = [self.root / folder for folder in folders]

    def find(self, name: str, file: Path) -> Path:
        """The file, inside the source. `MediaError` where there is none.

        An absolute name, which is one of its authors' machine, is looked for by its last parts, as many as fit.
        """
        plain = name.removeprefix("file://")
        parts = Path(plain).parts
        tries = [plain]
        if Path(plain).is_absolute():
            tries = [str(Path(*parts[start:])) for start in range(1, len(parts) - _LEAST_PARTS + 1)]
        for path in (folder / one for one in tries for folder in (file.parent, *self._folders)):
            if _is_file(path):
                return inside(self.root, str(path))
        raise MissingFile(f"image {printable(name, 200)}: expected a file below {self.root}, found none", name)


def _is_file(path: Path) -> bool:
    """False too for a name that is too long for the file system."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
