"""From a benchmark's table to prompts: VLMEvalKit's TSV rows become messages in the benchmark's wording."""

import json
import os
import re
import shutil
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.data.bad_rows import BadRows
from model.data.media_error import MediaError
from model.data.media_store import MediaStore
from model.data.raw_rows import RawRow
from model.data.tsv import tsv_rows
from model.json_values import JsonObject
from model.run.durable import write_file
from model.run.identity import MediaDigest
from rlhf.evaluation.benchmarks import Benchmark, Catalogue, Form
from rlhf.evaluation.overall import unit_of
from rlhf.evaluation.rules import Question, as_list

_ABSENT = {"", "#N/A", "#NA", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "<NA>"}
"""Cells that pandas, which VLMEvalKit reads tables with, takes for nothing."""
_LETTERED = re.compile(r"^\(?([A-Z])[.):]\s*")
_IMAGE_MARK = "<image>"
_OPEN_OPTIONS = ("A", "Other Answers")  # how VLMEvalKit makes a choice of MMMU's open questions


@dataclass(frozen=True)
class Asked:
    """A row of a benchmark: what a rule compares, and the cells that figures are made of."""

    index: str
    question: Question
    text: str  # the question as it was put


def table_of(benchmark: Benchmark, folder: Path) -> Path:
    """The benchmark's TSV. `ValueError` where it is not there."""
    path = folder / f"{benchmark.file}.tsv"
    if not path.is_file():
        there = ", ".join(sorted(one.name for one in folder.glob("*.tsv"))[:8]) or "no .tsv file"
        raise ValueError(
            f"data.folder: {benchmark.name}: expected VLMEvalKit's table {path}, found {there}; this toolkit downloads "
            "none: put the file there"
        )
    return path


def asked_rows(benchmark: Benchmark, catalogue: Catalogue, folder: Path) -> Iterator[tuple[RawRow, Asked | str]]:
    """Each row with what it asks, or why it cannot be used. `ValueError` for a table without the columns."""
    path = table_of(benchmark, folder)
    form = catalogue.forms[benchmark.form]
    free = catalogue.forms.get("choice_free", form)
    for raw in tsv_rows(path, as_chat=False):
        if raw.problem:
            yield raw, raw.problem
            continue
        columns = {name: cell for name, cell in raw.columns.items() if isinstance(cell, str)}
        if raw.number == 1 and (missing := _missing(columns, benchmark)):
            raise ValueError(f"data.folder: {path}: expected columns {', '.join(missing)}, found {', '.join(columns)}")
        yield raw, _asked(columns, benchmark, form, free)


def _missing(columns: Mapping[str, str], benchmark: Benchmark) -> list[str]:
    return [name for name in ("index", "question", benchmark.answer_column) if name not in columns]


def _asked(columns: Mapping[str, str], benchmark: Benchmark, form: Form, free: Form) -> Asked | str:
    """Return what a row asks; a text says why it cannot be used."""
    for name in ("index", "question", benchmark.answer_column):
        if not columns.get(name):
            return f"{name}: expected a text, found nothing"
    options = _options(columns)
    answer = columns[benchmark.answer_column]
    asked = columns["question"]
    if benchmark.form == "choice" and columns.get("hint", "") not in _ABSENT:
        asked = f"{columns['hint']}\n{asked}"
    text = (form if options or benchmark.form != "choice" else free).filled(asked, options)
    if benchmark.rule == "choice":
        if not options:
            letter, other = _OPEN_OPTIONS
            options = {letter: answer, "B": other}
        if answer not in options:  # an open question's answer is its option A
            answer = "A" if len(answer) > 1 or answer not in string.ascii_uppercase else answer
    return Asked(columns["index"], Question(answer, options, columns), text)


def _options(columns: Mapping[str, str]) -> dict[str, str]:
    """Letter -> text: a column for each letter, else a Python list in column `candidates`."""
    found = {name: columns[name] for name in string.ascii_uppercase if columns.get(name, "") not in _ABSENT}
    if found or "candidates" not in columns:
        return found
    texts = as_list(columns["candidates"])
    return {letter: _LETTERED.sub("", text) for letter, text in zip(string.ascii_uppercase, texts, strict=False)}


