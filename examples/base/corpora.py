"""Writes samples in the layouts in which public corpora come: JSONL beside images, a WebDataset tar, FineVision."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from examples.base.sample import Sample
from model.run.failpoints import reach

ROWS_PER_GROUP = 512


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            reach("line")


def saved(folder: Path, name: str, samples: Iterable[Sample]) -> Iterator[tuple[str, Sample]]:
    """Save each sample's image as `folder/images/name/NUMBER.png`: (its name in the folder, the sample)."""
    (folder / "images" / name).mkdir(parents=True)
    for number, sample in enumerate(samples):
        path = f"images/{name}/{number:06}.png"
        sample.image.save(folder / path)
        yield path, sample


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """WebDataset: for each sample the members NUMBER.png and NUMBER.txt, its caption, one behind the other."""
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for suffix, content in (("png", png_of(sample.image)), ("txt", sample.caption.encode())):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            reach("line")


def write_finevision(path: Path, samples: Iterable[Sample]) -> None:
    """FineVision's columns: `images`, each with its bytes, and `texts`, turns of user and assistant about them."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("examples.base needs the package pyarrow: pip install 'sailvl2-rl[base]'") from None

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turn = pa.struct([("user", pa.string()), ("assistant", pa.string())])
    schema = pa.schema([("images", pa.list_(image)), ("texts", pa.list_(turn)), ("source", pa.string())])
    rows = [
        {
            "images": [{"bytes": png_of(sample.image), "path": None}],
            "texts": [{"user": question, "assistant": answer} for question, answer in sample.questions],
            "source": sample.family.name,
        }
        for sample in samples
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=ROWS_PER_GROUP)
    reach("line")


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
