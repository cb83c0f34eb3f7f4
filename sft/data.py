"""Samples for SFT: demonstrations, and the think-fusion mix of own correct rollouts with direct answers.

The report's think-fusion (section 4.2.4) mixes thinking samples rejected-sampled from RL's rollouts with direct pairs;
thinking samples carry the thinking instruction, direct ones do not: that is how the mode is chosen afterwards.
"""

import itertools
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from model.batch import Row
from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatRow, require_reference
from model.data.conversations import assistant_text, mode_of
from model.data.raw_rows import RawRow, check_text
from model.data.sources import DataFolders, StepPart, StepRows, TableSource
from model.data.tables import Table
from model.interface import IM_END, Mode
from model.json_values import JsonObject
from model.processing.messages import texts_of
from model.processing.processor import Processor, PromptTokens
from model.processing.visuals import check_visuals
from model.run.identity import Input, digest_of_files
from sft.config import SftConfig, SftDataConfig
from sft.rejection import rollout_files, select_rollouts
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
    ids: "list[array[int]] | None" = None  # those that the row gives for each completion; None: the texts are encoded


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
        if sample.ids is not None:
            return prompt, [ids.tolist() for ids in sample.ids]
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
        turns = _turns(whole.messages, shown.completions)
        for number, (messages, completions) in enumerate(turns):
            self.reader.instruct(messages)
            mode, completions, remarks = mode_of(said, completions)
            notes.remarks += [remark for remark in remarks if remark not in notes.remarks]
            chat = replace(whole, id=self._free_id(whole.id, number, notes.remarks), messages=messages)
            is_last = number == len(turns) - 1
            ids = self._given_ids(raw.columns.get("completion_ids"), completions) if is_last else None
            found.append(self.measured(Sample(chat, mode, completions, ids)))
        return found

    def _given_ids(self, given: object, completions: list[str]) -> "list[array[int]] | None":
        """Token ids that a row gives beside its completions, None where it gives none. `ValueError` unless this model's
        tokenizer reads them as these completions, each with its end of turn."""
        if given is None:
            return None
        tokenizer = self._processor.tokenizer
        lists = given if isinstance(given, list) else []
        for ids, text in zip_longest(lists, completions):
            is_list = isinstance(ids, list) and all(
                type(one) is int and 0 <= one < tokenizer.num_entries for one in ids
            )
            if not is_list or tokenizer.decode(ids, keep_control=True) != f"{text}{IM_END}":
                raise ValueError(
                    "completion_ids: expected the ids that this model's tokenizer reads as the completions, each with "
                    f"its end of turn, found {ids!r:.80} for {text!r:.80}; leave the column out to train the texts"
                )
        return [array("i", ids) for ids in lists]

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
