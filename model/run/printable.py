"""Text that comes from data or a model, as one harmless line on a terminal."""

import re
from collections.abc import Collection

_MOST_NAMES = 5
_LONGEST_NAME = 80
_LONGEST_LINE = 2000


def printable(text: str, limit: int = 400) -> str:
    """One line without control characters, cut to `limit` characters: such text may hold escape sequences of terminals,
    line breaks that forge a line of ours, and half of a surrogate pair, which no terminal takes."""
    shown = text if len(text) <= limit else text[:limit]
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
    return clean if len(text) <= limit else f"{clean}... ({len(text)} characters)"


def printable_text(text: str) -> str:
    """Text of several lines without control characters, line breaks and tabs apart."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def names(ids: Collection[str]) -> str:
    """Some ids of a data set: the first few in order, and how many more there are."""
    chosen = sorted(ids)[:_MOST_NAMES]
    more = f" and {len(ids) - len(chosen)} more" if len(ids) > len(chosen) else ""
    return ", ".join(printable(name, _LONGEST_NAME) for name in chosen) + more


def message(error: BaseException) -> str:
    """The text of an error, line by line, without control characters and with lines of a readable length."""
    return "\n".join(printable(line, _LONGEST_LINE) for line in str(error).split("\n"))


def without_passwords(text: str) -> str:
    """Mask what stands before the @ of an address."""
    return re.sub(r"(://)[^/\s'\"]*@", r"\1***@", text)


def override(key: str, value: object) -> str:
    """`key=value` on a command line of ours, quoted so that any text survives Hydra's grammar: spaces, commas,
    brackets."""
    if isinstance(value, list):
        return f"{key}=[{','.join(_quoted(item) for item in value)}]"
    return f"{key}={_quoted(value)}"


def _quoted(value: object) -> str:
    # Hydra takes a backslash for itself unless a quote follows; then every backslash before it needs another.
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), str(value))
    return f"'{text}'"
