"""Text that comes from data or a model, as one harmless line on a terminal."""

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
