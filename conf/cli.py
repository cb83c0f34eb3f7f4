"""The one wrapper around Hydra: `KEY=VALUE` overrides in, a checked dataclass out, clear errors in between.

Nothing here or in the config modules imports torch, so a bad command line fails before the heavy start-up.
"""

import ast
import difflib
import importlib.util
import inspect
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from conf.texts import at_home, expand_home, take_texts, texts_in_yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "sft", "rewards", "rollouts", "rlhf", "conf")
USER_ERROR = 2
_EXTRAS = {
    "hf": ("transformers", "tokenizers"),
    "video": ("av",),
    "data": ("pyarrow",),
    "trl": ("trl", "accelerate", "datasets"),
    "ray": ("ray",),
    "vllm": ("vllm",),
}
"""Extra of our distribution -> the packages that come with it."""

Config = TypeVar("Config")


class UsageError(ValueError):
    """A command line or config file that cannot be used; the message says what to do."""


def launch(entry: str, schema: type[Config], run: Callable[[Config, str], None]) -> int:
    """Parse the command line of an entry point and run it; returns the exit code.

    0: done. 2: the user's input was refused, with one message. A `RuntimeError` with an `exit_code` (docs/pipeline.md
    lists them; a failed stage's own) ends with it and its message; others raise.
    """
    try:
        from model.run.ends import run_command
    except ImportError:  # a file of the user's may be called model.py
        try:
            check_packages()
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR
        raise

    return run_command(lambda: _launch(entry, schema, run, sys.argv[1:]))


def _launch(entry: str, schema: type[Config], run: Callable[[Config, str], None], arguments: Sequence[str]) -> int:
    from model.run.printable import message

    # Read when torch loads its thread pool: idle threads spin for microseconds, then sleep. Long spinning slows a busy
    # machine down many times over, and none at all slows a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        if "--help" in arguments or "-h" in arguments:
            print(help_text(entry, schema))
            return 0
        overrides, show = _split_arguments(arguments)
        config, resolved = load_config(entry, overrides)
        if show:
            print(_without_passwords(resolved), end="")
            return 0
        if "recipe" in _groups(entry):
            print(_recipe_line(overrides), flush=True)
        run(config, resolved)
    except ValueError as error:
        print(f"error: {_without_passwords(message(error))}", file=sys.stderr)
        return USER_ERROR
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in PACKAGES:
            raise
        print(f"error: {_missing(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"interrupted at once; what was written is whole{_after_interrupt(schema)}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None:
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return exit_code
    return 0


def _after_interrupt(schema: type) -> str:
    has_run = any(field.name == "run" for field in fields(schema))
    return ": the same command goes on from the newest checkpoint, or begins anew without one" if has_run else ""


def _without_passwords(text: str) -> str:
    """Mask what stands before the @ of an address."""
    return re.sub(r"(://)[^/\s'\"]*@", r"\1***@", text)


def _missing(error: ModuleNotFoundError) -> str:
    """Name the package that is not installed, and how it is had, in one line."""
    if not str(error).startswith("No module named"):
        return str(error)
    extra = next((extra for extra, packages in _EXTRAS.items() if (error.name or "").partition(".")[0] in packages), "")
    remedy = f"pip install 'sailvl2-rl[{extra}]'" if extra else "install the package that it belongs to"
    return f"expected the Python module {error.name!r}, found none; {remedy}"


def load_config(entry: str, overrides: Sequence[str]) -> tuple[Any, str]:
    """(typed config, its resolved YAML) of an entry point. `UsageError` with the nearest key for a typo."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from conf.schema import register

    register()
    plain, stage_overrides = _take_stage_overrides(entry, overrides)
    GlobalHydra.instance().clear()
    try:
        with (
            _own_recipe(plain) as (plain, search, own),
            initialize_config_dir(str(ROOT / "conf" / entry), version_base="1.3"),
        ):
            groups = [_check_choice(o, entry, bool(search)) for o in plain if _key(o) in _groups(entry)]
            known = compose("config", [*groups, *search])
            assert isinstance(known, DictConfig)
            checked = [_check_key(override, known, entry, bool(search)) for override in plain]
            overrides, texts = take_texts(checked, known)
            composed = compose("config", [*overrides, *search])
            for key, value in {**texts_in_yaml(own, known), **texts}.items():
                OmegaConf.update(composed, key, value, force_add=_is_free_mapping(known, key) or _is_open(known, key))
            if stage_overrides:
                _add_stage_overrides(composed, stage_overrides)
            config: Any = OmegaConf.to_object(composed)
            expand_home(config)
            _check_names(config, entry)
            return config, OmegaConf.to_yaml(OmegaConf.structured(config))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UsageError(_explain(error, entry)) from None


def entry_of(module: str, where: str, entries: Sequence[str]) -> str:
    """The one of these entry points that is `python -m MODULE`. `UsageError` at `where` names them."""
    from conf.schema import MODULES

    found = {MODULES[entry]: entry for entry in entries}
    if module not in found:
        close = difflib.get_close_matches(module, found, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"{where}: expected one of {', '.join(found)}, found {module!r}{hint}")
    return found[module]


def command_of(entry: str) -> str:
    """The module of an entry point, as behind `python -m`."""
    from conf.schema import MODULES

    return MODULES[entry]


def assign(key: str, value: object) -> str:
    """`key=value` as an override, quoted so that any text survives Hydra's grammar: spaces, commas, brackets."""
    if isinstance(value, list):
        return f"{key}=[{','.join(_quoted(item) for item in value)}]"
    return f"{key}={_quoted(value)}"


def _quoted(value: object) -> str:
    # Hydra takes a backslash for itself unless a quote follows; then every backslash before it needs another.
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), str(value))
    return f"'{text}'"


