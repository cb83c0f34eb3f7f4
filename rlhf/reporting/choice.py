"""Which rollouts a page shows: all of them, or a sample by a rule that the page names.

The files are read twice. The first time only the place of each line is kept, because the rollouts of a long run do not
fit into memory beside a training.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.json_values import JsonObject
from rlhf.look.entries import Entry, entry_of

MOST_READ = 2 << 30
"""Bytes of stored rollouts that are read. Of more, files in equal distances are."""
LONGEST = 20_000
"""Characters of a completion that are kept whole. Of a longer one the first 14,000 and the last 6,000 are."""
_HEAD, _TAIL = 14_000, 6_000
_INDEX_BYTES = 64
"""Bytes that a rollout takes in the columns that are filtered, at most."""
_GOLDEN = 0.6180339887498949

RULE = (
    "whole groups were taken in turns over the steps, modes and reasons of drops, the steps of the largest falls "
    "first, until the page was full"
)


@dataclass(frozen=True)
class Source:
    """A file of completions, and the stage that it belongs to."""

    stage: str
    file: Path


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file."""

    source: int
    offset: int
    number: int  # line, from 1
    bucket: tuple[str, int, str, str]  # stage, step, mode, reason of the drop
    unit: tuple[int, int | str]  # source, and group or prompt: rollouts that are compared stand together
    size: int  # bytes that it takes in the page
    prompt: bytes  # digest of its prompt
    prompt_size: int


@dataclass(frozen=True)
class Choice:
    """The lines that are shown, in the order of the files."""

    sources: list[Source]
    places: list[Place]
    num_found: int
    num_files_unread: int
    problems: list[str]

    def entries(self) -> Iterator[Entry]:
        """Read the chosen lines again."""
        for number, source in enumerate(self.sources):
            own = [place for place in self.places if place.source == number]
            if not own:
                continue
            with source.file.open("rb") as file:
                for place in own:
                    file.seek(place.offset)
                    yield entry_of(file.readline(), source.file, place.number)


def choose(sources: Sequence[Source], max_bytes: int, first_steps: Collection[tuple[str, int]] = ()) -> Choice:
    """The rollouts of these files that fit into so many bytes of a page. `first_steps` are (stage, step) pairs that
    come first where not all of them fit."""
    read, num_unread = _readable(sources)
    problems: list[str] = []
    places: list[Place] = []
    for number, source in enumerate(read):
        try:
            places += _places(number, source)
        except (OSError, ValueError) as error:
            problems.append(f"{error}; the lines behind it are not in this page")
    chosen = _within(places, max_bytes, first_steps)
    return Choice(list(read), chosen, len(places), num_unread, problems)


def _readable(sources: Sequence[Source]) -> tuple[list[Source], int]:
    """(the files to read, how many are left out)."""
    sizes = [source.file.stat().st_size if source.file.is_file() else 0 for source in sources]
    every = max(1, -(-sum(sizes) // MOST_READ))
    kept = [source for number, source in enumerate(reversed(sources)) if number % every == 0][::-1]
    return kept, len(sources) - len(kept)


def _places(number: int, source: Source) -> Iterator[Place]:
    offset = 0
    with source.file.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                entry = entry_of(line, source.file, line_number)
                group = entry.id if entry.group is None else entry.group
                prompt = json.dumps(prompt_of(entry)).encode()
                yield Place(
                    number,
                    offset,
                    line_number,
                    (source.stage, entry.step or 0, entry.mode, entry.dropped),
                    (number, group),
                    len(json.dumps(record_of(entry, {}))) + _INDEX_BYTES,
                    hashlib.blake2b(prompt, digest_size=12).digest(),
                    len(prompt) + 4,
                )
            offset += len(line)


def _within(places: list[Place], max_bytes: int, first_steps: Collection[tuple[str, int]]) -> list[Place]:
    seen: set[bytes] = set()

    def cost(unit: Sequence[Place]) -> int:
        prompts = {place.prompt: place.prompt_size for place in unit if place.prompt not in seen}
        return sum(place.size for place in unit) + sum(prompts.values())

    if cost(places) <= max_bytes:
        return places
    buckets: dict[tuple[str, int, str, str], dict[tuple[int, int | str], list[Place]]] = {}
    for place in places:
        buckets.setdefault(place.bucket, {}).setdefault(place.unit, []).append(place)
    numbered = list(enumerate(buckets.items()))
    # Neighbours in time stand far apart in this order, so that any beginning of it covers the whole run.
    numbered.sort(key=lambda pair: (pair[1][0][:2] not in first_steps, pair[0] * _GOLDEN % 1))
    queues = [list(units.values()) for _, (_, units) in numbered]
    chosen: list[Place] = []
    left = max_bytes
    while queues:
        for queue in queues:
            unit = queue.pop(0)
            if (price := cost(unit)) <= left:
                left -= price
                chosen += unit
                seen |= {place.prompt for place in unit}
        queues = [queue for queue in queues if queue] if left > max_bytes // 1000 else []
    return sorted(chosen, key=lambda place: (place.source, place.offset))


def prompt_of(entry: Entry) -> JsonObject:
    """Everything that all completions of a prompt share, images by their names."""
    images = entry.record.get("images")
    names = [str(name) for name in images] if isinstance(images, list) else []
    return {"id": entry.id, "q": entry.question, "ref": entry.reference, "set": entry.dataset, "img": names}


def record_of(entry: Entry, parts: dict[str, int]) -> list[object]:
    """A completion as the page holds it: its text, where the thought begins and ends in it, answer, values of the
    reward's parts, reason, whether it was cut off, and how many characters were left out.

    `parts` numbers the parts; new ones are added.
    """
    text, thought = entry.completion, entry.thinking.strip()
    begin = text.find(thought) if thought else -1
    span = [begin, begin + len(thought)]
    left_out = max(0, len(text) - LONGEST)
    if left_out:
        gap = f"\n[... {left_out} characters are left out here ...]\n"
        span = [_shifted(one, len(text), len(gap)) for one in span]
        text = text[:_HEAD] + gap + text[-_TAIL:]
    values: list[float | None] = []
    for name, value in entry.parts.items():
        place = parts.setdefault(name, len(parts))
        values += [None] * (place + 1 - len(values))
        values[place] = value if isinstance(value, int | float) else None
    answer = entry.answer if entry.is_judged else ""
    return [text, span if begin >= 0 else 0, answer, values, entry.reason, int(entry.is_cut_off), left_out]


def _shifted(place: int, length: int, gap: int) -> int:
    """Where a place of a long text is, once its middle has given way to a note of `gap` characters."""
    if place <= _HEAD:
        return place
    return max(_HEAD, _HEAD + gap + place - (length - _TAIL)) if place >= length - _TAIL else _HEAD
