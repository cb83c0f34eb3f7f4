"""Images of micro-batches, opened by worker processes of the rank that needs them while earlier ones are worked on."""

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

from torch import Tensor

from model.batch import ModelInputs, StoredImage, StoredPixels
from model.data.media_error import MediaError
from model.processing.processor import BytePicture, StoredPicture
from model.processing.workers import Workers

_FIGURES: tuple[str, ...] = ("images_opened", "images_ahead", "opening_s")


@dataclass(frozen=True)
class OpenAhead:
    """How a rank opens images ahead."""

    workers: int  # processes; 0: none are opened ahead
    patience_s: float  # seconds without an answer after which one is replaced
    most_bytes: int  # memory for images that wait for their micro-batch


class ImageOpener:
    """Begins to open images, and gives micro-batches theirs. One that was not begun is opened when it is needed."""

    def __init__(self) -> None:
        self._workers: Workers | None = None
        self._numbers = count()
        self._begun: dict[StoredPicture, deque[tuple[int, int]]] = {}  # first picture -> number of the task, its bytes
        self._num_bytes = 0
        self._latest: tuple[StoredPicture, list[BytePicture]] | None = None
        self._figures = dict.fromkeys(_FIGURES, 0.0)

    def begin(self, inputs: Iterable[ModelInputs], how: OpenAhead) -> None:
        """Have the images of micro-batches opened, in the order in which they are needed, as far as memory allows."""
        if how.workers < 1:
            return
        for picture in (one for own in inputs for one in _stored(own) if one.frame == 0):
            if self._workers is None:
                self._workers = Workers(_open, how.workers, how.patience_s)
            num_bytes = picture.shape.numel() * picture.visual.num_pictures
            if self._num_bytes + num_bytes > how.most_bytes:
                return
            number = next(self._numbers)
            self._num_bytes += num_bytes
            self._begun.setdefault(picture, deque()).append((number, num_bytes))
            self._workers.submit(number, picture)

    def opened(self, inputs: ModelInputs) -> ModelInputs:
        """The same with images instead of references. `MediaError` where one cannot be read."""
        if self._workers is None or inputs.is_open:
            return inputs
        pixels = [
            StoredPixels(tuple(map(self._image, one.images))) if isinstance(one, StoredPixels) else one
            for one in inputs.pixels
        ]
        return replace(inputs, pixels=tuple(pixels))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which the rank waits for images."""
        begin = time.monotonic()
        yield
        self._figures["opening_s"] += time.monotonic() - begin

    def take_figures(self) -> dict[str, float]:
        """`images_opened`, `images_ahead` of them that were begun before, and `opening_s`, since the last call."""
        figures, self._figures = self._figures, dict.fromkeys(_FIGURES, 0.0)
        return figures

    def forget(self) -> None:
        """Give up what was begun and not taken."""
        if self._workers is not None:
            self._workers.forget()
        self._begun.clear()
        self._num_bytes, self._latest = 0, None

    def close(self) -> None:
        """End the worker processes."""
        if self._workers is not None:
            self._workers.close()

    def _image(self, image: Tensor | StoredImage) -> Tensor | StoredImage:
        if not isinstance(image, StoredPicture):
            return image
        self._figures["images_opened"] += 1
        first = replace(image, frame=0)
        if image.frame == 0 or self._latest is None or self._latest[0] != first:
            self._latest = self._taken(first)
        if self._latest is None:
            return image
        self._figures["images_ahead"] += 1
        return self._latest[1][image.frame]

    def _taken(self, first: StoredPicture) -> tuple[StoredPicture, list[BytePicture]] | None:
        """The pictures of an image or a video that was begun."""
        begun = self._begun.get(first)
        if not begun or self._workers is None:
            return None
        number, num_bytes = begun.popleft()
        if not begun:
            del self._begun[first]
        self._num_bytes -= num_bytes
        try:
            return first, self._workers.result(number)
        except MediaError as error:
            raise MediaError(f"{error}; on host {socket.gethostname()}") from None


def _stored(inputs: ModelInputs) -> Iterator[StoredPicture]:
    images = (image for one in inputs.pixels if isinstance(one, StoredPixels) for image in one.images)
    return (image for image in images if isinstance(image, StoredPicture))


def _open(first: StoredPicture) -> list[BytePicture]:
    """All pictures of an image or a video, in a worker."""
    return first.bytes_of_all()