def check_packages() -> None:
    """Refuse to run when a file in the working directory hides one of our packages."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != ROOT / name / "__init__.py":
            where = origin or (list(spec.submodule_search_locations or []) if spec else "nowhere")
            raise UsageError(
                f"package {name!r}: expected {ROOT / name}, found {where}, which hides it; "
                "rename that file or folder, or start from another directory"
            )


def help_text(entry: str, schema: type) -> str:
    """Every key with its type, default and documentation, and the choices of every group."""
    from conf.schema import GROUPS, MODULES

    lines = [f"usage: python -m {MODULES[entry]} [KEY=VALUE ...] [--cfg job] [--help]", ""]
    for group, choices in _groups(entry).items():
        lines.append(f"  {group}={'|'.join(choices)}")
    lines += ["", "keys:"]
    lines += [f"  {line}" for line in _describe(schema, "")]
    for group, choices in GROUPS.get(entry, {}).items():
        general = list(lines)
        for name, variant in choices.items():
            lines += ["", f"keys that {group}={name} adds or sets otherwise:"]
            lines += [f"  {line}" for line in _describe_otherwise(variant, f"{group}.", general)]
    if entry == "pipeline":
        lines += ["", "  stages.NAME.KEY=VALUE passes an override to a stage, e.g. stages.rl.algorithm.group_size=4"]
        lines += ["  docs/pipeline.md describes the fields of a stage"]
    return "\n".join(lines)


def _split_arguments(arguments: Sequence[str]) -> tuple[list[str], bool]:
    overrides, show = [], False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--cfg", "-c"):
            if next(rest, None) != "job":
                raise UsageError("--cfg: expected 'job'")
            show = True
        elif argument.startswith("-") or "=" not in argument:
            raise UsageError(f"{argument!r}: expected KEY=VALUE, --cfg job or --help")
        else:
            overrides.append(argument)
    return overrides, show


def _take_stage_overrides(entry: str, overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split `stages.NAME.KEY=VALUE` off a pipeline's overrides; the stage's own entry point checks them."""
    plain: list[str] = []
    by_stage: dict[str, list[str]] = {}
    for override in overrides:
        match = re.match(r"stages\.([\w-]+)\.(.+)", override) if entry == "pipeline" else None
        if match is None:
            plain.append(override)
        else:
            by_stage.setdefault(match[1], []).append(match[2])
    return plain, by_stage


def _add_stage_overrides(pipeline: Any, by_stage: Mapping[str, list[str]]) -> None:
    """Append them to what the recipe's stages say themselves."""
    from omegaconf import OmegaConf

    stages = {str(stage.get("name")): stage for stage in pipeline.stages}
    for name, extra in by_stage.items():
        if name not in stages:
            raise UsageError(f"stages.{name}.{extra[0]}: no stage {name!r}; {_nearest(name, list(stages))}")
        own = [*(stages[name].get("overrides") or []), *extra]
        OmegaConf.update(stages[name], "overrides", own, force_add=True)


