"""The RL data set: prompts of one or several files, checked when it is opened, ready as ids and pixels when drawn."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.batch import StoredImage
from model.data.chat_rows import require_reference
from model.data.media_error import MediaError
from model.data.raw_rows import RawRow
from model.data.sources import BoundedCache, DataFolders, TableSource
from model.data.tables import Table
from model.interface import Mode
from model.processing.messages import ImageSource, texts_of
from model.processing.processor import Processor, PromptTokens
from model.processing.visuals import check_visuals
from rlhf.config import DataConfig, EvaluationMode, RlConfig
from rollouts.config import RolloutConfig
from rollouts.rollout import Prompt, RolloutRequest

_BYTES_OF_ID = 36  # a Python int and its place in a list


@dataclass(frozen=True)
class Task:
    """A prompt as the model reads it."""

    prompt: Prompt
    tokens: PromptTokens
    images: Sequence[Tensor | StoredImage]  # images of the prompt, pixels of each [tiles, 3, height, width]
    root: Path  # folder that image names are relative to
    mode: Mode = Mode.think  # the mode that is asked for, in our words or in the prompt's own

    @property
    def num_bytes(self) -> int:
        ids = len(self.tokens.ids) + len(self.tokens.placeholder_ids)
        return sum(image.nbytes for image in self.images) + _BYTES_OF_ID * ids

    @property
    def paths(self) -> list[str]:
        """Paths of the prompt's images and videos."""
        return [str(self.root / name) for name in self.tokens.files]

    def request(
        self, group_index: int, group_size: int, greedy: bool = False, returns_routes: bool = False
    ) -> RolloutRequest:
        return RolloutRequest(
            group_index=group_index,
            prompt_id=self.prompt.id,
            prompt_ids=self.tokens.ids,
            placeholder_ids=self.tokens.placeholder_ids,
            images=self.images,
            group_size=group_size,
            greedy=greedy,
            returns_routes=returns_routes,
        )


@dataclass(frozen=True)
class PromptRow:
    """A prompt, where its image files lie, and the data set that it belongs to."""

    prompt: Prompt
    root: Path
    dataset: str
    adds_instruction: bool  # False: thinking mode adds nothing, because the prompt asks in its own words


