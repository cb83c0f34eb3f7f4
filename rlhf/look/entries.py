"""Completions that a run, an evaluation or batch inference wrote, in one form for reading, and filters over them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from model.json_values import JsonObject, parse_json
from rewards.data_rows import image_of

_STORED = ("rollouts/step_*.jsonl", "evaluations/*.answers.jsonl", "*.answers.jsonl", "step_*.jsonl")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """A line of such a file. Everything but the completion may be missing from it."""

    file: Path
    number: int  # line, from 1
    record: JsonObject

    @property
    def step(self) -> int | None:
        return self._value("step", int)

    @property
    def group(self) -> int | None:
        return self._value("draw", int)

    @property
    def sample(self) -> int | None:
        return self._value("sample_index", int, self._value("sample", int))

    @property
    def id(self) -> str:
        return self._value("prompt_id", str) or str(self.record.get("id", ""))

    @property
    def dataset(self) -> str:
        return self._value("dataset", str) or ""

    @property
    def mode(self) -> str:
        return self._value("mode", str) or ("training" if "draw" in self.record else "")

    @property
    def question(self) -> str:
        return self._value("question", str) or ""

    @property
    def images(self) -> list[str]:
        """Paths. Images that came as bytes lie in the folder of the run, two levels up, or beside the answers."""
        names = [str(image) for image in self._value("images", list) or []]
        return [image_of(name, self.file) for name in names]

    @property
    def completion(self) -> str:
        return self._value("completion", str) or self._value("text", str) or ""

    @property
    def thinking(self) -> str:
        """The part of the completion that is its thought, where the file says it."""
        return self._value("thinking", str) or ""

    @property
    def status(self) -> str:
        return self._scored("status", str) or ""

    @property
    def is_judged(self) -> bool:
        """Whether a run, an evaluation or `rewards.score` judged it. Else `answer`, `reward` and `value` are columns of
        the prompt's row."""
        return "parts" in self.record or self._scored("status", str) is not None

    @property
    def answer(self) -> str | None:
        """The answer that was found in the completion."""
        return self._scored("answer", str) if self.is_judged else None

    @property
    def reference(self) -> str:
        found = self.record.get("reference", "")
        return found if isinstance(found, str) else json.dumps(found)

    @property
    def reward(self) -> float | None:
        if "parts" in self.record:
            return self._value("reward", float)
        return self._scored("value", float) if self.is_judged else None

    @property
    def advantage(self) -> float | None:
        return self._value("advantage", float)

    @property
    def dropped(self) -> str:
        return self._value("dropped", str) or ""

    @property
    def reason(self) -> str:
        return self._value("reason", str) or ""

    @property
    def is_cut_off(self) -> bool:
        return self.record.get("finish_reason") == "length"

    @property
    def parts(self) -> dict[str, float | None]:
        return self._value("parts", dict) or {}

    @property
    def verdict(self) -> str:
        """One of right, wrong, unscorable, and unjudged, as an evaluation has them."""
        if isinstance(said := self.record.get("verdict"), str):
            return said
        if self._scored("status", str) == "unscorable" or "error" in self.record:
            return "unscorable"
        value = self.parts.get("answer") if "parts" in self.record else self.reward
        return "unjudged" if value is None else "right" if value >= 1 else "wrong"

    def _scored(self, name: str, kind: type[Value]) -> Value | None:
        """A field of `rewards.score`, which has another name where the scored file had one of this name."""
        return self._value(f"scored_{name}" if f"scored_{name}" in self.record else name, kind)

    def _value(self, name: str, kind: type[Value], default: Value | None = None) -> Value | None:
        """The value of a key, where it is of this type; whole numbers are numbers."""
        found = self.record.get(name)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            return kind(found)  # pyright: ignore[reportCallIssue]
        return found if isinstance(found, kind) and not isinstance(found, bool) else default


@dataclass(frozen=True)
class Filters:
    """Which entries are shown. An empty value lets all pass."""

    step: str = ""
    group: str = ""
    verdict: str = ""
    dropped: str = ""
    mode: str = ""
    dataset: str = ""
    text: str = ""  # part of the question, completion, answer, reference or id, whatever its case

    def match(self, entry: Entry) -> bool:
        exact = (
            (self.step, entry.step),
            (self.group, entry.group),
            (self.verdict, entry.verdict),
            (self.dropped, entry.dropped),
            (self.mode, entry.mode),
            (self.dataset, entry.dataset),
        )
        if any(wanted and wanted != str(found) for wanted, found in exact):
            return False
        texts = (entry.id, entry.question, entry.completion, entry.answer or "", entry.reference)
        return not self.text or any(self.text.lower() in text.lower() for text in texts)


def files_of(path: Path) -> list[Path]:
    """The files to read: a file itself, or those of a run, of a pipeline or of a folder of them.

    `ValueError` where there are none.
    """
    if (answers := path.with_suffix(".answers.jsonl")).is_file() and path.suffix == ".json":
        return [answers]  # those of an evaluation's result
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"expected a run's folder or a file of completions at {path}, found nothing")
    found = dict.fromkeys(one for start in ("", "*/") for kind in _STORED for one in sorted(path.glob(start + kind)))
    if not found:
        raise ValueError(
            f"expected rollouts/step_*.jsonl or *.answers.jsonl in {path} or one folder below it, found neither; give "
            "the folder of a run, or a file"
        )
    return list(found)


def entries(files: Sequence[Path], filters: Filters | None = None) -> Iterator[Entry]:
    """The entries of the files that the filters let pass, in order. A line without an end was cut off, and is passed
    over. `ValueError` names a line that is none."""
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    continue
                entry = entry_of(line, file, number)
                if filters is None or filters.match(entry):
                    yield entry


def entry_of(line: bytes, file: Path, number: int) -> Entry:
    """The entry that a line of a file says. `ValueError`, with its place, for one that is none."""
    return Entry(file, number, _record(line, f"{file}: line {number}"))


def _record(line: bytes, where: str) -> JsonObject:
    try:
        record = parse_json(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: expected a JSON object, found: {error}") from None
    if isinstance(record, dict) and any(isinstance(record.get(name), str) for name in ("completion", "text", "error")):
        return record
    raise ValueError(f"{where}: expected a completion, as runs, evaluations and rollouts.generate write it")
