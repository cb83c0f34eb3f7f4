"""LongCoT demonstrations: brought into one form, without duplicates, redundant thoughts and conflicting hints.

The steps are the report's (section 4.1.3): tags unified, prompts stripped, duplicates of image and question dropped,
redundant thoughts dropped, long answers shortened by a judge, lengths balanced.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.data.chat_rows import ChatRow, first_of
from model.data.order import KeyedOrder
from model.data.references import read_reference
from model.json_values import JsonObject
from rewards.answers import parse_completion
from rewards.result import Claim, Outcome, Status
from rewards.sandbox.pool import ScoringPool
from rewards.scoring import Scorer
from rewards.verifiers.registry import VERIFIERS
from sft.prepare.cleaning import (
    HintCutter,
    NotUsable,
    Thought,
    has_think_tags,
    overlap,
    question_text,
    tokens_of,
    unify,
    unwrapped,
)
from sft.prepare.config import LongCotConfig
from sft.prepare.output import UNREADABLE, MadeRow, Output
from sft.prepare.rows import FreeIds, Source, SourceRow, check_row, other_columns, read_columns, without_system
from sft.prepare.shorten import LongAnswer, open_endpoint, shorten
from sft.shapes import THOUGHT_COLUMNS, Demonstration, ShapeColumns, read_demonstration

NO_QUESTION, SEVERAL_TURNS, DUPLICATE = "no_question", "several_turns", "duplicate"
REDUNDANT, THOUGHT_SHORT, THOUGHT_LONG = "redundant_thought", "thought_short", "thought_long"
WRONG_ANSWER, UNSCORABLE, LONG_ANSWER, BALANCE = "wrong_answer", "unscorable", "long_answer", "length_balance"
"""Why a row is dropped, beside what `sft.prepare.cleaning` says of its completions."""

_REFERENCES = ("reference", "reward_model.ground_truth", "ground_truth")
_SCORE_SECONDS = 5.0
_PORTION = 1024  # answers that are judged together


@dataclass(frozen=True)
class Candidate:
    """A row whose form is good, with its completions taken apart."""

    made: MadeRow
    thoughts: list[Thought]
    question: str
    reference: object = None  # None: the row has none

    @property
    def key(self) -> tuple[str, ...]:
        """The content of its media and its question; rows of the same are duplicates."""
        return (*self.made.files, " ".join(self.question.casefold().split()))

    @property
    def thought_tokens(self) -> float:
        """Tokens of its thoughts, on average."""
        return sum(len(tokens_of(one.thought)) for one in self.thoughts) / len(self.thoughts)


class LongCotMaker:
    """One call of the maker: counts what happens to rows and completions."""

    def __init__(self, config: LongCotConfig) -> None:
        """`ValueError` for a verifier or a judge that there is not."""
        self._config = config
        if config.verifier and config.verifier not in VERIFIERS:
            raise ValueError(f"verifier: expected one of {', '.join(VERIFIERS)}, found {config.verifier!r:.80}")
        self._endpoint = open_endpoint(config.judge, Path(config.out)) if config.judge else None
        self._columns = ShapeColumns(
            config.data.question_column, config.data.completion_column, config.data.thinking_column
        )
        self._cutter = HintCutter(config.hints)
        self._ids = FreeIds()
        self._counts: Counter[str] = Counter()
        self._completions: Counter[str] = Counter()
        self.output = Output(config.out, "demonstrations.jsonl", "longcot", config.rows)
        self.source = Source("rows", config.rows, config.data, self.output.folder)

    def run(self) -> None:
        """Read, clean and write. `ValueError` where nothing is left, after summary.json says why."""
        candidates = [found for row in self.source if (found := self._read(row)) is not None]
        candidates = self._right(candidates)
        candidates = self._distinct(candidates)
        candidates = self._shortened(candidates)
        candidates, buckets = self._balanced(candidates)
        rows = [_with_completions(one) for one in candidates]
        summary = {
            **{name: self._counts[name] for name in _COUNTED},
            "hints_cut": self._cutter.num_cut,
            "ids_shared": self._ids.num_shared,
            "completions_dropped": dict(sorted(self._completions.items())),
            "thought_tokens": buckets,
        }
        self.output.finish(rows, self.source.num_rows, summary)
        self.source.check()
        self.output.write(rows)

    def _read(self, row: SourceRow) -> Candidate | None:
        """None for a row that is dropped, which is counted."""
        own_id = self.source.reader.own_id(row.raw) or f"{row.table.name}-{row.ordinal}"
        try:
            if row.raw.problem:
                raise ValueError(row.raw.problem)
            columns = _unwrapped(row.raw.columns, self._columns.thinking)
            shown = read_demonstration(columns, self._columns, self._config.data.reference_form)
            chat = self.source.reader.read(row.raw, row.table, row.ordinal, shown.asked)
            check_row(chat)
            return self._candidate(row, shown, chat)
        except NotUsable as reason:
            self.output.drop(row, own_id, str(reason))
        except ValueError as error:
            self.output.drop(row, own_id, UNREADABLE, self.source.note_bad(row, str(error)))
        return None

    def _candidate(self, row: SourceRow, shown: Demonstration, chat: ChatRow) -> Candidate:
        if any(message.get("role") == "assistant" for message in chat.messages):
            raise NotUsable(SEVERAL_TURNS)
        stripped = without_system(chat)
        messages = self._cutter.messages(stripped.messages)
        question = question_text(messages)
        if not question.strip():
            raise NotUsable(NO_QUESTION)
        thoughts = self._thoughts(shown.completions)
        row_id = self._ids.take(chat.id)
        others = other_columns(chat, self.source.reader, row.raw, *read_columns(shown, self._columns))
        made = self.output.made(row, row_id, {**others, "id": row_id, "mode": "think"}, messages, chat.root)
        self._counts["system_prompts_cut"] += len(stripped.messages) < len(chat.messages)
        self._counts["solutions_split"] += any(one.is_split for one in thoughts)
        return Candidate(made, thoughts, question, self._reference(row.raw.columns))

    def _reference(self, columns: JsonObject) -> object:
        """The reference of a row as RL would read it; one that cannot be read stays as it is, and is unscorable."""
        data = self._config.data
        given = first_of(columns, [data.reference_column] if data.reference_column else _REFERENCES)[1]
        try:
            return None if given is None else read_reference(given, data.reference_form)[0]
        except ValueError:
            return given

    def _thoughts(self, completions: Sequence[str]) -> list[Thought]:
        """The completions that can be used. `NotUsable` with the reason of the first where none can."""
        found: list[Thought] = []
        reasons: list[str] = []
        for completion in completions:
            try:
                thought = unify(completion, self._config.split_solutions)
                if reason := self._fault(thought):
                    raise NotUsable(reason)
                found.append(thought)
            except NotUsable as reason:
                reasons.append(str(reason))
        if not found:
            raise NotUsable(reasons[0])
        self._completions.update(reasons)
        return found

    def _fault(self, thought: Thought) -> str:
        """Why a thought is not wanted; empty where it is."""
        length, config = len(tokens_of(thought.thought)), self._config
        if length < config.min_thought_tokens:
            return THOUGHT_SHORT
        if config.max_thought_tokens and length > config.max_thought_tokens:
            return THOUGHT_LONG
        is_redundant = not thought.is_split and overlap(thought.thought, thought.said) > config.max_overlap
        return REDUNDANT if is_redundant else ""

    def _right(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those whose answers are not wrong by their reference."""
        if not self._config.verifier:
            return candidates
        asked = [(one, thought) for one in candidates if one.reference is not None for thought in one.thoughts]
        claims = [Claim(each.text, each.answer, one.reference, one.made.line) for one, each in asked]
        with ScoringPool(1, _SCORE_SECONDS) as pool:
            scorer = Scorer(pool)
            portions = [claims[start : start + _PORTION] for start in range(0, len(claims), _PORTION)]
            outcomes = iter([one for each in portions for one in scorer.score(self._config.verifier, each)])
        kept: list[Candidate] = []
        for one in candidates:
            if one.reference is None:
                self._counts["without_reference"] += 1
                kept.append(one)
                continue
            judged = [(thought, _verdict(next(outcomes))) for thought in one.thoughts]
            right = [thought for thought, reason in judged if not reason]
            reasons = [reason for _, reason in judged if reason]
            if right:
                self._completions.update(reasons)
                kept.append(replace(one, thoughts=right))
            else:
                self.output.drop(one.made, one.made.row_id, reasons[0])
        return kept

    def _distinct(self, candidates: list[Candidate]) -> list[Candidate]:
        """The first of those with the same media and question."""
        seen: dict[tuple[str, ...], str] = {}
        kept: list[Candidate] = []
        for one in candidates:
            if one.key in seen:
                self.output.drop(one.made, one.made.row_id, DUPLICATE, f"of {seen[one.key]}")
                continue
            seen[one.key] = one.made.row_id
            kept.append(one)
        return kept

    def _shortened(self, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates, with long answers made short where a judge can."""
        most = self._config.long_answer_tokens
        is_long = [[len(tokens_of(each.answer)) > most for each in one.thoughts] for one in candidates]
        wanted = [
            LongAnswer(one.question, each.answer)
            for one, longs in zip(candidates, is_long, strict=True)
            for each, long in zip(one.thoughts, longs, strict=True)
            if long
        ]
        self._counts["long_answers"] = len(wanted)
        found = iter(shorten(self._endpoint, wanted, most) if self._endpoint else [("", "no judge")] * len(wanted))
        kept: list[Candidate] = []
        for one, longs in zip(candidates, is_long, strict=True):
            replies = [next(found) if long else ("", "") for long in longs]
            replies = [_well_formed(each, reply) for each, reply in zip(one.thoughts, replies, strict=True)]
            thoughts = [
                replace(each, answer=short or each.answer)
                for each, (short, why) in zip(one.thoughts, replies, strict=True)
                if not (why and self._config.drop_long_answers)
            ]
            self._counts["shortened"] += sum(bool(short) for short, _ in replies)
            self._counts["not_shortened"] += (failed := sum(bool(why) for _, why in replies))
            if not thoughts:
                self.output.drop(one.made, one.made.row_id, LONG_ANSWER, next(why for _, why in replies if why))
                continue
            if failed and self._config.drop_long_answers:
                self._completions[LONG_ANSWER] += failed
            kept.append(replace(one, thoughts=thoughts))
        return kept

    def _balanced(self, candidates: list[Candidate]) -> tuple[list[Candidate], JsonObject]:
        """(those that stay, rows before and after by bucket), in their order."""
        edges = self._config.bucket_edges
        places = [sum(one.thought_tokens >= edge for edge in edges) for one in candidates]
        before = Counter(places)
        most = bucket_cap([before[place] for place in range(len(edges) + 1)], self._config.bucket_share)
        kept: set[int] = set()
        for place in before:
            own = [number for number, found in enumerate(places) if found == place]
            order = KeyedOrder(len(own), self._config.seed, f"bucket {place}").rows(0, min(most, len(own)))
            kept |= {own[number] for number in order}
        for number, one in enumerate(candidates):
            if number not in kept:
                self.output.drop(one.made, one.made.row_id, BALANCE)
        after = Counter(places[number] for number in kept)
        names = [f"{low}-{high - 1}" for low, high in zip([0, *edges], edges, strict=False)] + [f"{[0, *edges][-1]}-"]
        shown = {name: {"before": before[place], "after": after[place]} for place, name in enumerate(names)}
        return [one for number, one in enumerate(candidates) if number in kept], shown


_COUNTED = (
    "system_prompts_cut",
    "solutions_split",
    "without_reference",
    "long_answers",
    "shortened",
    "not_shortened",
)


def make(config: LongCotConfig) -> None:
    """Write `config.out`: demonstrations.jsonl, dropped.jsonl, summary.json and media."""
    LongCotMaker(config).run()


def bucket_cap(counts: Sequence[int], share: float) -> int:
    """The most rows of a bucket with which none holds more than `share` of all that are kept.

    Where so few buckets have rows that no number does it, the size of the smallest: all are even then.
    """
    filled = [count for count in counts if count]
    if not filled or share >= 1:
        return max(filled, default=0)
    if share * len(filled) < 1:
        return min(filled)
    low, high = min(filled), max(filled)  # `low` is even, and so fits; what fits has no gap up to the largest
    while low < high:
        middle = (low + high + 1) // 2
        fits = middle <= share * sum(min(count, middle) for count in filled)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _unwrapped(columns: JsonObject, named: str) -> JsonObject:
    """The columns, with a thought in a column of its own freed of tags around it."""
    name, thought = first_of(columns, [named] if named else THOUGHT_COLUMNS)
    if name not in columns or not isinstance(thought, str) or not has_think_tags(thought):
        return columns
    return {**columns, name: unwrapped(thought)}


def _well_formed(thought: Thought, reply: tuple[str, str]) -> tuple[str, str]:
    """The reply of a judge, unless its short answer does not fit into a box."""
    short, why = reply
    if short and not parse_completion(replace(thought, answer=short).text).well_formed:
        return "", "the judge's answer does not fit into a box"
    return short, why


def _verdict(outcome: Outcome[float]) -> str:
    """Why an answer does not stay; empty where it is right."""
    if outcome.status is not Status.ok or outcome.value is None:
        return UNSCORABLE
    return "" if outcome.value >= 1 else WRONG_ANSWER


def _with_completions(one: Candidate) -> MadeRow:
    line = {**one.made.line, "completions": [each.text for each in one.thoughts]}
    return replace(one.made, line=line)
