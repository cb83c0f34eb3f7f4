"""The data of the rollout browser: columns to filter by, and blocks of texts and images that are parsed when shown."""

import json
import math
import re
from dataclasses import dataclass, field

from model.json_values import JsonObject
from rewards.data_rows import image_of
from rlhf.reporting.choice import Choice, prompt_of, record_of
from rlhf.reporting.figures import rounded
from rlhf.reporting.pictures import Pictures

BLOCK = 500
"""Rollouts of a block."""
IMAGE_BLOCK = 200
_HALF = re.compile("[\ud800-\udfff]")


class _Names:
    """Numbers the values of a column that repeat."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def __getitem__(self, value: str) -> int:
        return self.values.setdefault(value, len(self.values))


@dataclass
class Browser:
    """Blocks by their id, as JSON texts that may stand inside HTML, and what the page says about them."""

    blocks: dict[str, str] = field(default_factory=dict)
    num_shown: int = 0
    num_found: int = 0
    num_images: int = 0
    num_images_left_out: int = 0
    num_images_unreadable: int = 0


def browser_of(choice: Choice, longest_side: int, max_bytes: int) -> Browser:
    """The blocks of the chosen rollouts. Images take what the texts leave of `max_bytes`."""
    stages, verdicts, drops, modes, statuses = (_Names() for _ in range(5))
    columns: dict[str, list[object]] = {name: [] for name in _COLUMNS}
    prompts: dict[str, int] = {}
    table: list[list[object]] = []
    images_of: list[list[str]] = []
    stage_of = {source.file: source.stage for source in choice.sources}
    parts: dict[str, int] = {}
    found = Browser(num_shown=len(choice.places), num_found=choice.num_found)
    block: list[list[object]] = []
    size = 0

    def end_block() -> None:
        nonlocal block, size
        number = math.ceil(len(columns["step"]) / BLOCK) - 1
        found.blocks[f"rollouts-{number}"] = text = json_in_html(block)
        block, size = [], size + len(text)

    for entry in choice.entries():
        prompt = prompt_of(entry)
        key = json.dumps([prompt, str(entry.file.parent)])
        if key not in prompts:
            prompts[key] = len(prompts)
            table.append([prompt[name] for name in ("id", "q", "ref", "set")])
            images_of.append([image_of(name, entry.file) for name in prompt["img"]])
        values = (
            stages[stage_of[entry.file]],
            entry.step,
            entry.group,
            entry.sample,
            rounded(entry.reward),
            rounded(entry.advantage),
            verdicts[entry.verdict],
            drops[entry.dropped],
            modes[entry.mode],
            statuses[entry.status],
            prompts[key],
        )
        for name, value in zip(_COLUMNS, values, strict=True):
            columns[name].append(value)
        block.append(record_of(entry, parts))
        if len(block) == BLOCK:
            end_block()
    if block:
        end_block()
    pictures = Pictures(longest_side, max_bytes - size - 64 * len(columns["step"]))
    for row, paths in zip(table, images_of, strict=True):
        row.append([pictures.add(path) for path in paths])
    found.num_images = sum("src" in one for one in pictures.entries)
    found.num_images_left_out, found.num_images_unreadable = pictures.num_left_out, pictures.num_unreadable
    found.blocks["prompts"] = json_in_html(table)
    for number in range(0, len(pictures.entries), IMAGE_BLOCK):
        found.blocks[f"images-{number // IMAGE_BLOCK}"] = json_in_html(pictures.entries[number : number + IMAGE_BLOCK])
    names = {"stages": stages, "verdicts": verdicts, "drops": drops, "modes": modes, "statuses": statuses}
    index: JsonObject = {name: list(one.values) for name, one in names.items()}
    index |= {"parts": list(parts), "columns": columns, "block": BLOCK, "imageBlock": IMAGE_BLOCK}
    found.blocks["index"] = json_in_html(index)
    return found


_COLUMNS = ("stage", "step", "group", "sample", "reward", "advantage", "verdict", "drop", "mode", "status", "prompt")


def json_in_html(value: object) -> str:
    """JSON that can stand in a script element: no `<` in it ends the element or begins a comment, numbers that are not
    finite are null, and half of a surrogate pair is written as an escape."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return _HALF.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
