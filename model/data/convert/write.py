"""Writes converted prompts: one JSONL file for each split, images beside them, and a summary; all of it or nothing."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.data.bad_rows import BadRows
from model.data.convert.config import DATA_SETS, ConvertConfig
from model.data.convert.files import ImageFiles, file_rows, split_files, with_layout
from model.data.convert.layouts import SETS, DataSet
from model.data.convert.prompt import Converted, LeftOut
from model.data.media import check_images
from model.data.media_cells import image_source
from model.data.media_store import MediaStore
from model.data.raw_rows import check_text
from model.data.tables import as_json
from model.json_values import JsonObject
from model.run.durable import begin_folder, link_file, publish_folder, require_new_folder, write_stream
from model.run.failpoints import reach
from model.run.printable import printable

IMAGES = "images"
SUMMARY = "summary.json"
_FORMAT = 1


@dataclass
class Counts:
    """The fate of the rows of one split."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    bad: int = 0
    verifiers: Counter[str] = field(default_factory=Counter)  # prompts by verifier
    images: int = 0  # that prompts name

    @property
    def prompts(self) -> int:
        return self.verifiers.total()


def convert(config: ConvertConfig) -> list[str]:
    """Convert, and return lines that say what was kept and how it is used.

    `ValueError` where the source has another layout, no row gives a prompt, or too many cannot be used; the folder is
    not there then.
    """
    source, out = Path(config.source), Path(config.out)
    data_set = SETS[config.dataset]
    splits = split_files(source, data_set)
    require_new_folder(out, "out")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"out: expected a folder outside of source, found {out}; name another")
    writer = _Writer(config, data_set, source)
    staging = begin_folder(out)
    try:
        digests = {}
        for split, files in splits.items():
            name = f"{split}.jsonl"
            digests[name] = write_stream(staging / name, writer.lines(split, files, staging))
        writer.bad_rows.opened(sum(counts.rows for counts in writer.counts.values()))
        for split, counts in writer.counts.items():
            if not counts.prompts:
                (staging / f"{split}.jsonl").unlink()
                del digests[f"{split}.jsonl"]
        if not digests:
            raise ValueError(f"source: {source}: expected rows that give prompts, found {_reasons(writer.counts)}")
        summary = _summary(config, writer)
        os.sync()  # images are many small files: one call instead of one for each
        publish_folder(staging, out, digests, {SUMMARY: json.dumps(summary, indent=1, ensure_ascii=False).encode()})
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return [printable(line, 1000) for line in _lines(config, writer, out)]


class _Writer:
    """Turns the rows of a data set into lines of prompts."""

    def __init__(self, config: ConvertConfig, data_set: DataSet, source: Path) -> None:
        self._config, self._set = config, data_set
        self._files = ImageFiles(source, data_set.images)
        self._checked: set[Path] = set()  # image files that are in place
        out = Path(config.out)
        report = out.with_name(f"{out.name}.bad_rows.jsonl")
        self.bad_rows = BadRows(config.max_bad_rows, report, key="max_bad_rows")
        self.counts: dict[str, Counts] = {}

    def lines(self, split: str, files: list[Path], staging: Path) -> Iterator[bytes]:
        """Yield the line of each prompt of a split. `ValueError` for a file of another layout."""
        counts = self.counts[split] = Counts()
        media = MediaStore(staging / IMAGES)
        for file in files:
            layout, rows = with_layout(file, file_rows(file, self._set), DATA_SETS[self._config.dataset], self._set)
            for raw in rows:
                counts.rows += 1
                reach("read")
                try:
                    if raw.problem:
                        raise ValueError(raw.problem)
                    converted = layout.read(raw.columns)
                    row = self._row(f"{self._config.dataset}-{split}-{counts.rows}", converted)
                    row[IMAGES] = [self._image(cell, raw.file, staging, media) for cell in converted.images]
                    line = _line(row)
                except LeftOut as reason:
                    counts.left_out[str(reason)] += 1
                except ValueError as error:
                    counts.bad += 1
                    self.bad_rows.add(raw.file, raw.number, str(error).replace(f"{staging}/", ""))
                else:
                    counts.verifiers[converted.verifier] += 1
                    counts.images += len(converted.images)
                    yield line

    def _row(self, row_id: str, converted: Converted) -> JsonObject:
        row: JsonObject = {
            "id": row_id,
            "dataset": self._set.name_of(self._config.dataset, converted.verifier),
            "question": converted.question,
            IMAGES: [],
            "reference": converted.reference,
            "verifier": converted.verifier,
        }
        if converted.options:
            row["options"] = dict(converted.options)
        return row | {name: as_json(value) for name, value in converted.columns.items()}

    def _image(self, cell: object, file: Path, staging: Path, media: MediaStore) -> str:
        """The name, below the folder that is written, of an image as a file. `MediaError` for one that is none."""
        found = image_source(cell)
        if isinstance(found, bytes):
            return f"{IMAGES}/{media.put(found)}"
        path = self._files.find(found, file)
        relative = path.relative_to(self._files.root.resolve())
        if "." not in relative.name:  # a reader could take a long name without a dot for base64
            return f"{IMAGES}/{media.put(path.read_bytes())}"
        if path not in self._checked:
            check_images(self._files.root, [str(path)])
            link_file(path, staging / IMAGES / relative)
            self._checked.add(path)
        return f"{IMAGES}/{relative}"


