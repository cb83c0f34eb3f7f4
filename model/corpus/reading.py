"""One row of a corpus, from its place in a file to ids and pixels, in whatever process that is wanted."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from model.batch import Row
from model.corpus.encode import Encoded, encode
from model.corpus.example import Example, Form, read_example
from model.corpus.files import open_shard
from model.corpus.shard import Place
from model.data.media import Picture, StoredSource, open_image
from model.data.media_cells import media_parts
from model.data.media_error import MediaError
from model.data.raw_rows import RawRow
from model.processing.processor import Processor

Size = tuple[int, int, int]
"""(width, height, frames of a video or 0)."""


@dataclass(frozen=True)
class RowAddress:
    """Where a row lies, and how it is read; all that another process needs to read it."""

    path: str
    place: Place
    form: Form
    root: str  # the folder that its images and videos are named from

    @property
    def group(self) -> tuple[str, int] | None:
        """The mark of rows that are read together; None for a row that is read alone."""
        return (self.path, self.place[0]) if open_shard(Path(self.path)).reads_groups else None


@dataclass(frozen=True)
class RowTask:
    """A row that is wanted."""

    address: RowAddress
    num_tokens: int  # as the index has it, before it is cut
    capacity: int  # tokens that it may have
    sizes: tuple[Size, ...] | None = None  # its images, which are not to be opened here; None: open them


class ChangedRow(ValueError):
    """A row is not what its index says: the file has changed."""


@dataclass(frozen=True)
class RowPicture(StoredSource):
    """The image of this number in a row whose images lie inside its file, or may."""

    address: RowAddress
    number: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def open(self) -> Image.Image:
        images = _images_at(self.address)
        if self.number >= len(images):
            raise MediaError(f"{self.address.path}: expected image {self.number + 1} of a row, found {len(images)}")
        image = images[self.number]
        return open_image(Path(self.address.root), image) if isinstance(image, str) else image.open()


@dataclass(frozen=True)
class FilePicture(StoredSource):
    """An image file, whose size an index knows."""

    root: str
    name: str
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def open(self) -> Image.Image:
        return open_image(Path(self.root), self.name)


def example_of(raw: RawRow, form: Form, root: str) -> Example:
    """The example of a row that was read. `ValueError` says why there is none."""
    if raw.problem:
        raise ValueError(raw.problem)
    return read_example(raw.columns, form, Path(root))


def example_at(address: RowAddress) -> tuple[Example, str]:
    """(the example of a row, the folder that its files are named from). `ValueError` where it cannot be read."""
    return example_of(open_shard(Path(address.path)).read(address.place), address.form, address.root), address.root


def build_row(task: RowTask, processor: Processor) -> Row:
    """The row that a task names. `ValueError` where it cannot be used, `ChangedRow` where the file has changed."""
    encoded = _encoded(task, processor)
    if encoded.num_tokens != task.num_tokens:
        raise ChangedRow(
            f"{task.address.path}: expected a row of {task.num_tokens} tokens at {task.address.place}, found "
            f"{encoded.num_tokens}; the file or an image of the row has changed since its index was made: keep them as "
            f"they are, or delete {Path(task.address.path).name}.*.safetensors in .sailvl2_index beside it (or in "
            "data.loader.index) to have them measured again"
        )
    cut = encoded.cut(task.capacity, processor.placeholder_id)
    return cut.row(processor, Path(task.address.root))


def _encoded(task: RowTask, processor: Processor) -> Encoded:
    address, sizes = task.address, task.sizes
    shard = open_shard(Path(address.path))
    raw = shard.read(address.place, None if sizes is None else sum(1 for size in sizes if not size[2]))
    example = example_of(raw, address.form, address.root)
    if sizes is not None:
        example = _with_stored_pictures(example, address, [size for size in sizes if not size[2]])
    return encode(example, processor, Path(address.root))


def _with_stored_pictures(example: Example, address: RowAddress, sizes: Sequence[Size]) -> Example:
    """The same with references instead of images, in the order in which the index has their sizes."""
    left = enumerate(sizes)

    def stored(source: Any) -> Any:
        number, (width, height, _) = next(left, (0, (1, 1, 0)))
        if isinstance(source, str):
            return FilePicture(address.root, source, width, height)
        return RowPicture(address, number, width, height)

    if example.messages is None:
        images = [stored(source) for source in example.images]
        return replace(example, images=images)
    for part in _image_parts(example):
        part["image"] = stored(part["image"])
    return example


def _image_parts(example: Example) -> Iterator[dict[str, Any]]:
    return (part for part in media_parts(example.messages or []) if part.get("type") == "image")


def _example_of_media(raw: RawRow, address: RowAddress) -> Example:
    try:
        return example_of(raw, address.form, address.root)
    except MediaError:
        raise
    except ValueError as error:
        raise MediaError(f"{address.path}: {error}") from None


_latest = threading.local()
"""The row whose images this thread opened last: several images of a row come one after the other."""


def _images_at(address: RowAddress) -> list[Picture | str]:
    """The images of a row, in order: those inside its file, and names of files."""
    if getattr(_latest, "address", None) != address:
        raw = open_shard(Path(address.path)).read(address.place)
        example = _example_of_media(raw, address)
        _latest.images = example.images if example.messages is None else [p["image"] for p in _image_parts(example)]
        _latest.address = address
    return _latest.images
