"""The texts of `--help` and `-h`: keys with the values that would run, their meaning, the choices of every group."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from conf.schema import GROUPS, MODULES

EXAMPLES: dict[str, str] = {
    "pretrain": "recipe=quickstart data.path=data/digits/pretrain.jsonl run.dir=runs/pretrain",
    "sft": "checkpoint=DIR data.demonstrations=FILE run.dir=runs/sft",
    "rlhf": "checkpoint=DIR prompts=FILE algorithm=dapo run.dir=runs/rl",
    "estimate": "recipe=verifiable_dapo model=sailvl2_8b engine=fsdp gpus=8 gpu=h100_80",
    "evaluate": "checkpoint=DIR prompts=FILE output=result.json",
    "pass_at_k": "checkpoint=DIR prompts=FILE out=FOLDER",
    "generate": "checkpoint=DIR prompts=FILE out=completions.jsonl",
    "pipeline": "recipe=quickstart run.dir=runs/quickstart",
    "report": "run=runs/quickstart out=report.html",
    "convert": "geometry3k source=FOLDER out=DIR",
    "describe": "model=sailvl2_2b",
    "assemble": "vision=DIR language=DIR out=DIR",
    "export": "checkpoint=runs/rl/final out=DIR dtype=bfloat16",
    "export_run": "run=runs/quickstart out=DIR dtype=bfloat16",
    "serve": "checkpoint=DIR mode=think",
    "soup": "checkpoints=[A,B,C] out=DIR",
    "prepare_longcot": "rows=[FILE,FILE] out=FOLDER",
    "prepare_fusion": "rollouts=runs/rl/rollouts prompts=[FILE] direct=[FILE] out=FOLDER",
    "prepare_free_response": "prompts=[FILE] out=FOLDER",
    "probe": "checkpoints=[BEFORE,AFTER] data=FILE output=probe.json",
    "expert_load": "checkpoint=DIR text=FILE multimodal=FILE output=load.json",
    "chat": "checkpoint=DIR image=FILE question='What is this?'",
}
"""Entry point -> the arguments of a typical command."""

_SHORT = """
    dataset source max_bad_rows
    checkpoint prompts output out model vision language mode modes image question base dtype device engine.device
    data.path data.demonstrations data.prompts data.rollouts
    data.question_column data.reference_column data.image_column
    gpu gpus nodes visual_share table
    max_steps epochs batch_size num_prompts num_samples reward.verifier reward.functions
    rollouts.max_prompt_tokens rollouts.max_completion_tokens algorithm.group_size trainer.max_steps
    trainer.groups_per_step optimizer.learning_rate evaluation.prompts evaluation.every
    run.dir run.seed run.start run.save_every run.trackers report.every
    run also max_mib
    rows rollouts direct direct_share judge verifier
