"""From a benchmark's table to prompts: VLMEvalKit's TSV rows become messages in the benchmark's wording."""

import hashlib
import json
import os
import re
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.bad_rows import BadRows
from model.data.media_error import MediaError
from model.data.media_store import MediaStore
from model.data.raw_rows import RawRow
from model.data.tsv import header_of, tsv_rows
from model.json_values import JsonObject
from model.run.durable import link_file, write_file
from model.run.identity import MediaDigest
from rlhf.evaluation.benchmarks import Benchmark, Catalogue, Form
from rlhf.evaluation.overall import COLUMNS, unit_of
from rlhf.evaluation.rules import Question, as_list, reference_box

_ABSENT = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
"""Cells that pandas, which VLMEvalKit reads tables with, takes for nothing."""
_LETTERED = re.compile(r"^\(?([A-Z])[.):]\s*")
_IMAGE_MARK = "<image>"
_WITH_OPEN_QUESTIONS = ("mmmu",)  # VLMEvalKit makes choices of their questions without options, and of no others
_OTHER_ANSWERS = "Other Answers"
_SPLIT_ENDS = {"val": "val", "test": "test", "testa": "testA", "testb": "testB"}


@dataclass(frozen=True)
class Asked:
    """A row of a benchmark: what a rule compares, and the cells that figures are made of."""

    index: str
    question: Question
    text: str  # the question as it was put
    unit: str = ""  # names what the row belongs to together with others; empty: the row is alone


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
    """Each row with what it asks, or why it cannot be used. `ValueError` for a table without the columns.

    As in VLMEvalKit, rows of other splits are left out, and so are rows without an image in a table of images.
    """
    path = table_of(benchmark, folder)
    form = catalogue.forms[benchmark.form]
    free = catalogue.forms.get("choice_free", form)
    header = header_of(path)
    if missing := _missing(header, benchmark):
        raise ValueError(f"data.folder: {path}: expected columns {', '.join(missing)}, found {', '.join(header)}")
    num_without_image = 0
    for raw in tsv_rows(path, as_chat=False):
        if raw.problem:
            yield raw, raw.problem
            continue
        columns = {name: cell for name, cell in raw.columns.items() if isinstance(cell, str)}
        if benchmark.split and "split" in header and columns.get("split") != benchmark.split:
            continue
        if _holds_images(benchmark, header) and not raw.columns.get("images"):
            num_without_image += 1
            continue
        yield raw, _asked(columns, benchmark, form, free, raw.number - 1)
    if num_without_image:
        print(f"{path}: {num_without_image} rows without an image are left out, as VLMEvalKit does", file=sys.stderr)


def _holds_images(benchmark: Benchmark, header: Sequence[str]) -> bool:
    """Whether the table holds the images of its questions, instead of naming their files or videos."""
    return not benchmark.frames and "image" in header


def _missing(header: Sequence[str], benchmark: Benchmark) -> list[str]:
    of_rule = ("category",) if benchmark.rule == "ocrbench" else ()
    needed = ("index", "question", benchmark.answer_column, *COLUMNS.get(benchmark.score, ()), *of_rule)
    missing = [name for name in needed if name not in header]
    if not benchmark.frames and not {"image", "image_path"} & set(header):
        missing.append("image or image_path")
    return missing


def _asked(columns: dict[str, str], benchmark: Benchmark, form: Form, free: Form, ordinal: int) -> Asked | str:
    """Return what a row asks; a text says why it cannot be used."""
    for name in ("index", "question", benchmark.answer_column):
        if not columns.get(name):
            return f"{name}: expected a text, found nothing"
    index = columns["index"]
    if benchmark.score == "splits":  # an index is there once in each split only
        columns["split"] = columns.get("split") or _split_of(columns.get("category", "")) or benchmark.file
        index = f"{columns['split']}_{index}"
    options = _options(columns)
    asked = columns["question"]
    if benchmark.form == "choice" and columns.get("hint", "") not in _ABSENT:
        asked = f"{columns['hint']}\n{asked}"
    text = (form if options or benchmark.form != "choice" else free).filled(asked, options)
    try:
        answer, options = _right_answer(columns, options, benchmark)
        unit = unit_of(benchmark.score, index, columns, ordinal)
    except ValueError as error:
        return str(error)
    return Asked(index, Question(answer, options, columns), text, unit)


