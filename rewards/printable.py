"""Text that comes from a model, from data or from a user's function, as one harmless line on a terminal."""

_LONGEST = 1000


def printable(text: str) -> str:
    """One line without control characters, cut to a readable length.

    `model.run.printable` is its twin: this room imports nothing of the others.
    """
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_LONGEST])
    return clean if len(text) <= _LONGEST else f"{clean}... ({len(text)} characters)"
