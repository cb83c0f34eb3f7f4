"""The model card of an exported folder: README.md in Markdown, with the metadata that the Hugging Face hub reads."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.json_values import JsonObject
from rlhf.export.figures import Figure
from rlhf.export.lineage import Lineage, Source, Stage

CARD, LINEAGE = "README.md", "lineage.json"
_UNKNOWN = "not known"
_SHORT = 12  # letters of a checksum that a table shows
_LONGEST = 120


@dataclass(frozen=True)
class Folder:
    """The facts of the folder itself."""

    name: str
    facts: JsonObject  # as `model.describe` counts them
    towers: str  # the kinds of the vision tower and of the decoder
    context: int  # tokens
    dtype: str
    generation: JsonObject  # content of generation_config.json
    max_completion_tokens: int  # limit of `generate` where none is given, if the context leaves so many
    checks: Sequence[str]  # sentences that say what was compared


def card(folder: Folder, lineage: Lineage) -> str:
    """The text of README.md."""
    parts = [_HEAD, f"# {_text(folder.name)}", _about(folder, lineage), _usage(folder)]
    parts += ["## Measured", *_measured(folder, lineage), "## Lineage", *_lineage(lineage)]
    parts += ["## Checked", "\n".join(f"- {_text(one, 1000)}" for one in folder.checks), "## Not known", _NOT_KNOWN]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_HEAD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [sailvl2, vision-language, reasoning]
---"""

_NOT_KNOWN = """The toolkit that wrote this card does not know

- the licence of the weights, which depends on the first model of the lineage and on the data;
- what the first model was trained on;
- what the data hold, beyond their checksums;
- for which uses and languages the model is good.

Whoever publishes the folder adds that here."""


def _about(folder: Folder, lineage: Lineage) -> str:
    stages = [stage.name for stage in lineage.stages]
    made = f"It was made by {_listed(stages)}." if stages else f"How it was made is {_UNKNOWN}: {_text(lineage.note)}."
    size = f"{folder.facts['total_parameters']:,} stored parameters ({folder.towers})"
    return (
        f"A SAIL-VL2 vision-language model of {size}, written in {folder.dtype} by sailvl2-rl. "
        f"It answers directly, or thinks first when it is asked to. {made} "
        f"Prompt and answer together may have {folder.context:,} tokens."
    )


def _usage(folder: Folder) -> str:
    drawn = folder.generation
    default = (
        f"draws tokens at temperature {drawn['temperature']:g} (top_p {drawn['top_p']:g})"
        if drawn.get("do_sample")
        else "takes the most likely token each time"
    )
    return f"""## Use

With `pip install 'sailvl2-rl[hf]'`, DIR being this folder:

```python
import model.hf
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("DIR")
policy = AutoModelForImageTextToText.from_pretrained("DIR")
parts = [{{"type": "image", "image": "photo.png"}}, {{"type": "text", "text": "How many birds are there?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": parts}}],
    tokenize=True,
    add_generation_prompt=True,
    return_tensors="pt",
    thinking=True,
)
print(processor.batch_decode(policy.generate(**inputs)[:, inputs["input_ids"].shape[1] :])[0])
```

`thinking=False` asks for the answer alone. `generate` needs no further argument: `generation_config.json` says where
a turn ends and which tokens are never written. By default it {default}, up to {folder.max_completion_tokens:,} tokens
or what the context leaves. `pipeline("image-text-to-text", model="DIR")` and
`python -m model.chat checkpoint=DIR image=photo.png` answer too, and `python -m rlhf.serve checkpoint=DIR` serves the
folder through vLLM."""


