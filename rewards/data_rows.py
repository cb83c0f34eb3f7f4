"""Rows of data for the commands that score and check: JSONL line by line, other formats by the model room's reader."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.verifiers.verifier import parse_json

if TYPE_CHECKING:
    from model.data.chat_rows import ChatReader
    from model.data.raw_rows import RawRow

DataRow = dict[str, Any]  # JSON data
_QUESTIONS = ("messages", "question", "problem", "prompt")
_IMAGES = ("images", "image", "image_path")
_TABLES = (".parquet", ".tsv")


def numbered_rows(path: Path) -> Iterator[tuple[int, DataRow, str]]:
    """Yield (number, fields, fault) of every row, in order; a fault says what is wrong with a row that is no object.

    A folder, a .parquet and a .tsv file are read as `model.data.tables` does; every other file is JSONL, of which each
    line counts, blank ones too. `ValueError` for a file that is not what its name says.
    """
    if path.is_dir() or path.suffix.lower() in _TABLES:
        yield from _table_rows(path)
        return
    from model.data.jsonl import bounded_lines
    from model.data.raw_rows import MAX_ROW_BYTES, require_file

    require_file(path, "JSONL")
    with path.open("rb") as file:
        for number, raw in enumerate(bounded_lines(file), 1):
            if raw is None:
                yield number, {"line": number}, f"line {number}: expected at most {MAX_ROW_BYTES} bytes, found more"
                continue
            row, fault = _read_line(number, raw)
            yield number, row, fault


def completion_of(row: DataRow) -> object:
    """Return the completion of a row: its own field, or the text of a rollout that a run stored."""
    return row.get("completion", row.get("text") if "prompt_id" in row else None)


def mode_of_row(row: DataRow) -> str:
    """Return the mode that a line's completion was asked in, as evaluations and runs write it: auto, else think."""
    return "auto" if "auto" in (row.get("mode"), row.get("prompt_mode")) else "think"


@contextmanager
def opened_rows(path: Path, limit: int) -> Iterator[list[DataRow]]:
    """Give the first rows of a file of prompts, of completions, or of a run's rollouts, as a run would see them.

    They have `reference` and, where the file has them, `messages`, `completion` and `images`, which are paths. Images
    that come as bytes are files of a temporary folder meanwhile. `ValueError` names a row that cannot be used.
    """
    from model.data.chat_rows import ChatReader
    from model.data.config import ChatTableConfig
    from model.data.media_store import MediaStore

    reader = ChatReader(ChatTableConfig(), MediaStore())
    found: list[DataRow] = []
    for number, raw in _raw_rows(path):
        if raw.problem:
            raise ValueError(f"{path}: line {number}: expected a JSON object, found {raw.problem:.120}")
        try:
            found.append(_as_seen(raw, path, number, reader))
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
        if len(found) == limit:
            break
    if not found:
        raise ValueError(f"{path}: expected at least one row, found none")
    yield found


def _as_seen(raw: "RawRow", path: Path, number: int, reader: "ChatReader") -> DataRow:
    from model.data.media_cells import media_parts
    from model.data.tables import Table, as_json

    row: DataRow = {name: as_json(value) for name, value in raw.columns.items()}
    completion = completion_of(row)
    if isinstance(row.get("question"), str) and isinstance(completion, str) and isinstance(row.get("images"), list):
        # A line that a run, an evaluation or rollouts.generate wrote: its images are paths already, or lie in the run.
        row["images"] = [image_of(str(name), path) for name in row["images"]]
        asked = [{"role": "user", "content": row["question"]}]
        return {"id": row.get("prompt_id", number), "messages": asked, "reference": "", **row, "completion": completion}
    if any(row.get(name) for name in (*_QUESTIONS, *_IMAGES)):
        chat = reader.read(raw, Table(path), number)
        names = [part["image"] for part in media_parts(chat.messages) if part.get("type") == "image"]
        images = [str(chat.root / name) for name in names]
        row |= {**chat.meta, "id": chat.id, "messages": chat.messages, "images": images}
        if chat.reference is not None:
            row["reference"] = chat.reference
    if "reference" not in row:
        raise ValueError(f"expected an object with `reference`, found {sorted(row)}")
    return row


def image_of(name: str, file: Path) -> str:
    """The path of an image that a line of the file names: relative to the run, to the file, or to here."""
    places = (file.parent.parent / name, file.parent / name)
    return next((str(place) for place in places if place.is_file()), name)


def _raw_rows(path: Path) -> Iterator[tuple[int, "RawRow"]]:
    from model.data.raw_rows import RawRow
    from model.data.tables import Table

    if path.is_dir() or path.suffix.lower() in _TABLES:
        yield from enumerate(Table(path).rows(), 1)
        return
    for number, row, fault in numbered_rows(path):
        if fault and row.get("text") == "":
            continue  # a blank line
        yield number, RawRow(path, number, row, fault.partition(": ")[2])


def _table_rows(path: Path) -> Iterator[tuple[int, DataRow, str]]:
    from model.data.tables import Table, as_json

    for number, raw in enumerate(Table(path).rows(), 1):
        row = {name: as_json(value) for name, value in raw.columns.items()}
        yield number, row, f"line {number}: {raw.problem}" if raw.problem else ""


def _read_line(number: int, raw: bytes) -> tuple[DataRow, str]:
    raw = raw.rstrip(b"\r\n")
    try:
        row = parse_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        fault = f"not JSON: {error}" if raw.strip() else "expected a JSON object, found an empty line"
        return {"line": number, "text": raw[:500].decode("utf-8", "replace")}, f"line {number}: {fault}"
    if not isinstance(row, dict):
        return {"line": number, "text": row}, f"line {number}: expected a JSON object, found {type(row).__name__}"
    return row, ""
