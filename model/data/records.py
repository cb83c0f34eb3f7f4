"""Reading JSONL data rows with errors that name file and line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_records(path: Path, required: dict[str, type]) -> list[dict[str, Any]]:
    """Rows of a JSONL file; each must have a unique `id` and the `required` fields of the given types.

    `ValueError` naming the line, what was expected and what came.
    """
    records, seen = [], set()
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"data: {path}:{number}: expected a JSON object, found: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"data: {path}:{number}: expected a JSON object, found {type(record).__name__}")
        for name, kind in {"id": str, **required}.items():
            if not isinstance(record.get(name), kind):
                raise ValueError(
                    f"data: {path}:{number}: {name}: expected {kind.__name__}, found {record.get(name)!r:.80}"
                )
        if record["id"] in seen:
            raise ValueError(f"data: {path}:{number}: id: expected a unique value, found {record['id']!r} again")
        seen.add(record["id"])
        records.append(record)
    if not records:
        raise ValueError(f"data: {path}: expected at least one row, found none")
    return records


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a JSONL file that are not blank, counted from 1. `ValueError` for a file that cannot be read."""
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as file:  # U+2028 and the like may stand in a string
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise ValueError(f"data: expected a JSONL file at {path}, found none; write it or correct the path") from None
    except OSError as error:
        raise ValueError(f"data: {path}: expected a readable JSONL file, found: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path}: expected UTF-8, found: {error}") from None


def require_texts(record: dict[str, Any], field: str, where: str) -> None:
    """`ValueError` unless `record[field]` is a list of at least one text."""
    texts = record[field]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"data: {where}: row {record['id']}: {field}: expected at least one text, found {texts!r:.80}")
