"""The folder that a maker writes: rows, dropped rows with a reason each, counts, and media."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.data.media_cells import Message
from model.data.media_store import CarriedMedia
from model.json_values import JsonObject, read_json_object
from model.run.durable import STAGING_SUFFIX, write_file
from model.run.printable import printable
from sft.prepare.rows import SourceRow

_LONGEST_DETAIL = 500  # characters
UNREADABLE = "unreadable"
"""Why a row is dropped that is in no known shape, or whose media are missing or no images."""


@dataclass(frozen=True)
class MadeRow:
    """A row that may be written: its line, and the files that its messages name."""

    row_id: str
    place: JsonObject
    line: JsonObject
    files: dict[str, Path] = field(default_factory=dict)  # name below the folder -> file


class Output:
    """The fate of the rows that a maker reads: each is kept, or dropped for a reason."""

    def __init__(self, folder: str, name: str, maker: str, inputs: Sequence[str]) -> None:
        """`name`: the file of the rows that are kept.

        `ValueError` where `out` is a file, holds rows that this maker did not write, or holds `inputs`.
        """
        self.folder, self.path, self._maker = Path(folder), Path(folder) / name, maker
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: expected a folder, found the file {folder}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: expected a folder that can be made, found: {error}") from None
        self._refuse_foreign(inputs)
        self.clear_held()
        self.path.unlink(missing_ok=True)  # so that no rows of other settings stand beside the counts of these
        self.media = CarriedMedia(self.folder)
        self._dropped: list[JsonObject] = []
        self._reasons: Counter[str] = Counter()

    def _refuse_foreign(self, inputs: Sequence[str]) -> None:
        inside = [one for one in inputs if Path(one).resolve().is_relative_to(self.folder.resolve())]
        if inside:
            raise ValueError(f"out: expected another folder than that of what is read, found {inside[0]} in it")
        try:
            maker = read_json_object(self.folder / "summary.json").get("maker")
        except (OSError, ValueError):
            maker = None
        if self.path.exists() and maker != self._maker:
            raise ValueError(
                f"out: expected a new folder, or one that this command wrote, found {self.path}; move it away, or name "
                "another folder"
            )

    def drop(self, row: SourceRow | MadeRow | JsonObject, row_id: str, reason: str, detail: str = "") -> None:
        """Count a row as dropped; `row` says where it stands."""
        place = row if isinstance(row, dict) else row.place
        self._reasons[reason] += 1
        known = {"detail": printable(detail, _LONGEST_DETAIL)} if detail else {}
        self._dropped.append({**place, "id": row_id, "reason": reason, **known})

    def made(self, row: SourceRow, row_id: str, line: JsonObject, messages: Sequence[Message], root: Path) -> MadeRow:
        """A row with its media by content. `ValueError` for media that cannot be read."""
        try:
            placed, files = self.media.named(messages, root)
        except OSError as error:
            raise ValueError(f"media: expected files that can be read, found: {error}") from None
        return MadeRow(row_id, row.place, {**line, "messages": placed, "made_from": row.place}, files)

    def finish(self, rows: Sequence[MadeRow], num_read: int, more: JsonObject) -> JsonObject:
        """Write dropped.jsonl and summary.json, then the rows with their media; return the summary.

        `more`: what the summary says beside the counts. `ValueError` where no row is left, after the summary says why.
        """
        if num_read != len(rows) + len(self._dropped):
            raise AssertionError(f"{num_read} rows were read, {len(rows)} kept and {len(self._dropped)} dropped")
        reasons = dict(sorted(self._reasons.items()))
        counts = {"num_rows": num_read, "kept": len(rows), "dropped": reasons}
        summary: JsonObject = {"maker": self._maker, **counts, **more}
        _write_lines(self.folder / "dropped.jsonl", self._dropped)
        write_file(self.folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        named = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
        print(f"{len(rows)} of {num_read} rows kept; dropped: {named}")
        return summary

    def write(self, rows: Sequence[MadeRow]) -> None:
        """Write the rows that are kept, and their media first."""
        if not rows:
            raise ValueError(
                f"out: expected some rows to be left, found none; {self.folder / 'summary.json'} counts the reasons, "
                "dropped.jsonl beside it names them row by row"
            )
        for row in rows:
            self.media.link(row.files)
        _write_lines(self.path, [row.line for row in rows])
        self.clear_held()
        print(f"kept: {self.path}")

    def clear_held(self) -> None:
        """Delete what an earlier call did not finish, and images that came as bytes and are linked by now."""
        for leftover in self.folder.glob(f"*{STAGING_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _write_lines(path: Path, lines: Sequence[JsonObject]) -> None:
    write_file(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())