class PromptSet(TableSource[PromptRow]):
    """`RowSource` of tasks: prompts that can be used, in the order of their files. What a row says is kept, what it
    weighs as ids and pixels is not, beyond `data.cache_mib`.
    """

    def __init__(
        self,
        path: Path,
        processor: Processor,
        mode: Mode,
        rollouts: RolloutConfig,
        data: DataConfig | None = None,
        folders: DataFolders | None = None,
        key: str = "prompts",
        needs_reference: Callable[[Mapping[str, object]], bool] = lambda columns: True,
        max_tiles: Callable[[int], int] | None = None,
    ) -> None:
        """`max_tiles`: the cap of tiles of each image of a prompt that has so many; None: the processor's own.

        A prompt that is longer than `rollouts` allows, or has more images, is a bad row, and so is one without a
        reference where `needs_reference` says that a row with its columns needs one.

        `ValueError` for files that are missing or not what their names say, and past `data.max_bad_rows`.
        """
        self._data = data or DataConfig()
        self._processor, self._mode, self._rollouts = processor, mode, rollouts
        self._needs_reference, self._max_tiles = needs_reference, max_tiles
        self._visual_tokens = array("q")  # one a row, counted when the row was opened
        self._checked: set[tuple[Path, ImageSource, int]] = set()  # images and videos whose headers were read
        super().__init__(key, [Path(path), *map(Path, self._data.also)], self._data, folders or DataFolders())
        self._checked.clear()
        self._weights = self._row_weights()
        self._cache = BoundedCache[Task](self._data.cache_mib * 2**20, lambda task: task.num_bytes)

    @property
    def weights(self) -> list[float]:
        """How often each prompt is drawn, relative to the others."""
        return self._weights

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> tuple[str, PromptRow, int]:
        row = self.reader.read(raw, table, ordinal)
        self.refuse_known(row.id)
        reference = require_reference(row) if self._needs_reference(row.meta) else row.reference or ""
        prompt = Prompt(row.id, row.messages, reference, row.meta)
        most = self._rollouts.max_prompt_tokens
        self._processor.refuse_long(texts_of(prompt.messages), most, "rollouts.max_prompt_tokens")
        tokens = self._tokens(prompt, row.asked_in(self._mode), row.root)
        self._rollouts.check_length(prompt.id, len(tokens.ids))
        self._rollouts.check_images(prompt.id, tokens.placeholder_ids.count(self._processor.placeholder_id))
        places = [(row.root, visual.source, visual.media.num_frames) for visual in tokens.images]
        new = [visual for visual, place in zip(tokens.images, places, strict=True) if place not in self._checked]
        check_visuals(row.root, new)
        self._checked.update(places)
        self._visual_tokens.append(_num_visual_tokens(tokens))
        return row.id, PromptRow(prompt, row.root, row.dataset, row.adds_instruction), len(tokens.ids)

    def build(self, index: int) -> Task:
        """The prompt in the mode that the set was opened for. `MediaError` for one whose media cannot be read."""
        return self._in_mode(index, self._mode)

    def __getitem__(self, index: int) -> Task:
        return self.build(index)

    def task(self, index: int) -> Task | None:
        """None for a row whose media cannot be read; it is named. `ValueError` past `data.max_bad_rows`."""
        if self.items[index].prompt.id in self.bad_rows.ids:
            return None
        try:
            return self.build(index)
        except MediaError as error:
            self.name_bad(index, str(error))
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
        """The prompt asked in another mode than it was opened for, which should be the longest: `longest_mode`."""
        return self._in_mode(self.index_of(prompt_id), mode or self._mode)

    def _tokens(self, prompt: Prompt, mode: Mode, root: Path) -> PromptTokens:
        cap = self._max_tiles(_num_images(prompt)) if self._max_tiles else None
        return self._processor.prompt(prompt.messages, mode, root, cap)

    def _row_weights(self) -> list[float]:
        known = {row.dataset for row in self.items}
        if unknown := sorted(self._data.weights.keys() - known):
            raise ValueError(f"data.weights: expected names of data sets among {sorted(known)}, found {unknown[0]!r}")
        return [self._data.weights.get(row.dataset, 1.0) for row in self.items]

    def _refuse_if_nothing_is_left(self) -> None:
        """Raise if every row is bad or has weight 0, because drawing would never end."""
        rows = zip(self.items, self._weights, strict=True)
        if not any(weight and row.prompt.id not in self.bad_rows.ids for row, weight in rows):
            raise ValueError("data: no row is left whose images can be read; see the bad rows named above")

    def _in_mode(self, index: int, mode: Mode) -> Task:
        return self._cache.get((index, mode), lambda: self._decoded(index, mode))

    def _decoded(self, index: int, mode: Mode) -> Task:
        row = self.items[index]
        asked = mode if row.adds_instruction else Mode.direct
        tokens = self._tokens(row.prompt, asked, row.root)
        if _num_visual_tokens(tokens) != self._visual_tokens[index]:
            raise MediaError(
                f"images: expected {self._visual_tokens[index]} visual tokens as when the data was opened, found "
                f"{_num_visual_tokens(tokens)}; keep files as they are while they are used"
            )
        return Task(row.prompt, tokens, self._processor.pictures(row.root, tokens.images), row.root, mode)


def longest_mode(modes: Iterable[EvaluationMode]) -> Mode:
    """The mode whose instruction is the longest, which prompts are opened for: what fits then, fits in all of them.

    Thinking where nobody asks for more, so that the same prompts are read whichever modes are asked for.
    """
    return max([Mode.think, *(mode.asked for mode in modes)], key=lambda mode: len(mode.instruction))


def _num_images(prompt: Prompt) -> int:
    contents = [message["content"] for message in prompt.messages if isinstance(message.get("content"), list)]
    return sum(part.get("type") in ("image", "image_url") for content in contents for part in content)


def _num_visual_tokens(tokens: PromptTokens) -> int:
    return sum(visual.tokens_each * visual.num_pictures for visual in tokens.images)


def open_prompts(config: RlConfig, processor: Processor, run: Path) -> tuple[PromptSet, PromptSet | None]:
    """(what a run trains on, what it holds out), opened for `config.mode` and for the longest mode of evaluations.
    Images and reports of bad rows go to `run`."""
    folders = DataFolders(run / "media", run / "bad_rows.jsonl")
    path, held_out = Path(config.prompts), config.evaluation.prompts
    needs_reference = config.reward.needs_reference
    prompts = PromptSet(
        path, processor, config.mode, config.rollouts, config.data, folders, needs_reference=needs_reference
    )
    if not held_out:
        return prompts, None
    alone = config.data.without_mixture()
    apart, key = folders.named("evaluation"), "evaluation.prompts"
    longest = longest_mode(config.evaluation.modes)
    return prompts, PromptSet(Path(held_out), processor, longest, config.rollouts, alone, apart, key, needs_reference)
