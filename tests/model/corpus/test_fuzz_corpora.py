"""Damaged files of every kind: a refusal that names the file, or bad rows; never another error, never a wrong row."""

import json
import random
from pathlib import Path

import pytest

from model.corpus.corpus import Corpus
from model.data.config import LoaderConfig, SourceConfig, TableConfig
from model.data.media_error import MediaError
from model.data.sources import DataFolders
from tests.model.corpus import layouts

NUM_ROWS = 12


def rows() -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"Answer {n}. " * 9}]}
        for n in range(NUM_ROWS)
    ]


def write(form: str, folder: Path) -> Path:
    path = folder / f"rows.{form}"
    if form == "jsonl":
        return layouts.jsonl(path, rows())
    if form == "json":
        path.write_text(json.dumps(rows()))
        return path
    if form == "parquet":
        return layouts.parquet(path, [{**row, "images": [layouts.struct(n)]} for n, row in enumerate(rows())], group=5)
    if form == "tsv":
        lines = [f"{n}\t{n}?\tAnswer {n}. " for n in range(NUM_ROWS)]
        path.write_text("index\tquestion\tanswer\n" + "\n".join(lines) + "\n")
        return path
    members = []
    for number in range(NUM_ROWS):
        members += [(f"{number}.png", layouts.picture(number)), (f"{number}.txt", f"Answer {number}.".encode())]
    return layouts.tar(path, members)


def damaged(content: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return content[: rng.randrange(len(content))]
        case 1:
            at = rng.randrange(len(content))
            return content[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40))) + content[at + 1 :]
        case 2:
            at = rng.randrange(len(content))
            return content[:at] + content[at + rng.randrange(1, 600) :]
        case _:
            flipped = bytearray(content)
            for _ in range(rng.randrange(1, 6)):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)


@pytest.mark.parametrize("form", ["jsonl", "json", "tsv", "tar", "parquet"])
def test_damaged_files(tiny, tmp_path, form, capsys):
    content = write(form, tmp_path).read_bytes()
    rng = random.Random(f"fuzz {form}")
    refused = read = 0
    for number in range(60):
        path = tmp_path / f"{number}.{form}"
        path.write_bytes(damaged(content, rng))
        source = SourceConfig(paths=[str(path)], template="What?")
        try:
            table = TableConfig(max_bad_rows=1e9)
            corpus = Corpus("s", source, "", table, LoaderConfig(0), tiny[1], DataFolders(), 4096)
        except ValueError as error:
            assert path.name in str(error) or "data.sources.s" in str(error)
            refused += 1
            continue
        for index in range(len(corpus)):
            try:
                assert corpus.build(index).num_tokens == corpus.length(index)
                read += 1
            except MediaError as error:  # an image whose header is whole
                assert "expected" in str(error)
    assert read or refused > 30
    assert refused or form == "jsonl"  # there damage costs single rows
