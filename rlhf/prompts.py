"""The RL data set: prompts of one or several files, checked when it is opened, ready as ids and pixels when drawn."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatReader, ChatRow, require_reference
from model.data.media import MediaError
from model.data.media_store import MediaStore
from model.data.sources import BoundedCache
from model.data.tables import Table
from model.interface import Mode
from model.json_values import JsonObject
from model.processing.messages import ImageSource
from model.processing.processor import Processor, PromptTokens
from model.processing.visuals import check_visuals
from rlhf.config import DataConfig, RlConfig
from rollouts.config import RolloutConfig
from rollouts.rollout import Prompt, RolloutRequest

_BYTES_OF_ID = 36  # a Python int and its place in a list


@dataclass(frozen=True)
class Task:
    """A prompt as the model reads it."""

    prompt: Prompt
    tokens: PromptTokens
    images: Sequence[Tensor]  # pixels of the prompt, each [tiles, 3, height, width]
    root: Path  # folder that image names are relative to

    @property
    def num_bytes(self) -> int:
        ids = len(self.tokens.ids) + len(self.tokens.placeholder_ids)
        return sum(image.nbytes for image in self.images) + _BYTES_OF_ID * ids

    def request(self, group_index: int, group_size: int, greedy: bool = False) -> RolloutRequest:
        tokens = self.tokens
        return RolloutRequest(
            group_index, self.prompt.id, tokens.ids, tokens.placeholder_ids, self.images, group_size, greedy
        )


@dataclass(frozen=True)
class PromptRow:
    """A prompt, where its image files lie, and where it came from."""

    prompt: Prompt
    root: Path
    dataset: str
    file: Path
    number: int

    @classmethod
    def of(cls, row: ChatRow) -> "PromptRow":
        """`ValueError` for a row without a reference."""
        prompt = Prompt(row.id, row.messages, require_reference(row), row.meta)
        return cls(prompt, row.root, row.dataset, row.file, row.number)


class PromptSet:
    """Rows that can be used, in the order of their files. Ids and image headers were checked; pixels are decoded when a
    row is drawn. What a row says is kept, what it weighs as ids and pixels is not, beyond `data.cache_mib`.
    """

    def __init__(
        self,
        path: Path,
        processor: Processor,
        mode: Mode,
        rollouts: RolloutConfig,
        data: DataConfig | None = None,
        media: Path | None = None,
        report: Path | None = None,
    ) -> None:
        """A prompt that is longer than `rollouts` allows, or has more images, is a bad row. `media`: folder for images
        that come as bytes, None for a temporary one. `report`: file that names bad rows.

        `ValueError` for files that are missing or not what their names say, and past `data.max_bad_rows`.
        """
        self._data = data or DataConfig()
        self._processor, self._mode, self._rollouts = processor, mode, rollouts
        self._media = MediaStore(media)
        self._bad = BadRows(self._data.max_bad_rows, report)
        self._rows: list[PromptRow] = []
        self._visual_tokens = array("q")  # one a row, counted when the row was opened
        self._index: dict[str, int] = {}
        self._bad.opened(self._read([Path(path), *map(Path, self._data.also)]))
        self._weights = self._row_weights()
        self._cache = BoundedCache[Task](self._data.cache_mib * 2**20, lambda task: task.num_bytes)

    @property
    def ids(self) -> list[str]:
        return list(self._index)

    @property
    def weights(self) -> list[float]:
        """How often each prompt is drawn, relative to the others."""
        return self._weights

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Task:
        """`MediaError` for a row whose media cannot be read."""
        return self._in_mode(index, self._mode)

    def task(self, index: int) -> Task | None:
        """None for a row whose media cannot be read; it is named. `ValueError` past `data.max_bad_rows`."""
        row = self._rows[index]
        if row.prompt.id in self._bad.ids:
            return None
        try:
            return self[index]
        except MediaError as error:
            reason = self._media.without_folder(str(error))
            self._bad.add_later(row.file, row.number, row.prompt.id, reason)
        self._refuse_if_nothing_is_left()
        return None

    def portions(self, count: int, size: int) -> Iterator[list[Task]]:
        """The first `count` rows (0: all), `size` at a time; those whose media cannot be read are left out."""
        total = min(count or len(self), len(self))
        for start in range(0, total, size):
            tasks = map(self.task, range(start, min(start + size, total)))
            if usable := [task for task in tasks if task is not None]:
                yield usable

    def by_id(self, prompt_id: str, mode: Mode | None = None) -> Task:
        """The prompt asked in another mode than it was opened for; without thinking it takes no more tokens."""
        return self._in_mode(self._index[prompt_id], mode or self._mode)

    def state(self) -> list[JsonObject]:
        """Data that a checkpoint keeps: rows that turned out bad when they were drawn."""
        return self._bad.state()

    def restore(self, state: list[JsonObject]) -> None:
        self._bad.restore(state)

    def _read(self, paths: Sequence[Path]) -> int:
        """Admit every row that can be used; how many rows there are."""
        files = [Table(path) for path in paths]
        names = [file.name for file in files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"data.also: expected files of different names, found {twice[0]!r} twice; rename one")
        reader = ChatReader(self._data, self._media)
        checked: set[tuple[Path, ImageSource, int]] = set()  # images and videos whose headers were read
        total = 0
        for position, file in enumerate(files):
            prefix = f"{file.name}/" if position else ""
            for ordinal, raw in enumerate(file.rows(), 1):
                total += 1
                try:
                    self._admit(PromptRow.of(reader.read(raw, file, ordinal, prefix)), checked)
                except ValueError as error:
                    self._bad.add(raw.file, raw.number, self._media.without_folder(str(error)))
        return total

    def _admit(self, row: PromptRow, checked: set[tuple[Path, ImageSource, int]]) -> None:
        prompt = row.prompt
        if prompt.id in self._index:
            raise ValueError(f"id: expected a unique value, found {prompt.id!r} again")
        tokens = self._processor.prompt(prompt.messages, self._mode, row.root)
        self._rollouts.check_length(prompt.id, len(tokens.ids))
        self._rollouts.check_images(prompt.id, tokens.placeholder_ids.count(self._processor.placeholder_id))
        places = [(row.root, visual.source, visual.media.num_frames) for visual in tokens.images]
        new = [visual for visual, place in zip(tokens.images, places, strict=True) if place not in checked]
        check_visuals(row.root, new)
        checked.update(places)
        self._index[prompt.id] = len(self._rows)
        self._rows.append(row)
        self._visual_tokens.append(_num_visual_tokens(tokens))

    def _row_weights(self) -> list[float]:
        known = {row.dataset for row in self._rows}
        if unknown := sorted(self._data.weights.keys() - known):
            raise ValueError(f"data.weights: expected names of data sets among {sorted(known)}, found {unknown[0]!r}")
        return [self._data.weights.get(row.dataset, 1.0) for row in self._rows]

    def _refuse_if_nothing_is_left(self) -> None:
        """Raise if every row is bad or has weight 0, because drawing would never end."""
        rows = zip(self._rows, self._weights, strict=True)
        if not any(weight and row.prompt.id not in self._bad.ids for row, weight in rows):
            raise ValueError("data: no row is left whose images can be read; see the bad rows named above")

    def _in_mode(self, index: int, mode: Mode) -> Task:
        return self._cache.get((index, mode), lambda: self._build(index, mode))

    def _build(self, index: int, mode: Mode) -> Task:
        row = self._rows[index]
        tokens = self._processor.prompt(row.prompt.messages, mode, row.root)
        if _num_visual_tokens(tokens) != self._visual_tokens[index]:
            raise MediaError(
                f"images: expected {self._visual_tokens[index]} visual tokens as when the data was opened, found "
                f"{_num_visual_tokens(tokens)}; keep files as they are while they are used"
            )
        return Task(row.prompt, tokens, self._processor.open_images(row.root, tokens.images), row.root)


def _num_visual_tokens(tokens: PromptTokens) -> int:
    return sum(visual.tokens_each * visual.num_pictures for visual in tokens.images)


def open_prompts(config: RlConfig, processor: Processor, run: Path) -> tuple[PromptSet, PromptSet | None]:
    """(what a run trains on, what it holds out), opened for thinking. Images and reports of bad rows go to `run`."""
    media = run / "media"
    path, held_out = Path(config.prompts), config.evaluation.prompts
    prompts = PromptSet(path, processor, Mode.think, config.rollouts, config.data, media, run / "bad_rows.jsonl")
    if not held_out:
        return prompts, None
    alone, report = config.data.without_mixture(), run / "bad_rows_evaluation.jsonl"
    return prompts, PromptSet(Path(held_out), processor, Mode.think, config.rollouts, alone, media, report)
