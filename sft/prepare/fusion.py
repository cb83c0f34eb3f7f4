"""The think-fusion mixture: an RL run's own correct rollouts as thinking rows, and direct answers to everything else.

The report's share is nine direct rows in ten (section 4.2.4). A row says its mode, by which SFT puts the thinking
instruction into the prompt of thinking rows and of no others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.data.chat_rows import ChatRow, first_of, require_reference
from model.data.conversations import mode_of
from model.data.instructions import has_own_instruction
from model.data.media_cells import Message
from model.data.order import KeyedOrder
from model.interface import THINKING_INSTRUCTION
from model.json_values import JsonObject
from rollouts.records import StoredRollout
from sft.prepare.cleaning import has_think_tags, question_text
from sft.prepare.config import FusionConfig
from sft.prepare.output import UNREADABLE, MadeRow, Output
from sft.prepare.rows import FreeIds, Source, SourceRow, check_row, other_columns, read_columns
from sft.rejection import judged_rollouts, rollout_files
from sft.shapes import ANSWER_COLUMNS, COMPLETION_COLUMNS, Demonstration, ShapeColumns, read_demonstration

NO_TEXT, PROMPT_UNREADABLE, MAX_PER_PROMPT, SURPLUS = "no_text", "prompt_unreadable", "max_per_prompt", "surplus"
THINK_TAGS, ASKS_TO_THINK, MODE_THINK = "think_tags", "asks_to_think", "mode_think"
"""Why rows are dropped, beside what `sft.rejection` says of rollouts."""


class FusionMaker:
    """One call of the maker."""

    def __init__(self, config: FusionConfig) -> None:
        self._config = config
        inputs = [*config.prompts, *config.direct, *([config.rollouts] if config.rollouts else [])]
        self.output = Output(config.out, "demonstrations.jsonl", "fusion", inputs)
        self._ids = FreeIds()
        self._counts: Counter[str] = Counter()
        self._num_read = 0
        data = config.data
        self._columns = ShapeColumns(data.question_column, data.completion_column, data.thinking_column)

    def run(self) -> None:
        """Read, mix and write. `ValueError` where nothing is left, after summary.json says why."""
        config, sources = self._config, []
        thinking: list[MadeRow] = []
        direct: list[MadeRow] = []
        if config.direct_share < 1:
            prompts = Source("prompts", config.prompts, config.prompt_data, self.output.folder, is_prefixed=True)
            thinking = self._thinking(prompts)
            sources.append(prompts)
        if config.direct_share > 0:
            answers = Source("direct", config.direct, config.data, self.output.folder)
            direct = [found for row in answers if (found := self._direct(row, answers)) is not None]
            self._num_read += answers.num_rows
            sources.append(answers)
        found = {"thinking_found": len(thinking), "direct_found": len(direct)}
        counts = mixture(len(thinking), len(direct), config.direct_share, config.num_rows)
        thinking = self._drawn(thinking, counts[0], "thinking")
        direct = self._drawn(direct, counts[1], "direct")
        rows = [*thinking, *direct]
        if rows:
            rows = [rows[place] for place in KeyedOrder(len(rows), config.seed, "mixture").rows(0, len(rows))]
        share = len(direct) / len(rows) if rows else None
        numbers = {"thinking": len(thinking), "direct": len(direct), "direct_share": share, **found}
        more = {name: self._counts[name] for name in ("boxed_references", "blank_thoughts_cut")}
        self.output.finish(rows, self._num_read, {**numbers, **more, "ids_shared": self._ids.num_shared})
        for source in sources:
            source.check()
        self.output.write(rows)

    def _thinking(self, prompts: Source) -> list[MadeRow]:
        """Thinking rows of the rollouts that are good enough. `ValueError` for rollouts of unknown prompts, and for a
        least value of a part that no rollout has."""
        config = self._config
        files = rollout_files(Path(config.rollouts), config.last_rollout_steps, "rollouts")
        chosen: list[tuple[JsonObject, StoredRollout]] = []
        parts: set[str] = set()
        for file, number, rollout, why in judged_rollouts(files, config.min_parts):
            self._num_read += 1
            parts |= rollout.parts.keys()
            place: JsonObject = {"file": file.name, "row": number}
            if reason := why or ("" if rollout.text else NO_TEXT):
                self.output.drop(place, rollout.prompt_id, reason)
            else:
                chosen.append((place, rollout))
        if unknown := sorted(config.min_parts.keys() - parts):
            raise ValueError(
                f"min_parts: expected names of reward parts that the rollouts have ({', '.join(sorted(parts))}), found "
                f"{unknown[0]!r}"
            )
        chosen = self._few_per_prompt(chosen)
        asked, bad = self._asked({rollout.prompt_id for _, rollout in chosen}, prompts)
        rows: list[MadeRow] = []
        for place, rollout in chosen:
            if rollout.prompt_id in bad:
                self.output.drop(place, rollout.prompt_id, PROMPT_UNREADABLE)
                continue
            prompt = asked[rollout.prompt_id]
            row_id = self._ids.take(f"{rollout.prompt_id}/{Path(place['file']).stem}-{place['row']}")
            line = {
                **prompt.line,
                "id": row_id,
                "completions": [rollout.text],
                "completion_ids": [rollout.completion_ids],
                "reward_parts": rollout.parts,
                "made_from": place,
            }
            rows.append(replace(prompt, row_id=row_id, place=place, line=line))
        return rows

    def _few_per_prompt(self, chosen: list[tuple[JsonObject, StoredRollout]]) -> list[tuple[JsonObject, StoredRollout]]:
        most = self._config.max_per_prompt
        if not most:
            return chosen
        by_prompt: dict[str, list[int]] = {}
        for number, (_, rollout) in enumerate(chosen):
            by_prompt.setdefault(rollout.prompt_id, []).append(number)
        kept: set[int] = set()
        for prompt_id, numbers in by_prompt.items():
            order = KeyedOrder(len(numbers), self._config.seed, f"rollouts of {prompt_id}")
            kept |= {numbers[place] for place in order.rows(0, min(most, len(numbers)))}
        for number, (place, rollout) in enumerate(chosen):
            if number not in kept:
                self.output.drop(place, rollout.prompt_id, MAX_PER_PROMPT)
        return [one for number, one in enumerate(chosen) if number in kept]

    def _asked(self, used: set[str], prompts: Source) -> tuple[dict[str, MadeRow], set[str]]:
        """(rows without completions by the id of the prompt, ids of prompts that cannot be read)."""
        asked: dict[str, MadeRow] = {}
        bad: set[str] = set()
        for row in prompts:
            try:
                prompt_id = prompts.reader.id_of(row.raw, row.table, row.ordinal)
            except ValueError:
                continue  # no rollout can have named it
            if prompt_id not in used or prompt_id in asked:
                continue
            try:
                chat = prompts.reader.read(row.raw, row.table, row.ordinal)
                check_row(chat)
                question = prompts.reader.reading.row.columns["question"]
                line = {**other_columns(chat, prompts.reader, row.raw, question), "mode": "think"}
                asked[prompt_id] = self.output.made(row, prompt_id, line, chat.messages, chat.root)
            except ValueError as error:
                prompts.note_bad(row, str(error))
                bad.add(prompt_id)
        if unknown := used - asked.keys() - bad:
            raise ValueError(
                f"prompts: {', '.join(self._config.prompts)}: expected the prompts of the rollouts, found no row for "
                f"{sorted(unknown)[:3]}"
            )
        return asked, bad

    def _direct(self, row: SourceRow, source: Source) -> MadeRow | None:
        """None for a row that is dropped, which is counted."""
        own_id = source.reader.own_id(row.raw) or f"{row.table.name}-{row.ordinal}"
        try:
            if row.raw.problem:
                raise ValueError(row.raw.problem)
            chat, completions, read = self._answered(row, source)
            check_row(chat)
            plain = [_without_blank_thoughts(message) for message in chat.messages]
            answers = mode_of("direct", completions)[1]
            self._counts["blank_thoughts_cut"] += plain != chat.messages or answers != completions
            if reason := self._fault(row, plain, answers):
                self.output.drop(row, own_id, reason)
                return None
            row_id = self._ids.take(chat.id)
            others = other_columns(chat, source.reader, row.raw, *read)
            line = {**others, "id": row_id, "mode": "direct", "completions": answers}
            return self.output.made(row, row_id, line, plain, chat.root)
        except _Refused:
            raise
        except ValueError as error:
            self.output.drop(row, own_id, UNREADABLE, source.note_bad(row, str(error)))
        return None

    def _answered(self, row: SourceRow, source: Source) -> tuple[ChatRow, list[str], list[str]]:
        """(the row, its completions, the columns that were read). A row with a reference and no answer is answered by
        the reference in a box."""
        columns, reader = row.raw.columns, source.reader
        named = [self._columns.completion] if self._columns.completion else []
        has_answer = bool(first_of(columns, [*named, *COMPLETION_COLUMNS, *ANSWER_COLUMNS])[0])
        shown: Demonstration | None = None
        try:
            shown = read_demonstration(columns, self._columns, self._config.data.reference_form)
        except ValueError:
            if has_answer:
                raise
        if shown is not None:
            chat = reader.read(row.raw, row.table, row.ordinal, shown.asked)
            return chat, shown.completions, read_columns(shown, self._columns)
        chat = reader.read(row.raw, row.table, row.ordinal)
        completions = [f"\\boxed{{{require_reference(chat)}}}"]
        self._counts["boxed_references"] += 1
        return chat, completions, [reader.reading.row.columns["question"]]

    def _fault(self, row: SourceRow, messages: Sequence[Message], completions: Sequence[str]) -> str:
        """Why a row is no direct row; empty where it is. `ValueError` for tags where `refuse_tagged` says so."""
        if row.raw.columns.get("mode") == "think":
            return MODE_THINK
        said = [str(message.get("content")) for message in messages if message.get("role") == "assistant"]
        if any(has_think_tags(text) for text in [*said, *completions]):
            if self._config.refuse_tagged:
                raise _Refused(
                    f"direct: {row.raw.file}:{row.raw.number}: expected answers without think tags, found one with; "
                    "mend the row, or leave refuse_tagged out, and such rows are dropped and counted"
                )
            return THINK_TAGS
        asks = has_own_instruction(list(messages)) or THINKING_INSTRUCTION in question_text(messages)
        return ASKS_TO_THINK if asks else ""

    def _drawn(self, rows: list[MadeRow], count: int, name: str) -> list[MadeRow]:
        """So many of the rows, at random; the others are counted."""
        if count == len(rows):
            return rows
        kept = {*KeyedOrder(len(rows), self._config.seed, name).rows(0, count)}
        for number, row in enumerate(rows):
            if number not in kept:
                self.output.drop(row.place, row.row_id, SURPLUS)
        return [row for number, row in enumerate(rows) if number in kept]


class _Refused(ValueError):
    """The whole call is refused, not a row."""


def make(config: FusionConfig) -> None:
    """Write `config.out`: demonstrations.jsonl, dropped.jsonl, summary.json and media."""
    FusionMaker(config).run()


def mixture(num_thinking: int, num_direct: int, direct_share: float, num_rows: int) -> tuple[int, int]:
    """(thinking rows, direct rows) of the largest mixture with this share of direct rows, in at most `num_rows` rows
    (0: no limit); the share holds up to half a row."""
    if direct_share == 0:
        return min(num_thinking, num_rows or num_thinking), 0
    if direct_share == 1:
        return 0, min(num_direct, num_rows or num_direct)
    total = min(num_thinking / (1 - direct_share), num_direct / direct_share, num_rows or float("inf"))
    total = int(total + 1e-9)
    direct = min(num_direct, round(total * direct_share))
    return min(num_thinking, total - direct), direct


def _without_blank_thoughts(message: Message) -> Message:
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return message
    return {**message, "content": mode_of("direct", [content])[1][0]}
