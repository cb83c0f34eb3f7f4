"""From an example to a row of token ids with its images, and what an index keeps of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.batch import Row
from model.corpus.example import Example
from model.processing.processor import Processor
from model.processing.visuals import Visual, media_size


@dataclass(frozen=True)
class Encoded:
    """The ids of an example; `images` are still to be opened."""

    prefix: list[int]
    completions: list[list[int]]
    scored: list[np.ndarray] | None
    images: list[Visual]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.completions))

    @property
    def num_visual(self) -> int:
        return sum(visual.tokens_each * visual.num_pictures for visual in self.images)

    def cut(self, capacity: int, placeholder_id: int) -> "Encoded":
        """The same with at most `capacity` tokens. `ValueError` where more than trained text would be cut off."""
        if self.num_tokens <= capacity:
            return self
        *kept, last = self.completions
        length = len(last) - (self.num_tokens - capacity)
        if (least := self.num_kept(placeholder_id)) > capacity:
            raise ValueError(f"expected at most {capacity} tokens of which none can be cut off, found {least}")
        scored = None if self.scored is None else [*self.scored[:-1], self.scored[-1][:length]]
        return Encoded(self.prefix, [*kept, last[:length]], scored, self.images)

    def num_kept(self, placeholder_id: int) -> int:
        """Tokens of which none can be cut off: all up to the first trained one of the last completion, and to the
        last image."""
        *kept, last = self.completions
        trained = 0 if self.scored is None else int(np.flatnonzero(self.scored[-1])[0])
        images = np.flatnonzero(np.asarray(last) == placeholder_id)
        needed = max(trained, int(images[-1]) if len(images) else 0) + 1
        return len(self.prefix) + sum(map(len, kept)) + needed

    def row(self, processor: Processor, root: Path) -> Row:
        """The row with its pixels, or with references to them where the processor gives those."""
        return Row(self.prefix, self.completions, processor.pictures(root, self.images), scored=self.scored)


@dataclass(frozen=True)
class Measure:
    """The lengths of a row as an index keeps them, which do not depend on how a model cuts images."""

    text_tokens: int  # all ids but visual tokens
    kept_tokens: int  # those of them that no cut may take (`Encoded.num_kept`)
    sizes: list[tuple[int, int, int]]  # (width, height, frames of a video or 0) of every image


def encode(example: Example, processor: Processor, root: Path) -> Encoded:
    """The ids of an example, however many. `ValueError` for one that cannot be encoded.

    A conversation trains every turn of the assistant; all its turns are one row. One that ends with a user trains its
    answers alone, each behind the same turns.
    """
    if example.messages is None:
        prefix, completions = processor.document(example.prefix, example.texts, example.images, root)
        return Encoded(prefix, completions, None, processor.plan_images(example.images, root))
    if example.texts:
        prompt = processor.prompt(example.messages, example.mode, root)
        completions = [processor.completion(text) for text in example.texts]
        return Encoded(prompt.ids, completions, None, list(prompt.images))
    tokens = processor.conversation(example.messages, example.mode, root)
    weights = np.asarray(tokens.loss_weights)
    trained = np.flatnonzero(weights)
    if not len(trained):
        raise ValueError("expected a turn of the assistant that trains, found none")
    first, stop = int(trained[0]), int(trained[-1]) + 1
    completion, scored = tokens.ids[first:stop], weights[first:stop] > 0
    return Encoded(tokens.ids[:first], [completion], None if scored.all() else [scored], list(tokens.images))


def measure(encoded: Encoded, root: Path, placeholder_id: int) -> Measure:
    """The lengths of an example. `MediaError` for an image whose header cannot be read."""
    sizes = [(*media_size(visual.media, root), visual.media.num_frames) for visual in encoded.images]
    visual = encoded.num_visual
    return Measure(encoded.num_tokens - visual, encoded.num_kept(placeholder_id) - visual, sizes)
