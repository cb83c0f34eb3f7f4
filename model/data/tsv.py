"""Rows of VLMEvalKit's TSV tables."""

import ast
import codecs
import csv
import io
import itertools
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from model.data.raw_rows import MAX_ROW_BYTES, RawRow, from_base64, require_file
from model.json_values import JsonObject

_LONGEST_REFERENCE = 64
"""An image cell this short is the index of the row that has the image."""
_MEND = "double the mark, and put its cell between quotation marks"
_END = "\0end of the table"
"""A line behind the last one: where it does not come back as a row, an open quotation mark has taken it in."""


def tsv_rows(path: Path, as_chat: bool = True) -> Iterator[RawRow]:
    """Cells that are empty count as absent. `ValueError` for a file that cannot be read as a table.

    `as_chat` makes a question of hint, question and options; without it all cells but the image stay as they are.
    """
    wanted = {
        image for _, _, cells in _cells(path) if isinstance(cells, dict) and _is_reference(image := _image(cells))
    }
    shared = {
        cells["index"]: image
        for _, _, cells in (_cells(path) if wanted else ())
        if isinstance(cells, dict)
        and cells.get("index") in wanted
        and (image := _image(cells))
        and not _is_reference(image)
    }
    for _, number, cells in _cells(path):
        if isinstance(cells, str):
            yield RawRow(path, number, problem=cells)
            continue
        try:
            yield RawRow(path, number, _columns(cells, shared, as_chat))
        except ValueError as error:
            yield RawRow(path, number, problem=str(error))


def placed_rows(path: Path) -> Iterator[tuple[int, int, RawRow]]:
    """(first byte, number of bytes, row) of every row that can be read without the others. For errors see `tsv_rows`.

    A row that takes its image from another one is bad here.
    """
    for place, number, cells in _cells(path):
        yield *place, _own_row(path, number, cells)


def header_of(path: Path) -> list[str]:
    """The names of the columns. `ValueError` for a file that cannot be read as a table."""
    with _named_errors(path), path.open("rb") as file:
        return next(csv.reader([_text(file.readline(MAX_ROW_BYTES).removeprefix(codecs.BOM_UTF8))], delimiter="\t"), [])