@contextmanager
def _own_recipe(overrides: Sequence[str]) -> Iterator[tuple[list[str], list[str], str]]:
    """(overrides, what makes Hydra find the recipe, its text) where a recipe is a user's YAML file:
    `recipe=my/recipe.yaml`."""
    chosen = [override.partition("=")[2] for override in overrides if _key(override) == "recipe"]
    if not chosen or not chosen[-1].strip("'\"").endswith((".yaml", ".yml")):
        named = [f"recipe={chosen[-1]}"] if len(chosen) > 1 else []
        yield [*(o for o in overrides if not named or _key(o) != "recipe"), *named], [], ""
        return
    path = Path(at_home(chosen[-1].strip("'\""), "recipe"))
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise OSError("a folder, a pipe or a device")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe: expected a readable YAML file at {path}, found: {error}") from None
    with tempfile.TemporaryDirectory(prefix="sailvl2-recipe-") as scratch:
        folder = Path(scratch, "recipe")
        folder.mkdir()
        name = f"file_{re.sub(r'[^A-Za-z0-9]', '_', path.stem)}"  # no shipped recipe is called like that
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
        kept = [override for override in overrides if _key(override) != "recipe"]
        yield [*kept, f"recipe={name}"], [f"hydra.searchpath=[file://{scratch}]"], text


def _recipe_line(overrides: Sequence[str]) -> str:
    """Which recipe runs, for the first line of a run."""
    chosen = [override.partition("=")[2] for override in overrides if _key(override) == "recipe"]
    if chosen:
        return f"recipe: {chosen[-1]}"
    return "recipe: none; keys that are not given have the report's values, or neutral ones (--help shows them)"


def _groups(entry: str) -> dict[str, list[str]]:
    """Config groups of an entry point and their choices."""
    from conf.schema import GROUPS

    choices = {group: sorted(schemas) for group, schemas in GROUPS.get(entry, {}).items()}
    recipes = ROOT / "conf" / entry / "recipe"
    return {**choices, **({"recipe": sorted(p.stem for p in recipes.glob("*.yaml"))} if recipes.is_dir() else {})}


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _check_choice(override: str, entry: str, has_own_recipe: bool) -> str:
    key, choice = _key(override), override.partition("=")[2]
    choices = _groups(entry)[key]
    _refuse_deletion(override)
    if choice not in choices and not (key == "recipe" and has_own_recipe):
        raise UsageError(f"{key}: no choice {choice!r}; {_nearest(choice, choices)}")
    return f"{key}={choice}"


def _refuse_deletion(override: str) -> None:
    if override.startswith("~"):
        raise UsageError(f"{override!r}: deleting keys is not supported; set the value you want")


def _check_key(override: str, known: Any, entry: str, has_own_recipe: bool) -> str:
    """The override without a needless `+`. `UsageError` for a key that the schema does not have."""
    key = _key(override)
    if key in _groups(entry):
        return _check_choice(override, entry, has_own_recipe)
    _refuse_deletion(override)
    keys = list(_flatten(known, ""))
    if key in keys:
        _refuse_name(key, override.partition("=")[2], known, entry)
        return f"{'++' if _is_free_mapping(known, key) else ''}{override.lstrip('+')}"
    if _is_open(known, key):
        return f"++{override.lstrip('+')}"
    raise UsageError(f"{key}: no such key; {_nearest(key, [*keys, *_groups(entry)])}")


def _refuse_name(key: str, name: str, known: Any, entry: str) -> None:
    """`UsageError` for `GROUP.name`, which chooses nothing: the group does."""
    from omegaconf import OmegaConf

    from conf.schema import GROUPS, NAMED

    group, _, field = key.rpartition(".")
    choices = GROUPS.get(entry, {}).get(group)
    if choices is None or field != "name" or OmegaConf.get_type(known, group) in NAMED:
        return
    raise UsageError(f"{key}: chooses nothing by itself; set {group}={'|'.join(choices)} instead, found {name!r}")


def _check_names(config: Any, entry: str) -> None:
    """`UsageError` where a file gives a section the name of another choice than the group's."""
    from conf.schema import GROUPS, NAMED

    for group, choices in GROUPS.get(entry, {}).items():
        section = getattr(config, group)
        chosen = next((name for name, schema in choices.items() if schema is type(section)), None)
        if type(section) not in NAMED and chosen is not None and section.name != chosen:
            raise UsageError(
                f"{group}.name: chooses nothing by itself; set {group}={'|'.join(choices)} instead, found "
                f"{section.name!r} with {group}={chosen}"
            )


