"""Images with class labels, for a probe of the vision tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatReader
from model.data.config import ChatTableConfig
from model.data.media import check_images
from model.data.media_store import MediaStore
from model.data.raw_rows import RawRow
from model.data.tables import Table
from model.pretrain.probes.config import ProbeConfig


@dataclass(frozen=True)
class LabelledImage:
    """A row that can be used."""

    image: str
    root: Path  # the folder that the image's name is relative to
    label: str


class LabelledImages:
    """The usable rows of tables, split into those that train a head and those that test it."""

    def __init__(self, config: ProbeConfig) -> None:
        """`ValueError` for a table that cannot be read, past `max_bad_rows`, and for fewer than two classes."""
        self._config = config
        # One store for both, because images that come as bytes live as long as it does.
        self._reader = ChatReader(ChatTableConfig(image_column=config.image_column), MediaStore(None))
        rows = self._read(Path(config.data))
        if config.test:
            self.train, self.test = rows, self._read(Path(config.test))
        else:
            rows = [rows[n] for n in np.random.default_rng(config.seed).permutation(len(rows))]
            held = _held_out([row.label for row in rows], config.test_share)
            self.train = [row for n, row in enumerate(rows) if n not in held]
            self.test = [rows[n] for n in sorted(held)]
        self.classes = sorted({row.label for row in self.train})
        if len(self.classes) < 2 or not self.test:
            raise ValueError(
                f"data: expected at least 2 classes to train on and an image to test, found {len(self.classes)} "
                f"classes in {len(self.train)} rows and {len(self.test)} rows to test"
                + ("" if config.test else f" (test_share={config.test_share:g}); more rows of each class give both")
            )
        if unknown := sorted({row.label for row in self.test} - {*self.classes}):
            raise ValueError(f"test: expected classes of the training rows, found {unknown[0]!r} besides")

    def labels_of(self, rows: Sequence[LabelledImage]) -> list[int]:
        """The numbers of the rows' classes."""
        numbers = {label: number for number, label in enumerate(self.classes)}
        return [numbers[row.label] for row in rows]

    def _read(self, path: Path) -> list[LabelledImage]:
        table, bad_rows = Table(path), BadRows(self._config.max_bad_rows)
        found: list[LabelledImage] = []
        total = 0
        for raw in table.rows():
            total += 1
            try:
                found.append(self._row(raw, table))
            except ValueError as error:
                bad_rows.add(raw.file, raw.number, str(error), self._reader.own_id(raw))
        bad_rows.opened(total)
        return found

    def _row(self, raw: RawRow, table: Table) -> LabelledImage:
        if raw.problem:
            raise ValueError(raw.problem)
        label = raw.columns.get(self._config.label_column)
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise ValueError(f"{self._config.label_column}: expected a text or an integer, found {label!r:.80}")
        images, root = self._reader.images(raw.columns, table.root)
        if len(images) != 1:
            raise ValueError(f"image: expected one, found {len(images)}")
        check_images(root, images)
        return LabelledImage(images[0], root, str(label))


def _held_out(labels: Sequence[str], share: float) -> set[int]:
    """The rows that test: about this share of all, spread over the classes, each of which keeps a row to train."""
    order = sorted(range(len(labels)), key=lambda n: labels[n])
    spare = [n for place, n in enumerate(order) if place and labels[order[place - 1]] == labels[n]]
    count = min(round(share * len(labels)), len(spare))
    return {spare[(2 * number + 1) * len(spare) // (2 * count)] for number in range(count)}
