"""The rows of one source: its files, their indices, and the lengths of its rows for one model."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from model.batch import Row
from model.corpus.example import Form
from model.corpus.files import open_shard, shard_files
from model.corpus.index import FileIndex, IndexKind, open_indices
from model.corpus.mixture import MixedSource
from model.corpus.reading import ChangedRow, RowAddress, RowTask, build_row
from model.data.bad_rows import BadRows
from model.data.config import LoaderConfig, SourceConfig, TableConfig, TooLong
from model.data.media_error import MediaError
from model.data.sources import DataFolders
from model.processing.processor import Processor
from model.processing.visuals import tokens_of_sizes
from model.run.identity import Input, digest_of_ends


class Corpus:
    """`RowSource`: the usable rows of a source, by number, in the order of its files."""

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        folder: str,
        table: TableConfig,
        loader: LoaderConfig,
        processor: Processor,
        folders: DataFolders,
        capacity: int,
        too_long: TooLong = TooLong.refuse,
        key: str = "",
    ) -> None:
        """`capacity`: tokens of a micro-batch; `too_long` says what becomes of rows with more. `key`: the setting that
        names the files. `ValueError` for files that cannot be read, and past `data.max_bad_rows`."""
        positions = processor.config.language.max_position_embeddings
        self._limit = f"engine.micro_batch_tokens={capacity}" if capacity < positions else f"the model's {positions}"
        self.name, self._config, self._processor, self._capacity = name, config, processor, min(capacity, positions)
        self._key = key or f"data.sources.{name}.paths"
        files = shard_files(self._key, folder, config.paths)
        self.form = Form(
            config.kind, config.template, config.question_column, config.answer_column, config.image_column
        )
        self._root = str(Path(folder) / config.media) if config.media else ""
        kind = IndexKind(self.form, self._root, _interface(processor), loader.decode_all)
        self._files = open_indices(files, kind, processor, loader.index, loader.workers)
        self._starts = np.concatenate([[0], np.cumsum([len(one) for one in self._files])])
        visual = np.concatenate([_visual_tokens(one, processor) for one in self._files])
        text = np.concatenate([one.text_tokens for one in self._files])
        kept = np.concatenate([one.kept_tokens for one in self._files])
        self._whole = text + visual  # packed tokens before a row is cut
        needed = self._whole if too_long is TooLong.refuse else kept + visual
        fits = needed <= self._capacity
        self._rows = np.flatnonzero(fits)
        self._tokens = np.minimum(self._whole[self._rows], self._capacity)
        self._visual = visual[self._rows]
        self.bad_rows = BadRows(table.max_bad_rows, folders.report)
        self._note_bad(np.flatnonzero(~fits), needed, too_long)
        if not len(self._rows):
            raise ValueError(f"{self._key}: expected at least one row that can be used, found none")

    def __len__(self) -> int:
        return len(self._rows)

    def length(self, index: int) -> int:
        """Packed tokens of the row, visual ones included."""
        return int(self._tokens[index])

    def visual_tokens(self, index: int) -> int:
        return int(self._visual[index])

    @property
    def mean_tokens(self) -> float:
        """Packed tokens of a row of a pass, on average."""
        return float(np.average(self._tokens, weights=self._row_weights))

    @property
    def totals(self) -> dict[str, int]:
        """Rows, images, packed tokens and visual tokens of all usable rows."""
        pictures = np.concatenate([one.num_pictures for one in self._files])
        return {
            "rows": len(self),
            "images": int(pictures[self._rows].sum()),
            "tokens": int(self._tokens.sum()),
            "visual": int(self._visual.sum()),
        }

    def task(self, index: int, opens_images: bool) -> RowTask:
        """All that another process needs to build the row, with its pixels or with references to them."""
        row = int(self._rows[index])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, at = self._files[number], row - int(self._starts[number])
        sizes = None
        if not opens_images:
            first, stop = file.picture_starts[at : at + 2]
            sizes = tuple(tuple(map(int, size)) for size in file.sizes[first:stop])
        place = (int(file.place[at, 0]), int(file.place[at, 1]))
        address = RowAddress(str(file.file), place, self.form, self._root or str(file.file.parent))
        return RowTask(address, int(self._whole[row]), self._capacity, sizes)  # pyright: ignore[reportArgumentType]

    def build(self, index: int) -> Row:
        """`MediaError` for a row that cannot be read; a file that has changed is a `ValueError`."""
        try:
            return build_row(self.task(index, opens_images=True), self._processor)
        except ChangedRow:
            raise
        except ValueError as error:
            raise MediaError(str(error)) from None

    def name_bad(self, index: int, reason: str) -> None:
        file, number = self.place_of(index)
        self.bad_rows.add_later(file, number, f"{self.name}-{index}", reason)

    def place_of(self, index: int) -> tuple[Path, int]:
        """(file, number of the row in it, from 1)."""
        row = int(self._rows[index])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        file = self._files[number]
        return file.file, int(file.number[row - int(self._starts[number])])

    def mixed(self, weight: float) -> MixedSource:
        """The source as a mixture sees it, with the weights of its rows."""
        return MixedSource(len(self), weight, self._config.max_epochs, self._row_weights, self._blocks())

    def described(self) -> list[str]:
        columns: dict[str, dict[str, int]] = {}
        for one in self._files:
            for use, counts in one.columns.items():
                for column, count in counts.items():
                    columns.setdefault(use, {})[column] = columns.get(use, {}).get(column, 0) + count
        named = "".join(f", {use} <- {' or '.join(found)}" for use, found in columns.items())
        template = f", template {self.form.template!r}" if self.form.template else ""
        totals = self.totals
        return [
            f"{self._key}: {totals['rows']} rows in {len(self._files)} files, {totals['images']} images, "
            f"{totals['tokens']:,} tokens, {totals['visual']:,} of them visual (median {int(np.median(self._tokens))}, "
            f"longest {int(self._tokens.max())}){named}{template}"
        ]

    @property
    def inputs(self) -> Mapping[str, Input]:
        """Checksums of the files (of large ones, of their sizes and ends), and of the lengths of the usable rows: what
        stands at a position of the stream depends on how many rows there are, and images decide that too."""
        paths = ", ".join(self._config.paths)
        digest = hashlib.sha256()
        for one in (self._rows, self._tokens, self._visual):
            digest.update(one.astype(np.int64).tobytes())
        usable = Input(f"{paths} with {len(self)} usable rows", digest.hexdigest())
        return {
            self._key: Input(paths, digest_of_ends(one.file for one in self._files)),
            f"{self._key} (usable rows)": usable,
        }

    def _note_bad(self, too_long: np.ndarray, needed: np.ndarray, rule: TooLong) -> None:
        for one in self._files:
            for bad in one.bad:
                self.bad_rows.add(one.file, bad.number, bad.reason)
        for row in too_long:
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            file = self._files[number]
            at = int(row - self._starts[number])
            what, advice = "", "; data.packing.too_long=cut cuts trained text"
            if rule is TooLong.cut:
                what, advice = " beside trained text that can be cut off", ""
            self.bad_rows.add(
                file.file,
                int(file.number[at]),
                f"expected at most {self._limit} tokens{what}, found {int(needed[row])}{advice}",
            )
        self.bad_rows.opened(self._num_rows)

    @cached_property
    def _row_weights(self) -> np.ndarray | None:
        if not self._config.row_weights:
            return None
        key, path = f"data.sources.{self.name}.row_weights", Path(self._config.row_weights)
        try:
            weights = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{key}: expected a .npy file of numbers at {path}, found: {error}") from None
        if weights.shape != (self._num_rows,) or weights.dtype.kind not in "fiu":
            raise ValueError(
                f"{key}: {path}: expected {self._num_rows} numbers, one a row, found {weights.dtype} {weights.shape}"
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise ValueError(f"{key}: {path}: expected finite numbers of 0 or more, not all of them 0")
        ordinals = np.concatenate(
            [one.ordinal + start for one, start in zip(self._files, self._rows_before(), strict=True)]
        )
        own = weights[ordinals][self._rows].astype(np.float64)
        if not own.any():
            raise ValueError(f"{key}: {path}: expected a weight above 0 for a row that can be used, found none")
        return own

    @property
    def _num_rows(self) -> int:
        """Rows of all files, bad ones included."""
        return sum(one.num_rows for one in self._files)

    def _rows_before(self) -> np.ndarray:
        """[F] rows of all files before each."""
        return np.concatenate([[0], np.cumsum([one.num_rows for one in self._files])])[:-1]

    def _blocks(self) -> np.ndarray | None:
        """Sizes of the runs of rows that are read together, None where rows of no file are."""
        if not any(open_shard(one.file).reads_groups for one in self._files):
            return None
        groups = np.concatenate(
            [
                np.stack(
                    [
                        np.full(len(one), number),
                        one.place[:, 0] if open_shard(one.file).reads_groups else np.arange(len(one)) // 64,
                    ],
                    axis=1,
                )
                for number, one in enumerate(self._files)
            ]
        )[self._rows]
        changes = np.flatnonzero((groups[1:] != groups[:-1]).any(1)) + 1
        return np.diff(np.concatenate([[0], changes, [len(groups)]]))


def _visual_tokens(index: FileIndex, processor: Processor) -> np.ndarray:
    """[R] visual tokens of each row of a file, for this model and its way to cut images."""
    if not len(index.sizes):
        return np.zeros(len(index), np.int32)
    owner = np.repeat(np.arange(len(index)), index.num_pictures)
    frames = index.sizes[:, 2]
    single = (index.num_pictures[owner] == 1) & (frames == 0)
    tokens = np.empty(len(owner), np.int64)
    for is_frame, alone in ((False, False), (False, True), (True, False)):
        mine = np.flatnonzero(((frames > 0) == is_frame) & (single == alone))
        if len(mine):
            sizes, which = _distinct(index.sizes[mine, :2])
            each = tokens_of_sizes(sizes, is_frame, alone, processor.config, processor.settings)[which]
            tokens[mine] = each * np.maximum(frames[mine], 1)
    return np.bincount(owner, weights=tokens, minlength=len(index)).astype(np.int32)


def _distinct(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct sizes [K, 2], number of each of `sizes` [N, 2] among them)."""
    keys, which = np.unique(sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1], return_inverse=True)
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1), which


def _interface(processor: Processor) -> str:
    """A checksum of all that decides the ids of a text."""
    return hashlib.sha256(f"{processor.tokenizer.raw}{processor.chat_template}".encode()).hexdigest()
