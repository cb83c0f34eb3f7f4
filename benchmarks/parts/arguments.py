"""The words behind a benchmark's name on the command line."""

import sys


def arguments(documentation: str | None) -> list[str]:
    """Return them. With -h or --help print the module's documentation, which says what it takes, and end."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(documentation)
        raise SystemExit(0)
    return sys.argv[1:]
