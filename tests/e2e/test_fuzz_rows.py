"""Hostile rows in every format: each is used or costs one row, quickly and within bounded memory."""

import io
import json
import random
import resource
import string
import time
from pathlib import Path

import pytest
from PIL import Image

from model.data.sources import DataFolders
from model.interface import Mode
from model.pretrain.config import PretrainDataConfig
from model.pretrain.documents import Documents
from rlhf.config import DataConfig
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from sft.config import SftDataConfig
from sft.data import Demonstrations
from tests.conftest import require_extra

ROWS_A_FILE = 20
FAST, ALL = 8, 150  # files; one file in twenty is wholly hostile bytes
SECONDS_A_ROW = 2.0
ODD_TEXTS = [
    "", " ", "\0", "\ud800", "\u202e", "a\tb\nc", '"', "\\", "<image>", "<video>", "<think>", "<|im_end|>", "None", "nan",
    "[1, 2]", "['a', 'b']", "{}", "../x", "/etc/passwd", "a" * 300, "é" * 2000, "9" * 400, "x.png", "x" * 100_000,
    " " * 100_000, "a.mp4", "data:image/png;base64,AAAA", "A" * 100, "\x1b[2J", "http://example.com/x.png",
]  # fmt: skip
COLUMNS = [
    "id", "index", "question", "problem", "prompt", "messages", "answer", "reference", "solution", "images", "image",
    "image_path", "videos", "video", "audio", "dataset", "data_source", "reward_model", "options", "A", "B", "hint",
    "mode", "completions", "kind", "prefix", "texts", "extra",
]  # fmt: skip


def odd_value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 3:
        return rng.choice(ODD_TEXTS)
    if kind == 3:
        return rng.choice([0, -1, 2**63, 10**300, 1.5, float("nan"), float("inf"), True, None])
    if kind == 4:
        return "".join(rng.choices(string.printable, k=rng.randrange(40)))
    if kind == 5:
        return {
            "type": rng.choice(["text", "image", "video", "x"]),
            rng.choice(["text", "image", "video"]): rng.choice(ODD_TEXTS),
        }
    if kind == 6:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(COLUMNS): odd_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    content = odd_value(rng, depth + 1)
    return [{"role": rng.choice(["user", "assistant", "system", "tool", 3]), "content": content}]


def hostile_row(rng: random.Random, number: int) -> dict[str, object]:
    row: dict[str, object] = {
        "id": f"r{number}",
        "question": "1+1?",
        "answer": "2",
        "mode": "think",
        "completions": ["2"],
    }
    row |= {"kind": "a", "prefix": "1+1=", "texts": ["2"]}
    for _ in range(rng.randrange(4)):
        row[rng.choice(COLUMNS)] = odd_value(rng)
    if rng.random() < 0.2:
        row.pop(rng.choice(sorted(row)))
    return row


def write(path: Path, rows: list[dict[str, object]], rng: random.Random) -> Path:
    """The rows as a file of the path's kind; a few of its bytes may be others afterwards."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            if rng.random() < 0.5:  # cells of their own types, as far as those of a column go together
                return write_native(path, rows)
        except (pyarrow.ArrowException, TypeError, OverflowError, ValueError):
            pass
        columns = sorted({name for row in rows for name in row})
        cells = {name: [None if name not in row else as_text(row[name]) for row in rows] for name in columns}
        pyarrow.parquet.write_table(pyarrow.table(cells), path)
    elif path.suffix == ".tsv":
        columns = sorted({name for row in rows for name in row})
        lines = [columns, *([as_text(row.get(name, "")) for name in columns] for row in rows)]
        path.write_text("\n".join("\t".join(line) for line in lines), errors="replace")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if rng.random() < 0.05:
        content = bytearray(path.read_bytes())
        for _ in range(20):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    return path


def write_native(path: Path, rows: list[dict[str, object]]) -> Path:
    """Columns as pyarrow types them; one whose cells do not go together is text."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, object] = {}
    for name in sorted({name for row in rows for name in row}):
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(cells)
        except (pyarrow.ArrowException, TypeError, OverflowError, ValueError):
            columns[name] = pyarrow.array([None if cell is None else as_text(cell) for cell in cells])
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def as_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    "files", [range(FAST), pytest.param(range(FAST, ALL), marks=pytest.mark.nightly)], ids=["fast", "all"]
)
def test_a_hostile_row_costs_one_row(tiny, tmp_path, files):
    require_extra("data", "pyarrow")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    processor, used, refused = tiny[1], 0, 0
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    openers = {
        "prompts": lambda path: PromptSet(path, processor, Mode.think, RolloutConfig(max_prompt_tokens=200), DataConfig(max_bad_rows=1000), DataFolders(tmp_path / "media")),
        "demonstrations": lambda path: Demonstrations(str(path), SftDataConfig(demonstrations=str(path), max_bad_rows=1000), processor, DataFolders(tmp_path / "media")),
        "documents": lambda path: Documents(PretrainDataConfig(path=str(path), max_bad_rows=1000), processor, DataFolders(tmp_path / "media")),
    }  # fmt: skip
    for number in files:
        rng = random.Random(number)
        rows = [hostile_row(rng, n) for n in range(ROWS_A_FILE)]
        path = write(tmp_path / f"f{number}{rng.choice(['.jsonl', '.tsv', '.parquet'])}", rows, rng)
        for name, opened in openers.items():
            begin = time.monotonic()
            try:
                source = opened(path)
                for index in range(len(source)):
                    source.length(index)
                    if name == "prompts":
                        source.task(index)  # pyright: ignore[reportAttributeAccessIssue]
                used += len(source)
                refused += ROWS_A_FILE - len(source)
            except ValueError as error:
                refused += ROWS_A_FILE
                assert str(error).isprintable(), (number, name)
            assert time.monotonic() - begin < SECONDS_A_ROW * ROWS_A_FILE, (number, name)
        path.unlink()
    assert used > 0 and refused > 0
    # KiB; torch and the model are among it, and what other tests of this process took at their peak
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < max(2 * 2**20, before + 2**18)
