"""Rows of data for the commands that score and check: JSONL line by line, other formats by the model room's reader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewards.verifiers.verifier import parse_json

DataRow = dict[str, Any]  # JSON data
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
