"""Read the completions of a run or an evaluation in the terminal: `python -m rlhf.look RUN_OR_FILE`.

Shows rollouts that training stored, answers of `rlhf.evaluate`, and files of `rollouts.generate` and `rewards.score`.
Where output is no terminal, with --plain, and without the extra `look`, pages are printed.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from model.run.ends import run_command
from rlhf.look.entries import Filters, entries, files_of
from rlhf.look.pages import as_text, page

_MEANINGS = {
    "step": "step of training",
    "group": "number of a group (`draw` in the file)",
    "verdict": "right, wrong, unscorable or unjudged",
    "dropped": "reason for which a group did not train, such as all_wrong",
    "mode": "think, think_sampled, direct or auto of an evaluation; training for rollouts",
    "dataset": "data set of an evaluation's prompt",
    "text": "part of the question, completion, answer, reference or id",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlhf.look", description="Read completions in the terminal.")
    parser.add_argument("path", type=Path, help="folder of a run or pipeline, or a file of completions")
    for one in fields(Filters):
        parser.add_argument(f"--{one.name}", default="", help=_MEANINGS[one.name])
    parser.add_argument("--plain", action="store_true", help="print a page and end")
    parser.add_argument("--page", type=int, default=1, help="page to print, from 1 (default 1)")
    parser.add_argument("--size", type=int, default=10, help="entries of a page (default 10)")
    args = parser.parse_args(arguments)
    if args.page < 1 or args.size < 1:
        parser.error("--page, --size: expected at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 2 for what cannot be read."""
    args = parse(arguments)
    return run_command(lambda: _look(args))


def _look(args: argparse.Namespace) -> int:
    filters = Filters(**{one.name: getattr(args, one.name) for one in fields(Filters)})
    try:
        files = files_of(args.path.expanduser())
        is_terminal = sys.stdout.isatty() and sys.stdin.isatty()
        if is_terminal and not args.plain and importlib.util.find_spec("textual"):
            next(entries(files), None)  # a file that is none is refused before the screen is taken
            from rlhf.look.app import LookApp

            return LookApp(files, filters).run() or 0
        found, more = page(entries(files, filters), args.page, args.size)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_text(found, args.page, args.size, more), flush=True)
    if is_terminal and not args.plain:
        print("with the extra `look` this is an application: pip install 'sailvl2-rl[look]'", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
