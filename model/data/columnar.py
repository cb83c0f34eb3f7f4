"""Rows of Parquet files and of folders saved by `datasets`.

They need pyarrow, the extra `sailvl2-rl[data]`; it is imported where it is used. A few kilobytes of such a file can
stand for gigabytes: values that repeat are stored once. So they are read without being expanded, measured, and expanded
row by row where many of them together would be large.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.data.media import inside
from model.data.media_cells import VIDEO_COLUMNS
from model.data.raw_rows import MAX_ROW_BYTES, MAX_ROW_VALUES, RawRow, require_file
from model.json_values import JsonObject, read_json_object

Arrow = Any
"""An object of pyarrow, which need not be installed."""
_ROWS_AT_ONCE = 64  # how much of a file is read at once, because a row may carry megabytes of images
_BYTES_AT_ONCE = 64 * 2**20  # expanded
_MAX_CHUNK_BYTES = 2**31  # a column of a row group may expand to, by its own account
_VALUE_BYTES = 64  # a Python object and its place in a list


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Rows of one file, or of all *.parquet of a folder. `ValueError` for a file that is not whole."""
    arrow = _pyarrow(path)
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        require_file(file, "Parquet")
        with _whole(file, "Parquet file"):
            with arrow.parquet.ParquetFile(file) as plain:
                repeated = _repeated_columns(plain.metadata)
            with arrow.parquet.ParquetFile(file, read_dictionary=repeated) as table:
                _refuse_types(table.schema_arrow)
                yield from _rows(file, table.iter_batches(_ROWS_AT_ONCE))


def saved_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a folder that `save_to_disk` wrote: state.json names the Arrow stream files beside it."""
    arrow = _pyarrow(path)
    for file in saved_files(path):
        require_file(file, "Arrow")
        with (
            _whole(file, "Arrow stream"),
            arrow.memory_map(str(file)) as source,
            arrow.ipc.open_stream(source) as stream,
        ):
            _refuse_types(stream.schema)
            pieces = (
                batch.slice(start, _ROWS_AT_ONCE)
                for batch in stream
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _rows(file, pieces)


def parquet_group_sizes(file: Path) -> list[int]:
    """Rows of each row group of a Parquet file. `ValueError` for a file that is not whole."""
    arrow = _pyarrow(file)
    require_file(file, "Parquet")
    with _whole(file, "Parquet file"), arrow.parquet.ParquetFile(file) as table:
        _repeated_columns(table.metadata)
        _refuse_types(table.schema_arrow)
        return [table.metadata.row_group(number).num_rows for number in range(table.metadata.num_row_groups)]


def parquet_byte_columns(file: Path) -> list[str]:
    """The columns that `parquet_group` leaves out without bytes. `ValueError` for a file that is not whole."""
    arrow = _pyarrow(file)
    with _whole(file, "Parquet file"), arrow.parquet.ParquetFile(file) as table:
        return byte_columns(table.schema_arrow)


def parquet_group(file: Path, number: int, with_bytes: bool = True) -> Arrow:
    """A row group of a Parquet file as one batch, with its columns of bytes or without. `ValueError` for damage."""
    arrow = _pyarrow(file)
    with _whole(file, f"Parquet file (row group {number})"), arrow.parquet.ParquetFile(file) as plain:
        left_out = byte_columns(plain.schema_arrow)
        names = None if with_bytes else [name for name in plain.schema_arrow.names if name not in left_out]
        repeated = _repeated_columns(plain.metadata)
        with arrow.parquet.ParquetFile(file, read_dictionary=repeated) as table:
            batches = table.read_row_group(number, columns=names).combine_chunks().to_batches()
    if len(batches) > 1:
        raise ValueError(f"data: {file}: row group {number}: expected less than 2 GiB a column, found more")
    return batches[0] if batches else arrow.RecordBatch.from_pylist([])


def arrow_batches(file: Path) -> list[Arrow]:
    """The record batches of an Arrow stream file, mapped into memory. `ValueError` for a file that is not whole."""
    arrow = _pyarrow(file)
    require_file(file, "Arrow")
    with _whole(file, "Arrow stream"):
        stream = arrow.ipc.open_stream(arrow.memory_map(str(file)))
        _refuse_types(stream.schema)
        return list(stream)


def rows_of(file: Path, batch: Arrow) -> Iterator[RawRow]:
    """The rows of a record batch, numbered from 1."""
    return _rows(file, (batch.slice(start, _ROWS_AT_ONCE) for start in range(0, batch.num_rows, _ROWS_AT_ONCE)))


def row_of(file: Path, batch: Arrow, index: int, with_bytes: bool = True) -> RawRow:
    """One row of a record batch, with or without its columns of bytes; its number is 0."""
    row = batch.slice(index, 1)
    if not with_bytes:
        row = row.drop_columns(byte_columns(row.schema))
    columns = _converted(row)
    return RawRow(file, 0, problem=columns) if isinstance(columns, str) else RawRow(file, 0, _filled(columns))


@contextmanager
def _whole(file: Path, kind: str) -> Iterator[None]:
    arrow = _pyarrow(file)
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        is_unreadable = isinstance(error, OSError) and error.errno is not None  # the system's errors have a number
        raise (ValueError if is_unreadable else DamagedFile)(
            f"data: {file}: expected a whole {kind}, found: {error}"
        ) from None


class DamagedFile(ValueError):
    """The content of a file is not what it should be; reading it worked."""


def byte_columns(schema: Arrow) -> list[str]:
    """The columns of images as bytes: bytes, structs with bytes, and lists of them.

    Those of videos are not among them, because only names are read there, nor messages that hold images.
    """
    return [column.name for column in schema if column.name not in VIDEO_COLUMNS and _holds_images(column.type)]


def _holds_images(kind: Arrow) -> bool:
    while "list" in str(kind).partition("<")[0]:
        kind = kind.value_type
    return any("binary" in str(one).partition("<")[0] for one in [kind, *_fields(kind)])


def _fields(kind: Arrow) -> list[Arrow]:
    """The types of the fields of a struct."""
    return [kind.field(index).type for index in range(kind.num_fields)] if str(kind).startswith("struct<") else []


def saved_files(path: Path) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` wrote. `ValueError` for a state.json of another kind."""
    try:
        state = read_json_object(path / "state.json")
        if state.get("_indices_data_files"):
            raise ValueError("an index of selected rows; save it anew with a current version of datasets")
        return [inside(path, entry["filename"], "data file") for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"data: {path / 'state.json'}: expected what save_to_disk writes, found: {error}") from None


