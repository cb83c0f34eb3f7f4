"""Recipes: a shipped one by its name, or a YAML file of the user's, which an earlier run's config.yaml may be."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conf.texts import at_home


def key_of(override: str) -> str:
    """The dotted key of an override, without the marks before it."""
    return override.partition("=")[0].lstrip("+~")


def recipe_file(overrides: Sequence[str]) -> Path | None:
    """The recipe of a command line where it is a YAML file of the user's."""
    chosen = [override.partition("=")[2].strip("'\"") for override in overrides if key_of(override) == "recipe"]
    if not chosen or not chosen[-1].endswith((".yaml", ".yml")):
        return None
    return Path(at_home(chosen[-1], "recipe"))


@contextmanager
def own_recipe(overrides: Sequence[str], entry: str) -> Iterator[tuple[list[str], list[str], str]]:
    """(overrides, what makes Hydra find the recipe, its text) where a recipe is a user's YAML file:
    `recipe=my/recipe.yaml`."""
    path = recipe_file(overrides)
    if path is None:
        chosen = [override.partition("=")[2] for override in overrides if key_of(override) == "recipe"]
        named = [f"recipe={chosen[-1]}"] if len(chosen) > 1 else []
        yield [*(o for o in overrides if not named or key_of(o) != "recipe"), *named], [], ""
        return
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise OSError("a folder, a pipe or a device")
        text = path.read_text(encoding="utf-8")
        content = _parsed(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"recipe: expected a readable YAML file at {path}, found: {error}") from None
    kept = [override for override in overrides if key_of(override) != "recipe"]
    given = {key_of(override) for override in kept}
    groups, text = _groups_of_file(content, entry, given), _without_replaced(content, text, entry, given)
    with tempfile.TemporaryDirectory(prefix="sailvl2-recipe-") as scratch:
        folder = Path(scratch, "recipe")
        folder.mkdir()
        name = f"file_{re.sub(r'[^A-Za-z0-9]', '_', path.stem)}"  # no shipped recipe is called like that
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
        yield [*groups, *kept, f"recipe={name}"], [f"hydra.searchpath=[file://{scratch}]"], text


def _parsed(text: str) -> dict[str, object]:
    """The values of a recipe; `ValueError` for a text that is no YAML, or no mapping."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} instead of keys with values")
    return content or {}


def _groups_of_file(content: dict[str, object], entry: str, given: set[str]) -> list[str]:
    """The choices that an earlier run's config.yaml was made with: its sections name them."""
    from conf.schema import GROUPS

    groups = GROUPS.get(entry, {})
    names = _names_in(content, entry)
    if not all(isinstance(name, str) for name in names):  # a recipe, which leaves groups to the command line
        return []
    named = zip(groups.items(), names, strict=True)
    return [
        f"{group}={name if name in choices else 'custom'}" for (group, choices), name in named if group not in given
    ]


def _names_in(content: dict[str, object], entry: str) -> list[object]:
    """The name in each group's section, None where there is none."""
    from conf.schema import GROUPS

    sections = [content.get(group) for group in GROUPS.get(entry, {})]
    return [section.get("name") if isinstance(section, dict) else None for section in sections]


def _without_replaced(content: dict[str, object], text: str, entry: str, given: set[str]) -> str:
    """The text of a file without the sections of an earlier run whose group the command line chooses anew."""
    import yaml

    from conf.schema import GROUPS

    names = dict(zip(GROUPS.get(entry, {}), _names_in(content, entry), strict=True))
    replaced = {group for group, name in names.items() if name is not None and group in given}
    kept = {key: value for key, value in content.items() if key not in replaced}
    return yaml.safe_dump(kept, allow_unicode=True) if replaced else text


def recipe_line(overrides: Sequence[str]) -> str:
    """Which recipe runs, for the first line of a run."""
    chosen = [override.partition("=")[2] for override in overrides if key_of(override) == "recipe"]
    if chosen:
        return f"recipe: {chosen[-1]}"
    return "recipe: none; keys that are not given have the report's values, or neutral ones (--help shows them)"


def in_folder(override: str, folder: str) -> str:
    """Return `recipe=NAME` as the file of that name in FOLDER, or in FOLDER/recipe, where there is one."""
    key, _, name = override.partition("=")
    for file in (Path(folder, f"{name}.yaml"), Path(folder, "recipe", f"{name}.yaml")):
        if key == "recipe" and file.is_file():
            return f"recipe={file}"
    return override
