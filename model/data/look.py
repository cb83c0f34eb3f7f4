"""Look at corpora before they are trained on: `python -m model.data.look PATH... [--out sheet.png]`.

Prints rows, images, tokens, visual tokens, scripts of the text, and bad rows of every path, and writes a picture of
some of its rows. Indices are made as training makes them, so that training finds them.
"""

import argparse
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from model.checkpoint import flavour_processor, load_processor
from model.config import Flavour
from model.corpus.corpus import Corpus
from model.corpus.example import Example
from model.corpus.reading import example_at
from model.data.config import LoaderConfig, SourceConfig, TableConfig
from model.data.media import Picture, open_image
from model.data.media_cells import media_parts
from model.data.media_error import MediaError
from model.data.sources import DataFolders
from model.processing.processor import Processor
from model.run.ends import run_command
from model.run.printable import printable

_SAMPLED_ROWS = 500
_CELL, _TEXT_LINES, _COLUMNS = 220, 6, 6
_ANY_NUMBER_BAD = 1e15


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.data.look", description="Look at corpora.")
    parser.add_argument("paths", nargs="+", help="files, folders or patterns: .jsonl, .tar, .parquet, .tsv, `datasets`")
    parser.add_argument("--model", default="tiny", help="flavour whose tokenizer and way to cut images count (tiny)")
    parser.add_argument("--checkpoint", default="", help="folder of a model whose tokenizer counts, instead of --model")
    parser.add_argument("--template", default="", help="question for rows that have only images and a text")
    parser.add_argument("--media", default="", help="folder that images are named from, instead of the data file's")
    parser.add_argument("--index", default="", help="folder of the indices (default: .sailvl2_index beside each file)")
    parser.add_argument("--workers", type=int, default=2, help="processes that make an index (default 2)")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet.png"), help="picture of some rows")
    parser.add_argument("--samples", type=int, default=24, help="rows in the picture; 0 writes none (default 24)")
    args = parser.parse_args(arguments)
    if args.samples < 0 or args.workers < 0:
        parser.error("--samples, --workers: expected 0 or more")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 2 for what cannot be read."""
    args = parse(arguments)
    return run_command(lambda: _look(args))


def _look(args: argparse.Namespace) -> int:
    try:
        processor = _processor(args)
        shown: list[tuple[str, Example, str]] = []
        for path in args.paths:
            corpus = _open(path, args, processor)
            print("\n".join(printable(line) for line in summary(path, corpus)), flush=True)
            count = min(len(corpus), -(-args.samples // len(args.paths)))
            for number in range(count):
                row = number * len(corpus) // count
                shown.append((f"{path} row {corpus.place_of(row)[1]}", *example_at(corpus.task(row, True).address)))
        if shown:
            contact_sheet(shown).save(args.out)
            print(f"picture of {len(shown)} rows: {args.out}")
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def _processor(args: argparse.Namespace) -> Processor:
    if args.checkpoint:
        return load_processor(Path(args.checkpoint))
    known = [flavour.value for flavour in Flavour]
    if args.model not in known:
        raise ValueError(f"--model: expected one of {', '.join(known)}, found {args.model!r}")
    return flavour_processor(Flavour(args.model))


def _open(path: str, args: argparse.Namespace, processor: Processor) -> Corpus:
    """The rows of a path, however many are bad and however long they are."""
    return Corpus(
        "look",
        SourceConfig(paths=[path], template=args.template, media=args.media),
        "",
        TableConfig(max_bad_rows=_ANY_NUMBER_BAD),
        LoaderConfig(workers=args.workers, index=args.index),
        processor,
        DataFolders(),
        processor.config.language.max_position_embeddings,
        key="PATH",
    )


def summary(path: str, corpus: Corpus) -> list[str]:
    """Say in a few lines what a corpus holds."""
    totals = corpus.totals
    scripts = Counter[str]()
    count = min(len(corpus), _SAMPLED_ROWS)
    for number in range(count):
        example, _ = example_at(corpus.task(number * len(corpus) // count, True).address)
        scripts.update(scripts_of(text_of(example)))
    letters = sum(scripts.values())
    shares = ", ".join(f"{name} {found / letters:.0%}" for name, found in scripts.most_common(4)) or "no letters"
    mean = totals["tokens"] / totals["rows"]
    return [
        f"{path}:",
        f"  rows {totals['rows']:,}, bad rows {len(corpus.bad_rows):,}, images and videos {totals['images']:,}",
        f"  tokens {totals['tokens']:,} ({mean:.0f} a row), visual tokens {totals['visual']:,} "
        f"({totals['visual'] / totals['tokens']:.0%})",
        f"  languages by script, of {count} rows: {shares}",
        *(f"  {line}" for line in corpus.described()),
    ]


def scripts_of(text: str) -> Counter[str]:
    """Number of letters of each script, by the first word of their Unicode names (CJK is Chinese characters)."""
    return Counter(unicodedata.name(letter, "UNKNOWN").split(" ")[0] for letter in text if letter.isalpha())


def text_of(example: Example) -> str:
    """All text of an example, in order."""
    if example.messages is None:
        return "\n".join([example.prefix, *example.texts]).strip()
    lines = []
    for message in example.messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        said = " ".join(str(part.get("text", f"<{part.get('type')}>")) for part in parts if isinstance(part, dict))
        lines.append(f"{message['role']}: {said}")
    return "\n".join([*lines, *example.texts])


def contact_sheet(rows: Sequence[tuple[str, Example, str]]) -> Image.Image:
    """A picture of rows in a grid: name, first image, and the beginning of the text of each."""
    font = ImageFont.load_default(11)
    height = _CELL + 14 * (_TEXT_LINES + 1)
    lines = -(-len(rows) // _COLUMNS)
    sheet = Image.new("RGB", (_CELL * min(len(rows), _COLUMNS), height * lines), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, example, root) in enumerate(rows):
        left, top = number % _COLUMNS * _CELL, number // _COLUMNS * height
        picture = _first_image(example, root)
        if picture is not None:
            picture.thumbnail((_CELL - 8, _CELL - 8))
            sheet.paste(picture, (left + 4, top + 4))
        wrapped = [line for part in text_of(example).splitlines() for line in textwrap.wrap(part, 38) or [""]]
        below = [name[-38:], *wrapped[:_TEXT_LINES]]
        draw.multiline_text(
            (left + 4, top + _CELL), "\n".join(map(printable, below)), fill="black", font=font, spacing=1
        )
    return sheet


def _first_image(example: Example, root: str) -> Image.Image | None:
    """None for a row without an image, or whose first one cannot be decoded."""
    parts = media_parts(example.messages or [])
    sources = example.images or [part["image"] for part in parts if part.get("type") == "image"]
    try:
        for source in sources[:1]:
            return source.open() if isinstance(source, Picture) else open_image(Path(root), source)
    except MediaError as error:
        print(f"bad image: {printable(str(error))}", file=sys.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
