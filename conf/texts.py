"""Settings that are texts: what was typed arrives as it was typed, and `~` at the start of a path is the home folder.

Hydra's grammar reads `1_000` as a number and `null` as nothing, whatever the setting is. So overrides of texts, and of
lists and mappings with texts in them, do not go through that grammar: the schema says where a text stands.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""
_HOME = re.compile(r"~[^/]*(?=/|$)")
_FLOAT = re.compile(r"[-+]?\d[\d_]*[eE][-+]?\d+")  # PyYAML takes these for texts, OmegaConf's own reader for numbers
_FREE = frozenset({"question"})
"""Settings that a model reads, where `~` is a tilde."""

Hint = Any  # a type hint, as `typing` gives it


def take_texts(overrides: Sequence[str], known: Any) -> tuple[list[str], dict[str, object]]:
    """(overrides that Hydra reads, value by key of those that hold texts). `known`: a composed config of the schema."""
    others: list[str] = []
    texts: dict[str, object] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        hint = _hint(known, key.lstrip("+"))
        if _holds_text(hint) and _is_written(text, hint):
            texts[key.lstrip("+")] = _value(override, text, hint)
        elif hint == list[str] and _is_single(text):
            texts[key.lstrip("+")] = [_value(override, text, str)]
        else:
            others.append(override)
    return others, texts


def texts_in_yaml(text: str, known: Any) -> dict[str, object]:
    """Value by key of the texts in a YAML file that YAML takes for a number or a truth value: as they are written."""
    import yaml

    found: dict[str, object] = {}
    pending = [("", yaml.compose(text, Loader=yaml.SafeLoader))]
    while pending:
        prefix, node = pending.pop()
        if not isinstance(node, yaml.MappingNode):
            continue
        for name, value in node.value:
            key = f"{prefix}{name.value}"
            hint = _hint(known, key)
            if isinstance(value, yaml.MappingNode):
                pending.append((f"{key}.", value))
            elif hint is str and _is_plain(value):
                found[key] = value.value
            elif hint == list[str] and isinstance(value, yaml.SequenceNode) and any(map(_is_plain, value.value)):
                found[key] = [one.value for one in value.value]
    return found


def _is_plain(node: Any) -> bool:
    """Tell whether an unquoted word is read as something else than a text. Nothing (null) stays nothing."""
    kind = node.tag.rpartition(":")[2]
    return kind in ("int", "float", "bool") or (kind == "str" and not node.style and bool(_FLOAT.fullmatch(node.value)))


def expand_home(config: Any, prefix: str = "") -> None:
    """Make `~` at the start of a text the home folder, in place. `ValueError` names a user that is not there."""
    for f in fields(config):
        key, value = f"{prefix}{f.name}", getattr(config, f.name)
        if is_dataclass(value):
            expand_home(value, f"{key}.")
        elif key not in _FREE:
            setattr(config, f.name, _expanded(value, key))


def at_home(path: str, key: str) -> str:
    """Return the path with `~` or `~USER` at its start replaced. `ValueError` where there is no such user."""
    match = _HOME.match(path)
    if match is None:
        return path
    found = os.path.expanduser(path)
    if found == path:
        raise ValueError(
            f"{key}: expected the home folder of a user, found {match[0]!r}, whom this machine does not know; write "
            f"./{match[0]} for a folder of that name"
        )
    return found


def _expanded(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return at_home(value, key)
    if isinstance(value, list):
        return [_expanded(one, key) for one in value]
    if isinstance(value, dict):
        return {name: _expanded(one, f"{key}.{name}") for name, one in value.items()}
    return value


def _hint(known: Any, key: str) -> Hint:
    """Return the type that the schema gives a key; `Any` inside what it leaves open."""
    from omegaconf import OmegaConf

    node, hint = known, OmegaConf.get_type(known)
    for name in key.split("."):
        if is_dataclass(hint):
            hint = get_type_hints(hint).get(name, Any)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return Any
        if is_dataclass(hint):
            node = node[name]
            hint = OmegaConf.get_type(node)  # a section of a group's choice has the type of that choice
    return hint


def _holds_text(hint: Hint) -> bool:
    if is_dataclass(hint):
        return any(map(_holds_text, get_type_hints(hint).values()))
    return hint is str or get_origin(hint) is dict or any(map(_holds_text, get_args(hint)))


def _is_written(text: str, hint: Hint) -> bool:
    """Tell whether the text has the form of this type. Hydra's own message says what is wrong with any other."""
    if hint is str:
        return True
    if get_origin(hint) is list:
        return _is_enclosed(text, "[]")
    return (is_dataclass(hint) or get_origin(hint) is dict) and _is_enclosed(text, "{}")


def _is_single(text: str) -> bool:
    """Tell whether the text is one item of a list, which needs no brackets."""
    return text.strip()[:1] not in ("", *_OPENING) and text != "null" and len(list(_split(text, ","))) == 1


def _is_enclosed(text: str, brackets: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] + text[-1] == brackets and len(list(_split(text, ","))) == 1


def _value(override: str, text: str, hint: Hint) -> object:
    """Return the value of a text that has the form of its type. Hydra reads what is no text, and what is quoted."""
    if get_origin(hint) in (Union, UnionType):
        return _read(override, text)
    if hint is str and not text.strip().startswith(tuple(_QUOTES)):
        return text
    if not _holds_text(hint) or hint is str or not _is_written(text, hint):
        return _read(override, text)
    inside = text.strip()[1:-1]
    items = [item.strip() for item in _split(inside, ",")] if inside.strip() else []
    if get_origin(hint) is list:
        return [_value(override, item, get_args(hint)[0]) for item in items]
    pairs = [(key.strip(), value.strip()) for key, _, value in (item.partition(":") for item in items)]
    hints = get_type_hints(hint) if is_dataclass(hint) else {key: get_args(hint)[1] for key, _ in pairs}
    return {key: _value(override, value, hints.get(key, Any)) for key, value in pairs}


def _read(override: str, text: str) -> object:
    """Return what Hydra's grammar makes of a text. Its errors show the whole override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    key = override.partition("=")[0]
    try:
        return OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException as error:
        raise OverrideParseException(override, str(error)) from None


def _split(text: str, mark: str) -> Iterator[str]:
    """Yield the pieces between marks that stand outside brackets and quotes. A quote begins where a piece does."""
    begin, depth, quote, is_start = 0, 0, "", True
    for position, letter in enumerate(text):
        if quote:
            before = text[:position]
            is_escaped = (len(before) - len(before.rstrip("\\"))) % 2 == 1
            quote = "" if letter == quote and not is_escaped else quote
        elif letter in _QUOTES and is_start:
            quote = letter
        elif letter in _OPENING or letter in _CLOSING:
            depth += 1 if letter in _OPENING else -1
        elif letter == mark and depth == 0:
            yield text[begin:position]
            begin = position + 1
        is_start = letter in f" {_OPENING}{mark}:" if not quote else False
    yield text[begin:]