def _line(row: JsonObject) -> bytes:
    check_text(row)
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _overrides(config: ConvertConfig, verifiers: Mapping[str, int]) -> list[str]:
    """The settings of rewards of a run on these prompts."""
    data_set, used = SETS[config.dataset], sorted(verifiers)
    if len(data_set.verifiers) == 1:
        return [f"reward.verifier={used[0]}"] if used else []
    routes = ", ".join(f"{data_set.name_of(config.dataset, one)}: {one}" for one in used)
    return [f"reward.datasets={{{routes}}}"] if used else []


def _summary(config: ConvertConfig, writer: _Writer) -> JsonObject:
    splits = {
        split: {
            "file": f"{split}.jsonl" if counts.prompts else None,
            "rows": counts.rows,
            "prompts": counts.prompts,
            "verifiers": dict(sorted(counts.verifiers.items())),
            "left_out": dict(sorted(counts.left_out.items())),
            "bad_rows": counts.bad,
            "images": counts.images,
            "overrides": _overrides(config, counts.verifiers),
        }
        for split, counts in writer.counts.items()
    }
    title = DATA_SETS[config.dataset]
    return {"format": _FORMAT, "dataset": config.dataset, "title": title, "source": config.source, "splits": splits}


def _lines(config: ConvertConfig, writer: _Writer, out: Path) -> Iterator[str]:
    for split, counts in writer.counts.items():
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.verifiers.items())) or "none"
        reasons = "".join(f", {count:,} left out: {reason}" for reason, count in sorted(counts.left_out.items()))
        bad = f", {counts.bad:,} bad" if counts.bad else ""
        where = f" -> {out / f'{split}.jsonl'}" if counts.prompts else ""
        yield f"{split}: {counts.rows:,} rows, {counts.prompts:,} prompts ({kinds}){reasons}{bad}{where}"
    used: Counter[str] = sum((counts.verifiers for counts in writer.counts.values()), Counter())
    files = {split: out / f"{split}.jsonl" for split, counts in writer.counts.items() if counts.prompts}
    first = "train" if "train" in files else next(iter(files))
    held_out = next((split for split in ("validation", "testmini", "test") if split in files and split != first), "")
    given = [f"prompts={files[first]}", *([f"evaluation.prompts={files[held_out]}"] if held_out else [])]
    quoted = [f"'{one}'" if " " in one else one for one in _overrides(config, used)]
    yield f"for a run: {' '.join([*given, *quoted])}"


def _reasons(counts: Mapping[str, Counts]) -> str:
    found: Counter[str] = sum((one.left_out for one in counts.values()), Counter())
    bad = sum(one.bad for one in counts.values())
    return ", ".join([*(f"{count} {reason}" for reason, count in found.items()), *([f"{bad} bad rows"] if bad else [])])
