"""Settings from Python: the name of a choice is the choice, and another name is refused, never passed over.

Code compares members of enums with `is`. A text in their place would take the branch of no member, without a word.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest

from conf.cli import load_config
from conf.schema import ENTRIES, GROUPS


def choices(config: type) -> dict[str, type[Enum]]:
    """Field -> its enum, of a class of settings; lists and optional ones included."""
    found = {}
    for name, hint in get_type_hints(config).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)]
        found |= dict.fromkeys([name], kinds[0]) if kinds else {}
    return found


def settings(required) -> Iterator[Any]:
    """One object of every class of settings that any entry point has."""
    seen = set()
    starts = [load_config(entry, required[entry])[0] for entry in ENTRIES]
    starts += [
        load_config(entry, [*required[entry], *([f"{group}={name}"] if name != "custom" else [])])[0]
        for entry, groups in GROUPS.items()
        for group, names in groups.items()
        for name in names
    ]
    while starts:
        one = starts.pop()
        starts += [getattr(one, f.name) for f in fields(one) if is_dataclass(getattr(one, f.name))]
        if type(one) not in seen:
            seen.add(type(one))
            yield one


def test_every_choice_is_taken_by_its_name_and_refused_by_another(required):
    tried = 0
    for one in settings(required):
        for name, kind in choices(type(one)).items():
            is_list = isinstance(getattr(one, name), list)
            given = {f.name: getattr(one, f.name) for f in fields(one)}
            member = given[name] if isinstance(given[name], kind) else next(iter(kind))
            again = type(one)(**{**given, name: [member.value] if is_list else member.value})
            assert getattr(again, name) == ([member] if is_list else member), (type(one), name)
            with pytest.raises(ValueError, match=rf"{name}: expected .*, found 'no such'"):
                type(one)(**{**given, name: ["no such"] if is_list else "no such"})
            tried += 1
    assert tried > 30
