"""Samples for SFT: demonstrations, and the think-fusion mix of own correct rollouts with direct answers.

The report's think-fusion (section 4.2.4) mixes thinking samples rejected-sampled from RL's rollouts with direct pairs;
thinking samples carry the thinking instruction, direct ones do not: that is how the mode is chosen afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.batch import Row
from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatRow, require_reference
from model.data.raw_rows import RawRow
from model.data.sources import DataFolders, StepPart, StepRows, TableSource
from model.data.tables import Table, text_list
from model.interface import Mode
from model.processing.messages import texts_of
from model.processing.processor import Processor, PromptTokens
from model.processing.visuals import check_visuals
from model.run.identity import Input, digest_of_files
from rollouts.records import StoredRollout, read_rollouts
from sft.config import SftConfig, SftDataConfig


def open_samples(config: SftConfig, processor: Processor, folders: DataFolders) -> StepRows:
    """Rows of each step: about `batch_size` completions, `direct_share` of them direct."""
    data, seed = config.data, config.run.seed
    num_direct = round(config.batch_size * data.direct_share)
    num_thinking = config.batch_size - num_direct
    parts: list[StepPart] = []
    if num_thinking and data.demonstrations:
        demonstrations = Demonstrations(data, processor, folders)
        per_step = max(1, num_thinking // demonstrations.widest)
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

    def __init__(self, key: str, config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        """`key`: the field of the config that names the table."""
        self._processor = processor
        super().__init__(f"data.{key}", [Path(getattr(config, key))], config, folders)

    def build(self, index: int) -> Row:
        sample = self.items[index]
        prompt, completions = self._ids_of(sample)
        return Row(prompt.ids, completions, self._processor.open_images(sample.chat.root, prompt.images))

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
    """Prompts with one or more completions each, which share the prompt in one packed row."""

    def __init__(self, config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        super().__init__("demonstrations", config, processor, folders)

    @property
    def widest(self) -> int:
        """Most completions of a prompt."""
        return max(len(sample.completions) for sample in self.items)

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> tuple[str, Sample, int]:
        chat = self.reader.read(raw, table, ordinal)
        mode = raw.columns.get("mode")
        if mode not in ("think", "direct"):
            raise ValueError(f"mode: expected think or direct, found {mode!r:.80}")
        return self.measured(Sample(chat, Mode(mode), text_list(raw.columns, "completions")))


class DirectPairs(_Samples):
    """Prompts without the thinking instruction, answered by the boxed reference alone."""

    def __init__(self, config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        super().__init__("prompts", config, processor, folders.named("direct"))

    def admit(self, raw: RawRow, table: Table, ordinal: int) -> tuple[str, Sample, int]:
        chat = self.reader.read(raw, table, ordinal)
        return self.measured(Sample(chat, Mode.direct, [f"\\boxed{{{require_reference(chat)}}}"]))


class _RolloutPrompts(_Samples):
    """Those prompts that rollouts were sampled from."""

    def __init__(self, used: set[str], config: SftDataConfig, processor: Processor, folders: DataFolders) -> None:
        self._used = used
        self.bad_ids: set[str] = set()  # prompts of rollouts whose rows cannot be used
        super().__init__("prompts", config, processor, folders)

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