def _measured(folder: Folder, lineage: Lineage) -> list[str]:
    rows = [(stage.name, figure) for stage in lineage.stages for figure in stage.figures]
    rows += [(lineage.model, figure) for figure in lineage.figures]
    if not rows:
        return ["Nothing is known: no result of `rlhf.evaluate` was found or named."]
    heads = ("model after", "measure", "mode", "figure", "95 % interval", "prompts", "format", "obeys the mode")
    table = _table((*heads, "tokens", "protocol"), [_row(name, figure) for name, figure in rows])
    notes = ["Figures are of 100. The protocol stands for all that decides a figure beside the weights."]
    if lineage.figures:
        files = _listed(sorted({f"`{_code(figure.file)}`" for figure in lineage.figures}), is_text=False)
        notes.append(
            f"Those of {files} were named when the folder was written; the files do not say of which weights they are."
        )
    if folder.dtype != lineage.dtype:
        notes.append(f"They were measured with weights in {lineage.dtype}; those of this folder are in {folder.dtype}.")
    return [table, " ".join(notes)]


def _row(name: str, one: Figure) -> list[str]:
    interval = _UNKNOWN if one.low is None or one.high is None else f"{one.low:.1f} - {one.high:.1f}"
    shares = [_UNKNOWN if share is None else f"{share:.1%}" for share in (one.format_rate, one.mode_obedience)]
    return [
        _text(name),
        _text(one.measure),
        _text(one.mode),
        _UNKNOWN if one.value is None else f"{one.value:.1f}",
        interval,
        _or_unknown(one.num_prompts),
        *shares,
        _UNKNOWN if one.mean_length is None else f"{one.mean_length:.1f}",
        _UNKNOWN if one.protocol is None else f"`{_code(one.protocol)}`",
    ]


def _lineage(lineage: Lineage) -> list[str]:
    said = f"Exported from `{_code(lineage.model)}`, sha256 `{lineage.sha256}`."
    said += f" `{LINEAGE}` holds all of this for programs, with every setting."
    if not lineage.stages:
        return [said, f"The stages are {_UNKNOWN}: {_text(lineage.note)}."]
    heads = ("stage", "command", "recipe", "began with", "steps", "seconds", "seed", "code")
    table = _table(heads, [_stage_row(stage) for stage in lineage.stages])
    inputs = [
        [_text(stage.name), f"`{_code(key)}`", f"`{_code(one.name)}`", f"`{_code(one.sha256 or _UNKNOWN)}`"]
        for stage in lineage.stages
        for key, one in stage.inputs.items()
    ]
    parts = [said, table]
    if lineage.note:
        parts.append(f"Note: {_text(lineage.note, 300)}.")
    parts.append(_table(("stage", "input", "file", "sha256"), inputs) if inputs else f"The data are {_UNKNOWN}.")
    return parts


def _stage_row(stage: Stage) -> list[str]:
    recipe = _UNKNOWN if stage.recipe is None else f"`{_code(stage.recipe)}`" if stage.recipe else "none"
    if stage.overrides:
        recipe += " with " + ", ".join(f"`{_code(one)}`" for one in stage.overrides)
    start = "random weights" if stage.is_from_nothing else _source(stage.start)
    return [
        _text(stage.name),
        _UNKNOWN if stage.command is None else f"`{_code(stage.command)}`",
        recipe,
        start,
        _or_unknown(stage.steps),
        _UNKNOWN if stage.seconds is None else f"{stage.seconds:.0f}",
        _or_unknown(stage.seed),
        _source(stage.code),
    ]


def _source(one: Source | None) -> str:
    if one is None:
        return _UNKNOWN
    digest = f" `{_code(one.sha256[:_SHORT])}`" if one.sha256 else ""
    return f"{_text(one.name)}{digest}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _or_unknown(value: object) -> str:
    return _UNKNOWN if value is None else _text(str(value))


def _listed(names: Sequence[str], is_text: bool = True) -> str:
    shown = [_text(name) if is_text else name for name in names]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]


def _text(text: str, longest: int = _LONGEST) -> str:
    """Text that names something, as Markdown that shows it: no part of it is HTML, a link or a cell's end."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:longest])
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|~" else letter for letter in plain)
    return html.escape(escaped, quote=False)


def _code(text: str) -> str:
    """Text for a span of code, which ends at a backtick, within a table, whose cells end at a bar."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST])
    return plain.replace("`", "'").replace("|", "\\|")