def _right_answer(
    columns: Mapping[str, str], options: dict[str, str], benchmark: Benchmark
) -> tuple[str, dict[str, str]]:
    """(the answer as the rule compares it, the options). `ValueError` for one that no prediction can equal."""
    name = benchmark.answer_column
    answer = columns[name]
    said = {"yes_no": answer, "yes_no_any_case": answer.capitalize()}.get(benchmark.rule)
    if said not in (None, "Yes", "No"):
        raise ValueError(f"{name}: expected Yes or No, found {answer!r:.80}")
    if benchmark.answer_column == "final_answer":  # OlympiadBench has a list of LaTeX texts
        return ", ".join(as_list(answer)) or answer, options
    if benchmark.rule == "grounding" and reference_box(Question(answer, options, columns)) is None:
        raise ValueError(f"{name}: expected a box of four numbers, found {answer!r:.80}")
    if benchmark.rule != "choice":
        return answer, options
    if name == "correct_choice" and answer.isdecimal() and int(answer) < len(options):  # LongVideoBench counts from 0
        answer = list(options)[int(answer)]
    is_letter = len(answer) == 1 and answer in string.ascii_uppercase
    if not options and benchmark.name in _WITH_OPEN_QUESTIONS:
        return answer if is_letter else "A", {"A": answer, "B": _OTHER_ANSWERS}
    if not options:
        raise ValueError("A, B: expected the texts of options, in columns of their own or in candidates, found none")
    if is_letter:
        return answer, options
    texts = as_list(columns.get("candidates", ""))
    named = [letter for letter, text in zip(string.ascii_uppercase, texts, strict=False) if text == answer]
    named = named or [letter for letter, text in options.items() if text == answer]
    if not named and (match := _LETTERED.match(answer)) and match[1] in options:
        named = [match[1]]
    if len(named) != 1:
        raise ValueError(f"{name}: expected the letter or the text of one option, found {answer!r:.80}")
    return named[0], options


def _split_of(category: str) -> str:
    """Return the split that a category of RefCOCO names: RefCOCO+_testA for "RefCOCO+ testA"."""
    name, _, rest = category.strip().partition(" ")
    plain = re.sub(r"[\s_-]+", "", rest.lower())
    end = _SPLIT_ENDS.get(plain, rest.strip().replace(" ", "_").replace("-", "_"))
    return f"{name}_{end}" if end else name


def _options(columns: Mapping[str, str]) -> dict[str, str]:
    """Letter -> text: a column for each letter, else a Python list in column `candidates`."""
    found = {name: columns[name] for name in string.ascii_uppercase if columns.get(name, "") not in _ABSENT}
    if found or "candidates" not in columns:
        return found
    listed = dict(zip(string.ascii_uppercase, as_list(columns["candidates"]), strict=False))
    marks = {letter: _LETTERED.match(text) for letter, text in listed.items()}
    if any(mark is None or mark[1] != letter for letter, mark in marks.items()):
        return listed
    return {letter: _LETTERED.sub("", text) for letter, text in listed.items()}


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
            "unit": found.unit,
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
    if not names:
        raise MediaError("image_path: expected the image's file, found nothing")
    if len(names) == 1:
        return [{"type": "image", "image": names[0]}, {"type": "text", "text": f"\n{text.replace(_IMAGE_MARK, '')}"}]
    parts: list[JsonObject] = []
    for number, name in enumerate(names, 1):
        parts += [{"type": "text", "text": f"Image-{number}: "}, {"type": "image", "image": name}]
        parts.append({"type": "text", "text": "\n"})
        text = text.replace(_IMAGE_MARK, f"<Image-{number}>", 1)
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
    name = columns.get("video_path") or os.path.join(
        columns.get("prefix", ""), columns.get("video", "") + columns.get("suffix", "")
    )
    places = [folder / benchmark.file / name, folder / name, folder / benchmark.file / f"{name}.mp4"]
    found = next((path for path in places if name and path.is_file()), None)
    if found is None:
        raise MediaError(f"video: expected one of {', '.join(map(str, places))}, found none")
    return found


def _linked(path: Path, media: Path) -> str:
    """The name of a video within the folder of prompts."""
    name = f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}-{path.name}"
    link_file(path, media / name)
    return name


def media_digest(benchmark: Benchmark, folder: Path) -> str:
    """A checksum over the images and videos that a table names and does not hold; those it holds are in its own."""
    digest = MediaDigest()
    if _holds_images(benchmark, header_of(table_of(benchmark, folder))):
        return digest.finish()
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