def _is_open(known: Any, key: str) -> bool:
    """Tell whether a key lies in a mapping that takes any keys."""
    keys = set(_flatten(known, ""))
    parents = [key[:end] for end, letter in enumerate(key) if letter == "."]
    return any(parent in keys and _is_free_mapping(known, parent) for parent in parents)


def _flatten(node: Any, prefix: str) -> Iterator[str]:
    from omegaconf import DictConfig

    for key in node:
        name = f"{prefix}{key}"
        yield name
        if isinstance(node[key], DictConfig):
            yield from _flatten(node[key], f"{name}.")


def _is_free_mapping(known: Any, key: str) -> bool:
    from omegaconf import OmegaConf

    node = OmegaConf.select(known, key)
    return OmegaConf.is_dict(node) and OmegaConf.get_type(node) is dict


def _nearest(word: str, known: Sequence[str]) -> str:
    """A suggestion: the nearest full key, or the nearest last part."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        by_tail = {key.rpartition(".")[2]: key for key in known}
        close = [by_tail[t] for t in difflib.get_close_matches(word.rpartition(".")[2], list(by_tail), n=1, cutoff=0.6)]
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(sorted({key.partition('.')[0] for key in known}))}; --help lists all"


def _explain(error: Exception, entry: str) -> str:
    """Hydra's error in one line: the YAML file if it stands in one, the key, what is wrong, the nearest key."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text, _, details = str(cause).partition("full_key:")
    key = details.partition("\n")[0].strip() or getattr(error, "full_key", None) or ""
    text = " ".join(text.split())
    if override := getattr(error, "override", None):
        return f"{override!r}: {text.partition(' See ')[0]}; quote a value with special characters: KEY='\"VALUE\"'"
    file = ""
    if match := re.match(r"In '([^']+)': (?:\w+ raised while composing config: )?", text):
        text = text[match.end() :]
        places = [Path("conf", entry, f"{match[1]}.yaml"), Path("conf", f"{match[1]}.yaml")]
        file = f"{next((place for place in places if (ROOT / place).exists()), match[1])}: "
    if match := re.match(r"Key '([^']+)' (?:is not in struct|not in )", text):
        from conf.schema import ENTRIES

        key = key or match[1]
        known = [line.split("=")[0].split(":")[0] for line in _describe(ENTRIES[entry], "") if line[:1].isalpha()]
        return f"{file}{key}: no such key; {_nearest(key, known)}"
    return f"{file}{key}: {text}" if key and key not in text else f"{file}{text}"


def _describe(schema: type, prefix: str, section: Any = None) -> Iterator[str]:
    """`key: type = default` and the field's own docstring, indented; nested sections follow their parent's name.

    `section`: an instance whose values are the defaults, where they are not the schema's own.
    """
    hints = get_type_hints(schema)
    documentation = _field_documentation(schema)
    defaults = _defaults(schema) if section is None else vars(section)
    for f in fields(schema):
        kind: Any = hints[f.name]
        default = defaults[f.name]
        if is_dataclass(default):
            yield from _describe(type(default), f"{prefix}{f.name}.", default)
            continue
        shown = default.value if isinstance(default, Enum) else default
        choices = [member.value for member in type(default)] if isinstance(default, Enum) else []
        name = "|".join(choices) or getattr(kind, "__name__", str(kind))
        yield f"{prefix}{f.name}: {name} = {shown!r}"
        indent = "      "
        yield from textwrap.wrap(documentation.get(f.name, ""), 100, initial_indent=indent, subsequent_indent=indent)


def _describe_otherwise(variant: type, prefix: str, general: Sequence[str]) -> Iterator[str]:
    """Those keys of a choice, each with its documentation, whose line is not among the general ones."""
    shown = False
    for line in _describe(variant, prefix):
        if not line.startswith(" "):
            shown = f"  {line}" not in general
        if shown:
            yield line


def _defaults(schema: type) -> dict[str, Any]:
    """Default values of a dataclass without constructing it (required ones would be refused)."""
    values: dict[str, Any] = {}
    for f in fields(schema):  # pyright: ignore
        values[f.name] = f.default if f.default_factory is MISSING else f.default_factory()
    return values


def _field_documentation(schema: type) -> dict[str, str]:
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


# On import, which precedes that of an entry point's own package: a hidden one would end it in a bare traceback.
try:
    check_packages()
except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(USER_ERROR) from None
