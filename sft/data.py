"""Samples for SFT: demonstrations, and the think-fusion mix of own correct rollouts with direct answers.

The report's think-fusion (section 4.2.4) mixes thinking samples rejected-sampled from RL's rollouts with direct pairs;
thinking samples carry the thinking instruction, direct ones do not: that is how the mode is chosen afterwards.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.batch import Row
from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatRow, require_reference
from model.data.conversations import assistant_text, mode_of
from model.data.raw_rows import RawRow, check_text
from model.data.sources import DataFolders, StepPart, StepRows, TableSource
from model.data.tables import Table
from model.interface import Mode
from model.json_values import JsonObject
from model.processing.messages import texts_of
from model.processing.processor import Processor, PromptTokens
from model.processing.visuals import check_visuals
from model.run.identity import Input, digest_of_files
from rollouts.records import StoredRollout, read_rollouts
from sft.config import SftConfig, SftDataConfig
from sft.shapes import ShapeColumns, read_demonstration


def open_samples(config: SftConfig, processor: Processor, folders: DataFolders) -> StepRows:
    """Rows of each step: about `batch_size` completions, `direct_share` of them direct."""
    data, seed = config.data, config.run.seed
    num_direct = round(config.batch_size * data.direct_share)
    num_thinking = config.batch_size - num_direct
    parts: list[StepPart] = []
    if num_thinking and data.demonstrations:
        demonstrations = Demonstrations(data.demonstrations, data, processor, folders)
        per_step = max(1, num_thinking // demonstrations.widest)
        if not num_direct:
            per_step = min(per_step, len(demonstrations))  # an update takes no row twice, or one pass would be many
        parts.append(StepPart.keyed(demonstrations, per_step, seed, "demonstrations"))
    elif num_thinking:
        parts.append(StepPart.keyed(StoredSamples(data, processor, folders), num_thinking, seed, "rollouts"))
    if num_direct:
        parts.append(StepPart.keyed(DirectPairs(data, processor, folders), num_direct, seed, "direct"))
    return StepRows(parts, data.cache_mib)


@dataclass(frozen=True)
class Sample:
    """Messages, the mode in which they are asked, and what is answered."""

    chat: ChatRow
    mode: Mode
    completions: list[str]


class _Samples(TableSource[Sample]):
    """The common part of all sources of samples: prompt and completions as ids, images from files."""

    def __init__(self, key: str, path: str, config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        """`key`: the setting that names the table."""
        self._processor, self._config = processor, config
        super().__init__(key, [Path(path)], config, folders)

    def build(self, index: int) -> Row:
        sample = self.items[index]
        prompt, completions = self._ids_of(sample)
        return Row(prompt.ids, completions, self._processor.pictures(sample.chat.root, prompt.images))

    def measured(self, sample: Sample) -> tuple[str, Sample, int]:
        """(id, the sample, its packed tokens), its images checked."""
        self._processor.refuse_long(texts_of(sample.chat.messages))
        for completion in sample.completions:
            self._processor.refuse_long([completion])
        prompt, completions = self._ids_of(sample)
        self._processor.check_length(prompt.ids, completions)
        check_visuals(sample.chat.root, prompt.images)
        return sample.chat.id, sample, len(prompt.ids) + sum(map(len, completions))

    def _ids_of(self, sample: Sample) -> tuple[PromptTokens, list[list[int]]]:
        prompt = self._processor.prompt(sample.chat.messages, sample.chat.asked_in(sample.mode), sample.chat.root)
        return prompt, [self._processor.completion(text) for text in sample.completions]


class Demonstrations(_Samples):
    """Prompts with one or more completions each, which share the prompt in one packed row.

    A conversation gives a sample for each turn of the assistant.
    """

    def __init__(
        self,
        path: str,
        config: SftDataConfig,
        processor: Processor,
        folders: DataFolders,
        key: str = "data.demonstrations",
    ) -> None:
        self._columns = ShapeColumns(config.question_column, config.completion_column, config.thinking_column)
        super().__init__(key, path, config, processor, folders)

    @property
    def widest(self) -> int:
        """Most completions of a prompt."""
        return max(len(sample.completions) for sample in self.items)

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> list[tuple[str, Sample, int]]:
        if raw.problem:
            raise ValueError(raw.problem)
        shown = read_demonstration(raw.columns, self._columns, self._config.reference_form)
        check_text({"completions": shown.completions})
        whole = self.reader.read(raw, table, ordinal, shown.asked)
        notes = self.reader.reading.row
        said = raw.columns.get("mode")
        notes.columns |= {"mode": "mode"} if said else {}
        notes.remarks += shown.remarks
        found = []
        for number, (messages, completions) in enumerate(_turns(whole.messages, shown.completions)):
            self.reader.instruct(messages)
            mode, completions, remarks = mode_of(said, completions)
            notes.remarks += [remark for remark in remarks if remark not in notes.remarks]
            chat = replace(whole, id=self._free_id(whole.id, number, notes.remarks), messages=messages)
            found.append(self.measured(Sample(chat, mode, completions)))
        return found

    def _free_id(self, row_id: str, turn: int, remarks: list[str]) -> str:
        """The id of a turn; that of a row which shares its id with another gets a number."""
        own = f"{row_id}/{turn + 1}" if turn else row_id
        if not self.knows(own):
            return own
        if _SHARED not in remarks:
            remarks.append(_SHARED)
        return next(name for name in (f"{own}#{n}" for n in itertools.count(2)) if not self.knows(name))


_SHARED = "share their id with an earlier row; a number tells them apart"


def _turns(messages: list[JsonObject], completions: list[str]) -> list[tuple[list[JsonObject], list[str]]]:
    """(prompt, completions) of each turn of the assistant; the last one is what `completions` answer."""
    earlier = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    return [*((messages[:number], [assistant_text(messages[number])]) for number in earlier), (messages, completions)]


class DirectPairs(_Samples):
    """Prompts without the thinking instruction, answered by the boxed reference alone."""

    def __init__(self, config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        super().__init__("data.prompts", config.prompts, config, processor, folders.named("direct"))

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> tuple[str, Sample, int]:
        chat = self.reader.read(raw, table, ordinal)
        return self.measured(Sample(chat, Mode.direct, [f"\\boxed{{{require_reference(chat)}}}"]))


class _RolloutPrompts(_Samples):
    """Those prompts that rollouts were sampled from."""

    def __init__(self, used: set[str], config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        self._used = used
        self.bad_ids: set[str] = set()  # prompts of rollouts whose rows cannot be used
        super().__init__("data.prompts", config.prompts, config, processor, folders)

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> tuple[str, Sample, int] | None:
        row_id = self.reader.id_of(raw, table, ordinal)
        if row_id not in self._used:
            return None
        try:
            return self.measured(Sample(self.reader.read(raw, table, ordinal), Mode.think, []))
        except ValueError:
            self.bad_ids.add(row_id)
            raise


class StoredSamples:
    """`RowSource`: correct, well-formed rollouts that an RL run stored, by token ids exactly as sampled."""

    def __init__(self, config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        """`ValueError` where a rollout's prompt is not among `data.prompts`."""
        files = rollout_files(Path(config.rollouts), config.last_rollout_steps)
        self._chosen = select_rollouts(files)
        used = {rollout.prompt_id for rollout in self._chosen}
        self._prompts = _RolloutPrompts(used, config, processor, folders)
        self._number = {sample.chat.id: number for number, sample in enumerate(self._prompts.items)}
        if unknown := used - self._number.keys() - self._prompts.bad_ids:
            raise ValueError(
                f"data.prompts: {config.prompts}: expected the prompts of data.rollouts, found no row for "
                f"{sorted(unknown)[:3]}"
            )
        self._chosen = [rollout for rollout in self._chosen if rollout.prompt_id in self._number]
        if not self._chosen:
            raise ValueError(f"data.prompts: {config.prompts}: every prompt of data.rollouts is a bad row, named above")
        stored = Input(config.rollouts, digest_of_files(files))
        self._inputs = {**self._prompts.inputs, "data.rollouts": stored}

    def __len__(self) -> int:
        return len(self._chosen)

    def build(self, index: int) -> Row:
        rollout = self._chosen[index]
        prompt = self._prompts.build(self._number[rollout.prompt_id])
        return Row(prompt.prefix_ids, [rollout.completion_ids], prompt.images)

    def length(self, index: int) -> int:
        rollout = self._chosen[index]
        return self._prompts.length(self._number[rollout.prompt_id]) + len(rollout.completion_ids)

    def described(self) -> list[str]:
        return [f"data.rollouts: {len(self)} correct, well-formed rollouts", *self._prompts.described()]

    @property
    def bad_rows(self) -> BadRows:
        return self._prompts.bad_rows

    @property
    def inputs(self) -> Mapping[str, Input]:
        return self._inputs

    def name_bad(self, index: int, reason: str) -> None:
        self._prompts.name_bad(self._number[self._chosen[index].prompt_id], reason)


def rollout_files(folder: Path, last_steps: int) -> list[Path]:
    """The files of the last steps of an RL run. `ValueError` where there are none."""
    files = sorted(folder.glob("step_*.jsonl"))[-last_steps:]
    if not files:
        raise ValueError(f"data.rollouts: expected step_*.jsonl in {folder}, found none; run the RL stage first")
    return files


def select_rollouts(files: Sequence[Path]) -> list[StoredRollout]:
    """Rejection sampling: stored rollouts that are correct, well-formed and complete, once each."""
    chosen: dict[tuple[str, tuple[int, ...]], StoredRollout] = {}
    for file in files:
        for rollout in read_rollouts(file):
            parts = rollout.parts
            if parts.get("answer") == 1.0 and parts.get("format") == 1.0 and rollout.finish_reason == "stop":
                chosen.setdefault((rollout.prompt_id, tuple(rollout.completion_ids)), rollout)
    if not chosen:
        raise ValueError(
            f"data.rollouts: expected correct, well-formed rollouts in {files[0].parent}, found none in the last "
            f"{len(files)} steps"
        )
    return list(chosen.values())
