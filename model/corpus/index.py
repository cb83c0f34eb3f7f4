"""The index of a file: where its rows are, and how long. Made once, in parallel, and kept beside the data.

It knows the text tokens of a row and the sizes of its images; how many visual tokens these become, the model decides.
It is made anew when the file, the tokenizer, or the way of reading changes, and when an image file that was missing is
there.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from model.corpus.encode import Measure, encode, measure
from model.corpus.example import Form
from model.corpus.files import open_shard
from model.corpus.reading import example_of
from model.corpus.shard import BLANK, Place, Unit
from model.data.media_error import MissingFile, MissingLibrary
from model.data.raw_rows import RawRow
from model.processing.processor import Processor
from model.run.durable import held_lock, write_file
from model.run.failpoints import reach
from model.run.parent import die_with_parent

_VERSION = 2
_FOLDER = ".sailvl2_index"
_ENDS = 1 << 16
_INLINE_BYTES = 32 * 2**20
"""Files that have fewer bytes together are indexed in this process: others would take longer to start."""
_SAY_EVERY_S = 5.0
_MOST_LOOKED_FOR = 1000
"""Missing image files of the rows of a file that are looked for again when its index is opened."""
_ARRAYS = {"place": (2,), "number": (), "ordinal": (), "text_tokens": (), "kept_tokens": (), "num_pictures": ()}


@dataclass(frozen=True)
class IndexKind:
    """All that an index depends on beside the file."""

    form: Form
    root: str  # folder of images, empty where it is the file's own
    interface: str  # digest of the vocabulary and the chat template
    decodes: bool  # whether every image was decoded once

    def key(self, file: Path, is_apart: bool) -> str:
        """Name of the index of a file, which lies beside the file unless it `is_apart`, where equal files of several
        folders meet. `ValueError` where the file cannot be read."""
        try:
            status = file.stat()
            with file.open("rb") as opened:
                head = opened.read(_ENDS)
                opened.seek(max(0, status.st_size - _ENDS))
                tail = opened.read(_ENDS)
        except OSError as error:
            raise ValueError(f"data: {file}: expected a readable file, found: {error}") from None
        folder = str(file.parent.resolve()) if is_apart else ""
        about = [_VERSION, asdict(self), status.st_size, status.st_mtime_ns, folder]
        own = json.dumps(about, default=lambda one: one.value)
        return hashlib.sha256(own.encode() + head + tail).hexdigest()[:24]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    number: int
    reason: str
    missing: str = ""  # name of the image or video file that it lacks


@dataclass(frozen=True)
class About:
    """The part of an index beside its arrays."""

    num_lines: int  # the number of the last row, blank lines counted
    num_rows: int
    bad: list[BadRow]
    columns: Mapping[str, Mapping[str, int]]  # use -> column -> rows


@dataclass(frozen=True)
class FileIndex:
    """The rows of a file that can be used, in order; R of them with P images in all."""

    file: Path
    key: str
    place: np.ndarray  # [R, 2]
    number: np.ndarray  # [R] row of the file as messages name it: its line, from 1
    ordinal: np.ndarray  # [R] the same without blank lines, from 0
    text_tokens: np.ndarray  # [R]
    kept_tokens: np.ndarray  # [R] those of them that no cut may take
    num_pictures: np.ndarray  # [R]
    sizes: np.ndarray  # [P, 3] width, height, frames of a video or 0
    num_rows: int  # rows of the file, bad ones included, blank lines not
    bad: list[BadRow]
    columns: Mapping[str, Mapping[str, int]]  # use -> column -> rows

    def __len__(self) -> int:
        return len(self.number)

    @cached_property
    def picture_starts(self) -> np.ndarray:
        """[R + 1] the first image of each row."""
        return np.concatenate([[0], np.cumsum(self.num_pictures, dtype=np.int64)])


def open_indices(
    files: Sequence[Path], kind: IndexKind, processor: Processor, folder: str, num_workers: int
) -> list[FileIndex]:
    """The index of every file; those that are missing are made by `num_workers` processes.

    `folder`: where indices are kept; empty: beside each file. `ValueError` for a file that cannot be read, or a folder
    that cannot be written.
    """
    keys = [kind.key(file, bool(folder)) for file in files]
    targets = [_index_path(file, key, folder) for file, key in zip(files, keys, strict=True)]
    pairs = list(zip(files, targets, strict=True))
    due = [pair for pair in pairs if _is_due(*pair, kind)]
    for parent in sorted({target.parent for _, target in due}):
        _require_writable(parent)
        with held_lock(parent / ".lock"):
            _make([one for one in due if one[1].parent == parent and _is_due(*one, kind)], kind, processor, num_workers)
    return [_read(file, key, target) for (file, target), key in zip(pairs, keys, strict=True)]


def _is_due(file: Path, target: Path, kind: IndexKind) -> bool:
    """Whether a file has no index, or one that misses image files which are there now."""
    if not target.is_file():
        return True
    root = Path(kind.root or file.parent)
    missing = [row.missing for row in _about(target).bad if row.missing]
    return any((root / name).is_file() for name in missing[:_MOST_LOOKED_FOR])


def _index_path(file: Path, key: str, folder: str) -> Path:
    return (Path(folder) if folder else file.parent / _FOLDER) / f"{file.name}.{key}.safetensors"


def _part_path(target: Path, number: int) -> Path:
    return target.with_suffix(f".part{number:05}")


def _make(pairs: Sequence[tuple[Path, Path]], kind: IndexKind, processor: Processor, num_workers: int) -> None:
    """Index files part by part; parts that an earlier call has finished are kept."""
    if not pairs:
        return
    units = [open_shard(file).units() for file, _ in pairs]
    jobs = [
        (file, unit, _part_path(target, number))
        for (file, target), parts in zip(pairs, units, strict=True)
        for number, unit in enumerate(parts)
    ]
    todo = [job for job in jobs if not job[2].is_file()]
    num_bytes = sum(file.stat().st_size for file, _ in pairs)
    print(
        f"data: making the index of {len(pairs)} files ({num_bytes / 2**20:.0f} MiB, {len(todo)} of {len(jobs)} parts "
        "are left); it is kept for later runs",
        file=sys.stderr,
        flush=True,
    )
    if num_workers < 2 or num_bytes < _INLINE_BYTES:
        for file, unit, part in todo:
            _index_unit(file, unit, part, kind, processor)
    else:
        _in_processes(todo, kind, processor, num_workers)
    for (file, target), parts in zip(pairs, units, strict=True):
        _join(file, target, [_part_path(target, number) for number in range(len(parts))])


def _in_processes(
    todo: Sequence[tuple[Path, Unit, Path]], kind: IndexKind, processor: Processor, num_workers: int
) -> None:
    said = time.monotonic()
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=die_with_parent)
    try:
        waiting: set[Future[None]] = {pool.submit(_index_unit, *job, kind, processor) for job in todo}
        while waiting:
            done, waiting = wait(waiting, timeout=_SAY_EVERY_S, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                print(f"data: index: {len(todo) - len(waiting)} of {len(todo)} parts", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _index_unit(file: Path, unit: Unit, part: Path, kind: IndexKind, processor: Processor) -> None:
    """Write the index of one part of a file."""
    root = kind.root or str(file.parent)
    places: list[Place] = []
    numbers: list[int] = []
    ordinals: list[int] = []
    lengths: list[tuple[int, int, int]] = []
    sizes: list[tuple[int, int, int]] = []
    bad: list[BadRow] = []
    columns: dict[str, Counter[str]] = {}
    num_lines = num_rows = 0
    for place, raw in open_shard(file).rows(unit):
        num_lines = raw.number
        if raw.problem is BLANK:
            continue
        num_rows += 1
        try:
            measured, used = _measured(raw, kind, processor, root)
        except MissingLibrary:
            raise
        except ValueError as error:
            bad.append(BadRow(raw.number, str(error), error.name if isinstance(error, MissingFile) else ""))
            continue
        places.append(place)
        numbers.append(raw.number)
        ordinals.append(num_rows - 1)
        lengths.append((measured.text_tokens, measured.kept_tokens, len(measured.sizes)))
        sizes += measured.sizes
        for use, column in used.items():
            if column:
                columns.setdefault(use, Counter())[column] += 1
    text, kept, pictures = np.array(lengths, np.int32).reshape(-1, 3).T.copy()
    arrays = {
        "place": np.array(places, np.int64).reshape(-1, 2),
        "number": np.array(numbers, np.int64),
        "ordinal": np.array(ordinals, np.int64),
        "text_tokens": np.ascontiguousarray(text),
        "kept_tokens": np.ascontiguousarray(kept),
        "num_pictures": np.ascontiguousarray(pictures),
        "sizes": np.array(sizes, np.int32).reshape(-1, 3),
    }
    reach("index")
    _write(part, arrays, About(num_lines, num_rows, bad, columns))


def _measured(raw: RawRow, kind: IndexKind, processor: Processor, root: str) -> tuple[Measure, dict[str, str]]:
    """(lengths of a row, use -> column). `ValueError` says why it cannot be used."""
    example = example_of(raw, kind.form, root)
    encoded = encode(example, processor, Path(root))
    if kind.decodes:
        processor.open_images(Path(root), encoded.images)
    return measure(encoded, Path(root), processor.placeholder_id), example.columns


def _join(file: Path, target: Path, parts: Sequence[Path]) -> None:
    """Make the index of a file from those of its parts, which then go."""
    read = [_load(part) for part in parts]
    if not read:
        raise ValueError(f"data: {file}: expected at least one row, found an empty file")
    columns: dict[str, Counter[str]] = {}
    bad: list[BadRow] = []
    num_lines = num_rows = 0
    for arrays, about in read:
        arrays["number"] = arrays["number"] + num_lines
        arrays["ordinal"] = arrays["ordinal"] + num_rows
        bad += [replace(row, number=row.number + num_lines) for row in about.bad]
        num_lines, num_rows = num_lines + about.num_lines, num_rows + about.num_rows
        for use, counts in about.columns.items():
            columns.setdefault(use, Counter()).update(counts)
    joined = {name: np.concatenate([arrays[name] for arrays, _ in read]) for name in [*_ARRAYS, "sizes"]}
    reach("index")
    _write(target, joined, About(num_lines, num_rows, bad, columns))
    for part in parts:
        part.unlink()


def _write(path: Path, arrays: dict[str, np.ndarray], about: About) -> None:
    columns = {use: dict(counts) for use, counts in about.columns.items()}  # `asdict` cannot copy a Counter
    write_file(path, save(arrays, {"about": json.dumps(asdict(replace(about, columns=columns)))}))


def _load(path: Path) -> tuple[dict[str, np.ndarray], About]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in [*_ARRAYS, "sizes"]}, _about_of(file)


def _about(path: Path) -> About:
    with _opened(path) as file:
        return _about_of(file)


def _about_of(file: Any) -> About:
    about = json.loads(file.metadata()["about"])
    return About(**{**about, "bad": [BadRow(**row) for row in about["bad"]]})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), "numpy") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"data: {path}: expected an index, found: {error}; delete it, and it is made anew") from None


def _read(file: Path, key: str, target: Path) -> FileIndex:
    arrays, about = _load(target)
    return FileIndex(file, key, **arrays, num_rows=about.num_rows, bad=about.bad, columns=about.columns)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"data.loader.index: expected a folder that can be written, found {folder}; set data.loader.index to one"
        )
