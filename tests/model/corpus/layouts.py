"""Tiny files in the published layout of public data sets: their columns, their nesting, their file format."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def picture(number: int = 0, form: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 128)).save(buffer, form)
    return buffer.getvalue()


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: Sequence[Mapping[str, Any]], group: int = 1024) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def image_file(folder: Path, name: str = "a.png") -> str:
    (folder / name).write_bytes(picture())
    return name


def struct(number: int = 0) -> dict[str, Any]:
    """An image as `datasets` stores it."""
    return {"bytes": picture(number), "path": None}


def llava(folder: Path) -> Path:
    rows = [
        {
            "id": "0",
            "image": image_file(folder),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A square."},
                {"from": "human", "value": "Its colour?"},
                {"from": "gpt", "value": "Blue."},
            ],
        }
    ]
    path = folder / "annotations.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


def llava_parquet(folder: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
    return parquet(folder / "p.parquet", [{"id": "0", "image": struct(), "conversations": turns, "data_source": "x"}])


def cauldron(folder: Path) -> Path:
    texts = [{"user": "What?", "assistant": "A square.", "source": "x"}, {"user": "Colour?", "assistant": "Blue."}]
    return parquet(folder / "c.parquet", [{"images": [struct(), struct(1)], "texts": texts}])


def finevision(folder: Path) -> Path:
    row = {
        "images": [struct()],
        "texts": [{"user": "What?", "assistant": "A square."}],
        "source": "x",
        "relevance_ratings": [5],
    }
    return parquet(folder / "f.parquet", [row])


def idl(folder: Path) -> Path:
    page = {"pages": [{"text": ["Dear Sir,", "thank you."], "bbox": [[0, 0, 1, 1]] * 2}, {"text": ["Page two"]}]}
    pages = [Image.new("L", (20, 28), shade) for shade in (255, 200)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    members = [("d0.pdf", b"%PDF-1.4"), ("d0.tif", buffer.getvalue()), ("d0.json", json.dumps(page).encode())]
    return tar(folder / "idl-train-00000.tar", members)


def captions_tar(folder: Path) -> Path:
    members = []
    for number in range(3):
        about = json.dumps({"url": "x", "width": 16}).encode()
        parts = (("jpg", picture(number, "JPEG")), ("txt", b"A square."), ("json", about))
        members += [(f"{number:08}.{ending}", content) for ending, content in parts]
    return tar(folder / "00000.tar", members)


def answer_rows(**columns: Any) -> Callable[[Path], Path]:
    """A Parquet file with one row of these columns, and an image."""
    return lambda folder: parquet(folder / "q.parquet", [{"image": struct(), **columns}])


def text_rows(**columns: Any) -> Callable[[Path], Path]:
    return lambda folder: parquet(folder / "t.parquet", [columns])


def llava_video(folder: Path) -> Path:
    rows = [
        {
            "id": "0",
            "data_source": "x",
            "video": "clip.mp4",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat happens?"},
                {"from": "gpt", "value": "It moves."},
            ],
        }
    ]
    path = folder / "v.json"
    path.write_text(json.dumps(rows))
    return path


def mmpr(folder: Path) -> Path:
    row = {"image": image_file(folder), "question": "<image>\nWhat?", "chosen": "A square.", "rejected": "A circle."}
    return jsonl(folder / "m.jsonl", [row])


def messages(folder: Path) -> Path:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A square."}]
    return jsonl(folder / "d.jsonl", [{"image": [image_file(folder)], "messages": turns}])


SETS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], int]] = {
    "IDL-WDS": (idl, {"template": "Read the page."}, 1),
    "CC12M": (captions_tar, {"template": "Describe."}, 3),
    "PixMo-Cap": (lambda f: jsonl(f / "x.jsonl", [{"image": image_file(f), "caption": "A square."}]), {}, 1),
    "DocStruct": (messages, {}, 1),
    "DocVQA": (answer_rows(question="What?", answers=["A square.", "square"], docId=1), {}, 1),
    "Docmatix": (cauldron, {}, 1),
    "The Cauldron": (cauldron, {}, 1),
    "FineVision": (finevision, {}, 1),
    "ShareGPT4V": (llava, {}, 1),
    "MathV360K": (llava, {}, 1),
    "Cambrian": (llava, {}, 1),
    "MAmmoTH-VL": (llava, {}, 1),
    "LLaVA-CoT": (llava, {}, 1),
    "LLaVA-OneVision": (llava_parquet, {}, 1),
    "Infinity-MM": (llava, {}, 1),
    "MMPR": (mmpr, {}, 1),
    "VQAv2": (answer_rows(question="What?", multiple_choice_answer="square", answers=[{"answer": "no"}]), {}, 1),
    "OK-VQA": (answer_rows(question="What?", answers=["square"]), {}, 1),
    "ST-VQA": (answer_rows(question="What?", answers=["square"]), {}, 1),
    "GeoQA+": (answer_rows(subject="What?", answer="square"), {"question_column": "subject"}, 1),
    "OpenHermes-2.5": (
        lambda f: jsonl(
            f / "o.jsonl",
            [{"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "source": "x"}],
        ),
        {},
        1,
    ),
    "Magpie": (text_rows(instruction="2+2?", response="4"), {}, 1),
    "OpenMathInstruct-2": (text_rows(problem="2+2?", generated_solution="It is 4.", expected_answer="4"), {}, 1),
    "MathQA": (
        text_rows(Problem="2+2?", Rationale="4"),
        {"question_column": "Problem", "answer_column": "Rationale"},
        1,
    ),
    "LLaVA-Video": (llava_video, {}, 1),
}
"""Name of a public set -> (what writes a tiny file in its layout, settings of the source, its rows)."""
