"""Pre-training documents: images, an untrained prefix and trained texts that share both, mixed by kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.batch import Row
from model.data.bad_rows import BadRows
from model.data.media import check_images
from model.data.raw_rows import RawRow, check_text
from model.data.reading import RowNotes
from model.data.sources import DataFolders, StepPart, StepRows, TableSource
from model.data.tables import Table, text_list
from model.pretrain.config import PretrainDataConfig
from model.processing.processor import Processor
from model.run.identity import Input

_TEXTS = ("texts", "text", "caption")


@dataclass(frozen=True)
class Document:
    """A row as it is kept."""

    kind: str
    prefix: str
    texts: list[str]
    images: list[str]
    root: Path


class Documents(TableSource[Document]):
    """All documents of one table."""

    def __init__(
        self,
        config: PretrainDataConfig,
        processor: Processor,
        folders: DataFolders,
        path: str = "",
        key: str = "data.path",
    ) -> None:
        """`path`: another table than `config.path`, which the setting `key` names."""
        self._processor = processor
        super().__init__(key, [Path(path or config.path)], config, folders)

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> tuple[str, Document, int]:
        """A row without a kind is of the table's name, one without a prefix has an empty one."""
        row_id = self.reader.id_of(raw, table, ordinal)
        columns = raw.columns
        kind, prefix = columns.get("kind", table.name), columns.get("prefix", "")
        for name, value in (("kind", kind), ("prefix", prefix)):
            if not isinstance(value, str):
                raise ValueError(f"{name}: expected str, found {value!r:.80}")
        text_column = next((name for name in _TEXTS if columns.get(name) is not None), _TEXTS[0])
        texts = text_list(columns, text_column)
        check_text({"id": row_id, "prefix": prefix, "texts": texts})
        images, root = self.reader.images(columns, table.root)
        check_images(root, images)
        named = {"kind": "kind", "prefix": "prefix", "text": text_column}
        named |= {"images": self.reader.image_column(columns), "id": self.reader.id_column(columns)}
        self.reader.reading.row = RowNotes({use: name for use, name in named.items() if name in columns})
        document = Document(kind, prefix, texts, images, root)
        for text in (document.prefix, *texts):
            self._processor.refuse_long([text])
        prefix, completions = self._ids_of(document)
        self._processor.check_length(prefix, completions)
        return row_id, document, len(prefix) + sum(map(len, completions))

    def build(self, index: int) -> Row:
        document = self.items[index]
        prefix, completions = self._ids_of(document)
        return Row(prefix, completions, self._processor.pictures(document.root, document.images))

    def _ids_of(self, document: Document) -> tuple[list[int], list[list[int]]]:
        return self._processor.document(document.prefix, document.texts, document.images, document.root)


class Kind:
    """`RowSource`: the documents of one kind."""

    def __init__(self, documents: Documents, kind: str) -> None:
        self._documents = documents
        self._numbers = [n for n, document in enumerate(documents.items) if document.kind == kind]

    def __len__(self) -> int:
        return len(self._numbers)

    def build(self, index: int) -> Row:
        return self._documents.build(self._numbers[index])

    def length(self, index: int) -> int:
        return self._documents.length(self._numbers[index])

    def described(self) -> list[str]:
        return self._documents.described()

    @property
    def bad_rows(self) -> BadRows:
        return self._documents.bad_rows

    @property
    def inputs(self) -> Mapping[str, Input]:
        return self._documents.inputs

    def name_bad(self, index: int, reason: str) -> None:
        self._documents.name_bad(self._numbers[index], reason)


def open_documents(config: PretrainDataConfig, processor: Processor, seed: int, folders: DataFolders) -> StepRows:
    """`mixture[kind]` documents of each kind per step, in keyed order. `ValueError` for a kind that is not there."""
    documents = Documents(config, processor, folders)
    found = sorted({document.kind for document in documents.items})
    mixture = {kind: count for kind, count in config.mixture.items() if count}
    if not mixture:
        raise ValueError(
            f"data.mixture: expected rows per step of at least one kind of {config.path} ({', '.join(found)}), found "
            f"none; give, for example, data.mixture={{{found[0]}: 32}}"
        )
    if unknown := [kind for kind in mixture if kind not in found]:
        raise ValueError(
            f"data.mixture: expected kinds of {config.path} ({', '.join(found)}), found {', '.join(unknown)}"
        )
    parts = [StepPart.keyed(Kind(documents, kind), count, seed, kind) for kind, count in mixture.items()]
    return StepRows(parts, config.cache_mib)