def _repeated_columns(metadata: Arrow) -> list[str]:
    """The text columns that store repeated values once. `ValueError` for a column that expands beyond reason."""
    repeated = set()
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for index in range(rows.num_columns):
            column = rows.column(index)
            name, values = column.path_in_schema, column.num_values
            if column.total_uncompressed_size > max(_MAX_CHUNK_BYTES, 1000 * column.total_compressed_size):
                raise ValueError(f"{name}: {column.total_compressed_size} bytes that expand more than a thousandfold")
            if values > MAX_ROW_VALUES * max(1, rows.num_rows):
                raise ValueError(f"{name}: expected at most {MAX_ROW_VALUES} values a row, found {values} in all")
            if column.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in str(one) for one in column.encodings):
                repeated.add(name)
    return sorted(repeated)


def _refuse_types(schema: Arrow) -> None:
    """`ValueError` for a column whose type could share values in ways that are not measured here."""
    for column in schema:
        waiting = [column.type]
        while waiting:
            kind = waiting.pop()
            name = str(kind)
            is_shared = "_view" in name.partition("<")[0] or name.startswith("run_end_encoded")
            if is_shared or (name.startswith("dictionary") and not _is_text(kind.value_type)):
                raise ValueError(f"column {column.name}: expected plain values, texts or lists, found {name:.80}")
            waiting += [kind.field(index).type for index in range(kind.num_fields)]


def _rows(file: Path, batches: Iterator[Arrow]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for columns in _expanded(batch):
            number += 1
            is_bad = isinstance(columns, str)
            yield RawRow(file, number, problem=columns) if is_bad else RawRow(file, number, _filled(columns))


def _expanded(batch: Arrow) -> Iterator[JsonObject | str]:
    """The columns of every row of a batch, or why it has none."""
    if sum(map(_num_bytes, batch.columns)) <= _BYTES_AT_ONCE:
        try:
            yield from batch.to_pylist()
            return
        except (ValueError, OverflowError):  # a cell that Python cannot hold: bytes that are no UTF-8, far years
            pass
    for index in range(batch.num_rows):
        yield _converted(batch.slice(index, 1))


def _converted(row: Arrow) -> JsonObject | str:
    """The columns of a batch of one row, or which one cannot be read."""
    columns: JsonObject = {}
    left = MAX_ROW_BYTES
    for name, cells in zip(row.schema.names, row.columns, strict=True):
        left -= (found := _num_bytes(cells))
        if left < 0:
            return f"{name}: expected a row of at most {MAX_ROW_BYTES} bytes, found {found} in this column"
        try:
            columns[name] = cells[0].as_py()
        except (ValueError, OverflowError) as error:
            return f"{name}: expected a value that Python can hold, found: {error}"
    return columns


def _num_bytes(array: Arrow) -> int:
    """Memory that an Arrow array takes as Python values, about; nothing is expanded to find out."""
    import pyarrow
    import pyarrow.compute

    compute: Arrow = pyarrow.compute  # its functions are made when it is imported
    kinds, kind = pyarrow.types, array.type
    if isinstance(array, pyarrow.ExtensionArray):
        return _num_bytes(array.storage)
    if kinds.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary) if _is_text(kind.value_type) else None
        taken = 0 if lengths is None else compute.sum(lengths.take(array.indices.drop_null())).as_py() or 0
        return taken + _VALUE_BYTES * len(array)
    if kinds.is_struct(kind):
        return sum(map(_num_bytes, array.flatten())) + _VALUE_BYTES * len(array)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind) or kinds.is_map(kind):
        return _num_bytes(array.flatten()) + _VALUE_BYTES * len(array)
    if _is_text(kind):
        return (compute.sum(compute.binary_length(array)).as_py() or 0) + _VALUE_BYTES * len(array)
    return array.nbytes + _VALUE_BYTES * len(array)


def _is_text(kind: Arrow) -> bool:
    import pyarrow

    kinds = pyarrow.types
    return kinds.is_string(kind) or kinds.is_binary(kind) or kinds.is_large_string(kind) or kinds.is_large_binary(kind)


def _filled(columns: JsonObject) -> JsonObject:
    """Columnar files give every row, and every part of a message, all fields of its kin: those it lacks are null, or
    NaN where pandas wrote a column of numbers."""
    return {key: _without_nulls(value) for key, value in columns.items() if value is not None and value == value}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return _filled(value)
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _pyarrow(path: Path) -> Arrow:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"data: {path}: reading it needs pyarrow, which is not installed: pip install 'sailvl2-rl[data]'"
        ) from None
    return pyarrow
