"""Pre-training documents: images, an untrained prefix and trained texts that share both, mixed by kind."""

from functools import cache
from pathlib import Path

from model.batch import Row
from model.data.media import check_images
from model.data.order import KeyedOrder
from model.data.records import read_records, require_texts
from model.processing.processor import Processor


class DocumentMixture:
    """`mixture[kind]` documents of each kind per step, in keyed order."""

    def __init__(self, path: Path, mixture: dict[str, int], processor: Processor, seed: int) -> None:
        records = read_records(path, {"kind": str, "images": list, "prefix": str, "texts": list})
        for record in records:
            require_texts(record, "texts", str(path))
        found = sorted({record["kind"] for record in records})
        unknown = [kind for kind, count in mixture.items() if count and kind not in found]
        if unknown:
            raise ValueError(f"data.mixture: expected kinds of {path} ({', '.join(found)}), found {', '.join(unknown)}")
        self._root = Path(path).parent
        check_images(self._root, (name for record in records for name in record["images"]))
        self._processor = processor
        self._mixture = {kind: count for kind, count in mixture.items() if count}
        self._records = {kind: [r for r in records if r["kind"] == kind] for kind in self._mixture}
        self._orders = {kind: KeyedOrder(len(rows), seed, kind) for kind, rows in self._records.items()}
        self._row = cache(self._build)

    def __call__(self, step: int) -> list[Row]:
        """The rows of one step."""
        return [
            self._row(kind, index)
            for kind, count in self._mixture.items()
            for index in self._orders[kind].rows(step * count, count)
        ]

    def _build(self, kind: str, index: int) -> Row:
        record = self._records[kind][index]
        prefix, texts = self._processor.document(record["prefix"], record["texts"], record["images"], self._root)
        return Row(prefix, texts, self._processor.open_images(self._root, record["images"]))
