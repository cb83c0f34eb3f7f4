"""Commands that measure: `python -m benchmarks.NAME`; `--help` behind any of them prints what it measures and takes."""

import ast
import sys
from pathlib import Path


def _help() -> None:
    """Print the documentation of the command that was started with --help, and end."""
    name = next((word for word in sys.orig_argv if word.startswith("benchmarks.")), "")
    file = Path(__file__).with_name(f"{name.rpartition('.')[2]}.py")
    if name and file.is_file() and {"-h", "--help"} & {*sys.orig_argv}:
        print(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))))
        raise SystemExit(0)


_help()