def write_prompts(
    benchmark: Benchmark, catalogue: Catalogue, folder: Path, out: Path, max_bad_rows: float
) -> tuple[dict[str, Asked], int]:
    """Write the benchmark's prompts to `out` as JSONL, its images beside it; (what was asked by index, rows left out).

    Rows that cannot be used are named on stderr and in NAME.unread.jsonl. `ValueError` past `max_bad_rows`, and for an
    index that is there twice.
    """
    table = table_of(benchmark, folder)
    media = MediaStore(out.parent / "media")
    bad = BadRows(max_bad_rows, out.with_name(f"{out.stem}.unread.jsonl"))
    asked: dict[str, Asked] = {}
    lines: list[str] = []
    total = 0
    for raw, found in asked_rows(benchmark, catalogue, folder):
        total += 1
        if isinstance(found, str):
            bad.add(table, raw.number, found)
            continue
        if found.index in asked:
            raise ValueError(f"data.folder: {table}: row {raw.number}: index: {found.index!r} is there twice")
        try:
            parts = _parts(raw, found, benchmark, folder, media)
        except (MediaError, OSError) as error:
            bad.add(table, raw.number, str(error), found.index)
            continue
        asked[found.index] = found
        row: JsonObject = {
            "id": found.index,
            "messages": [{"role": "user", "content": parts}],
            "reference": found.question.answer,
            "dataset": benchmark.name,
            "unit": unit_of(benchmark.score, found.index, found.question.columns, total - 1),
        }
        lines.append(json.dumps(row))
    if not total:
        raise ValueError(f"data.folder: {table}: expected rows, found none")
    bad.opened(total)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, "".join(f"{line}\n" for line in lines).encode())
    return asked, len(bad)


def _parts(raw: RawRow, asked: Asked, benchmark: Benchmark, folder: Path, media: MediaStore) -> list[JsonObject]:
    """The content of the user's message: images first, numbered where there are several, then the text."""
    if benchmark.frames:
        name = _linked(_video(asked.question.columns, benchmark, folder), media.folder)
        return [
            {"type": "video", "video": f"media/{name}", "num_frames": benchmark.frames},
            {"type": "text", "text": f"\n{asked.text}"},
        ]
    images = raw.columns.get("images", [])
    names = [_put(image, benchmark, folder, media) for image in (images if isinstance(images, list) else [images])]
    text = asked.text
    if len(names) == 1:
        return [{"type": "image", "image": names[0]}, {"type": "text", "text": f"\n{text.replace(_IMAGE_MARK, '')}"}]
    parts: list[JsonObject] = []
    for number, name in enumerate(names, 1):
        parts += [{"type": "text", "text": f"Image-{number}: "}, {"type": "image", "image": name}]
        parts.append({"type": "text", "text": "\n"})
        text = text.replace(_IMAGE_MARK, f"Image-{number}", 1)
    return [*parts, {"type": "text", "text": text}]


def _put(image: object, benchmark: Benchmark, folder: Path, media: MediaStore) -> str:
    content = image if isinstance(image, bytes) else _image_file(str(image), benchmark, folder).read_bytes()
    return f"media/{media.put(content)}"


def _image_file(name: str, benchmark: Benchmark, folder: Path) -> Path:
    places = (folder / "images" / benchmark.file / name, folder / name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise MediaError(f"image: expected one of {', '.join(map(str, places))}, found neither")
    return found


def _video(columns: Mapping[str, str], benchmark: Benchmark, folder: Path) -> Path:
    name = columns.get("video_path") or columns.get("prefix", "") + columns.get("video", "") + columns.get("suffix", "")
    places = [folder / benchmark.file / name, folder / name, folder / benchmark.file / f"{name}.mp4"]
    found = next((path for path in places if name and path.is_file()), None)
    if found is None:
        raise MediaError(f"video: expected one of {', '.join(map(str, places))}, found none")
    return found


def _linked(path: Path, media: Path) -> str:
    """The name of a video within the folder of prompts: a hard link, or a copy where the file system allows none."""
    media.mkdir(parents=True, exist_ok=True)
    name = f"{path.stat().st_size}-{path.name}"
    if not (media / name).exists():
        try:
            os.link(path, media / name)
        except OSError:
            shutil.copyfile(path, media / name)
    return name


def media_digest(benchmark: Benchmark, folder: Path) -> str:
    """A checksum over the images and videos that a table names and does not hold; those it holds are in its own."""
    digest = MediaDigest()
    for raw in tsv_rows(table_of(benchmark, folder), as_chat=False):
        columns = {name: cell for name, cell in raw.columns.items() if isinstance(cell, str)}
        images = raw.columns.get("images", [])
        try:
            if benchmark.frames:
                digest.add(path := _video(columns, benchmark, folder), path.name)
            for image in images if isinstance(images, list) else []:
                if isinstance(image, str):
                    digest.add(_image_file(image, benchmark, folder), image)
        except (MediaError, OSError):
            continue  # the row is counted and named when it is asked
    return digest.finish()