def row_of_bytes(path: Path, header: list[str], content: bytes) -> RawRow:
    """The row that `placed_rows` found at a place, read again; its number is 0."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with _named_errors(path):
        cells = next(csv.reader(io.StringIO(_text(content), newline=""), delimiter="\t"), [])
    return _own_row(path, 0, _named_cells(header, cells))


def _own_row(path: Path, number: int, cells: "dict[str, str] | str") -> RawRow:
    if isinstance(cells, str):
        return RawRow(path, number, problem=cells)
    try:
        return RawRow(path, number, _columns(cells, {}))
    except ValueError as error:
        return RawRow(path, number, problem=str(error))


def _cells(path: Path) -> Iterator[tuple[tuple[int, int], int, dict[str, str] | str]]:
    """((first byte, number of bytes), row number, cells by column or why there are none)."""
    require_file(path, "TSV")
    csv.field_size_limit(MAX_ROW_BYTES)  # holds for the whole process; an image is one cell
    with _named_errors(path), path.open("rb") as file:
        yield from _read(file)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"data: {path}: expected a readable TSV file in UTF-8, found: {error}") from None


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _read(file: IO[bytes]) -> Iterator[tuple[tuple[int, int], int, dict[str, str] | str]]:
    source = _Lines(file)
    lines = csv.reader(itertools.chain(source, [_END]), delimiter="\t")
    header = next(lines, [])
    if len(header) < 2:
        raise ValueError(f"columns separated by tabs were expected in the first line, found {header!a:.80}")
    number, before, begin = 0, lines.line_num, source.num_bytes
    while (cells := _next(lines)) != [_END]:
        first, before = before + 1, lines.line_num
        place = (begin, source.num_bytes - begin)
        begin = source.num_bytes
        if not cells:
            continue
        number += 1
        if isinstance(cells, str):
            yield place, number, cells
            continue
        if cells[-1].endswith(_END):
            raise ValueError(f"row {number}, line {first}: a quotation mark that opens a cell without an end; {_MEND}")
        if before > first and (len(cells) != len(header) or any(_holds_rows(cell, len(header)) for cell in cells)):
            raise ValueError(
                f"row {number}, line {first}: a quotation mark that opens a cell which takes in rows up to line "
                f"{before}; {_MEND}"
            )
        yield place, number, _named_cells(header, cells)


def _named_cells(header: list[str], cells: list[str]) -> dict[str, str] | str:
    """The cells that are not empty by column, or why the row cannot be used."""
    if not all(map(_is_utf8, cells)):
        return "expected UTF-8, found other bytes in a cell"
    if len(cells) != len(header):
        return f"expected {len(header)} cells as the first line has, found {len(cells)}"
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def _is_utf8(cell: str) -> bool:
    try:
        return cell.isascii() or bool(cell.encode())
    except UnicodeEncodeError:  # a byte that is no UTF-8 arrives as half of a surrogate pair
        return False


def _holds_rows(cell: str, width: int) -> bool:
    """Whether a cell has as many tabs as the line breaks in it would bring along if they were those of rows."""
    breaks = cell.count("\n")
    return breaks > 0 and cell.count("\t") == breaks * (width - 1)


def _next(lines: Iterator[list[str]]) -> list[str] | str:
    """The next row, or why the reader gave it up; it goes on with the line behind."""
    try:
        return next(lines)
    except csv.Error as error:
        return f"expected cells that can be read, found: {error}"


class _Lines:
    """Lines of a file; one that is longer than a row may be is cut, so that its last cell is damaged and not all memory
    taken."""

    def __init__(self, file: IO[bytes]) -> None:
        self.num_bytes = 0  # in the lines that were given out
        self._file = file

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_ROW_BYTES):
            whole = line.endswith(b"\n")
            rest = line
            while not whole and len(rest) == MAX_ROW_BYTES:
                rest = self._file.readline(MAX_ROW_BYTES)
                whole = rest.endswith(b"\n")
            stop = self._file.tell()
            if not self.num_bytes and line.startswith(codecs.BOM_UTF8):
                line = line.removeprefix(codecs.BOM_UTF8)
                self.num_bytes = len(codecs.BOM_UTF8)
            for part in io.StringIO(_text(line), newline=""):  # a lone carriage return ends a line, too
                self.num_bytes += len(part.encode("utf-8", "surrogateescape"))
                yield part if part.endswith(("\r", "\n")) or len(line) < MAX_ROW_BYTES else part + "\n"
            self.num_bytes = stop


def _image(cells: dict[str, str]) -> str:
    return cells.get("image", "")


def _is_reference(cell: str) -> bool:
    return 0 < len(cell) <= _LONGEST_REFERENCE


def _columns(cells: dict[str, str], shared: dict[str, str], as_chat: bool = True) -> JsonObject:
    """Question with its lettered options, the images' bytes or names, and every other cell."""
    columns: JsonObject = {
        key: value for key, value in cells.items() if not as_chat or key not in string.ascii_uppercase
    }
    if as_chat and (options := {key: cells[key] for key in string.ascii_uppercase if key in cells}):
        columns["question"] = choice_question(cells.get("question", ""), options, cells.get("hint", ""))
        columns["options"] = options
    image = columns.pop("image", "")
    names = columns.pop("image_path", "") if as_chat else columns.get("image_path", "")
    if _is_reference(image) and image not in shared:
        raise ValueError(f"image: expected base64, or the index of a row that has an image, found {image!r}")
    if image:
        columns["images"] = [from_base64(text) for text in _listed(shared.get(image) or image)]
    elif names:
        columns["images"] = _listed(names)
    return columns


def choice_question(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """A question that shows its options, a letter and a text each, and asks for the letter."""
    before = f"Hint: {hint}\n" if hint else ""
    listed = "".join(f"{key}. {text}\n" for key, text in options.items())
    return f"{before}Question: {question}\nOptions:\n{listed}One of these is right: give its letter."


def _listed(cell: str) -> list[str]:
    """A cell holds one text, or a Python list of texts."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"image: expected one text or a list of texts in the cell, found {cell!r:.80}")
    return found