"""
"""Keys of the short form."""

_INDENT = "      "


def help_text(
    entry: str, schema: type, choices: Mapping[str, Sequence[str]], values: Any = None, is_short: bool = False
) -> str:
    """Every key, or in the short form the most used ones, with its type, value and documentation.

    `choices`: those of every group. `values`: a composed config, whose values are shown instead of the defaults.
    """
    from omegaconf import OmegaConf

    module = MODULES[entry]
    lines = [f"usage: python -m {module} [KEY=VALUE ...] [-h | --help] [--cfg job] [--version]"]
    lines += [f"  e.g. python -m {module} {EXAMPLES[entry]}", ""]
    lines += [f"  {group}={'|'.join(names)}" for group, names in choices.items()]
    chosen: dict[str, type] = {}
    shown: dict[str, object] = {}
    if values is not None:
        chosen = {group: OmegaConf.get_type(values, group) or schema for group in GROUPS.get(entry, {})}
        shown = dict(_leaves(OmegaConf.to_container(values, resolve=False), ""))
    about = "" if values is None else " with the values that this command line would run"
    lines += ["", f"keys{about}{' (the most used ones; --help lists all)' if is_short else ''}:"]
    described = [f"  {line}" for line in describe(schema, "", chosen=chosen, values=shown)]
    lines += list(_only_short(described)) if is_short else described
    if values is None and not is_short:
        lines += _other_choices(entry, lines)
    if entry == "pipeline":
        lines += ["", "  stages.NAME.KEY=VALUE passes an override to a stage, e.g. stages.rl.algorithm.group_size=4"]
        lines += ["  docs/pipeline.md describes the fields of a stage"]
    return "\n".join(lines)


def describe(
    schema: type,
    prefix: str,
    section: Any = None,
    chosen: Mapping[str, type] | None = None,
    values: Mapping[str, object] | None = None,
) -> Iterator[str]:
    """Yield `key: type = value` and the field's own docstring, indented; the keys of sections follow.

    `section`: an instance whose values are the defaults, where they are not the schema's own. `chosen`: the schema of
    a group's choice. `values`: what runs, by dotted key; a value that is not the default stands beside it.
    """
    hints = get_type_hints(schema)
    documentation = field_documentation(schema)
    defaults = _defaults(schema) if section is None else vars(section)
    for f in fields(schema):
        key, default = f"{prefix}{f.name}", defaults[f.name]
        if is_dataclass(default):
            other = (chosen or {}).get(key, type(default))
            yield from describe(other, f"{key}.", default if other is type(default) else None, chosen, values)
            continue
        shown = _written(default)
        if values and key in values and _plain(values[key]) != _plain(default):
            shown = f"{_written(values[key])} (default {_written(default)})"
        yield f"{key}: {_type_name(hints[f.name])} = {shown}"
        text = " ".join(documentation.get(f.name, "").split())
        yield from textwrap.wrap(text, 100, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _other_choices(entry: str, general: Sequence[str]) -> Iterator[str]:
    """Yield those keys of each choice of a group, with their documentation, whose lines are not among the general."""
    for group, variants in GROUPS.get(entry, {}).items():
        for name, variant in variants.items():
            lines = list(_unless_among(general, variant, f"{group}."))
            if lines:
                yield from ("", f"keys that {group}={name} adds or sets otherwise:", *lines)


def _unless_among(general: Sequence[str], variant: type, prefix: str) -> Iterator[str]:
    is_new = False
    for line in describe(variant, prefix):
        if not line.startswith(" "):
            is_new = f"  {line}" not in general and not line.startswith(f"{prefix}name: ")
        if is_new:
            yield f"  {line}"


def _only_short(lines: Sequence[str]) -> Iterator[str]:
    names, is_short = _SHORT.split(), False
    for line in lines:
        if not line.startswith(f"  {_INDENT}"):
            is_short = line.strip().partition(":")[0] in names
        if is_short:
            yield line


def _leaves(values: Any, prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")


def _written(value: object) -> str:
    """The value as it is written in an override: null, true, false."""
    plain = _plain(value)
    return json.dumps(plain) if plain is None or isinstance(plain, bool) else repr(plain)


def _plain(value: object) -> object:
    """The value without enums."""
    if isinstance(value, Enum):
        return value.value
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _type_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " | ".join("null" if one is NoneType else _type_name(one) for one in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    if get_args(kind):
        inner = ", ".join(_type_name(one) for one in get_args(kind))
        return f"{getattr(kind, '__name__', str(kind))}[{inner}]"
    return getattr(kind, "__name__", str(kind))


def _defaults(schema: type) -> dict[str, Any]:
    """Default values of a dataclass without constructing it (required ones would be refused)."""
    values: dict[str, Any] = {}
    for f in fields(schema):  # pyright: ignore
        values[f.name] = f.default if f.default_factory is MISSING else f.default_factory()
    return values


def field_documentation(schema: type) -> dict[str, str]:
    """The string literal behind each field, base classes included."""
    documentation: dict[str, str] = {}
    for cls in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                documentation[statement.target.id] = str(following.value.value)
    return documentation
