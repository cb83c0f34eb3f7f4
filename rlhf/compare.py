"""Compare evaluations on the same questions: `python -m rlhf.compare A.json B.json ... [--out FOLDER]`.

Each is a result that `rlhf.evaluate` wrote with its answers; the first one is what the others are compared with.
Results of different protocols are refused, unless `--other-protocols` asks for it. With --out the table is kept as
Markdown and CSV, and the differences and the frontier of accuracy against tokens as a plot.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.run.durable import write_file
from model.run.ends import run_command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.compare", description="Compare evaluations on the same questions."
    )
    parser.add_argument("results", type=Path, nargs="+", help="results of rlhf.evaluate; the first is compared with")
    parser.add_argument("--out", type=Path, help="folder for comparison.md, comparison.csv and comparison.png")
    parser.add_argument("--names", default="", help="names of the results in the table, with commas between them")
    parser.add_argument(
        "--other-protocols", action="store_true", help="compare results of different protocols, and name both ids"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 2 for what cannot be compared."""
    args = parse(arguments)
    return run_command(lambda: _compare(args))


def _compare(args: argparse.Namespace) -> int:
    from rlhf.evaluation.comparison import as_csv, as_markdown, as_text, check_protocols, compare, plot, read_evaluation

    try:
        names = _names(args.results, args.names)
        if len(args.results) < 2:
            raise ValueError(f"expected two results or more, found {args.results[0]} alone")
        evaluations = [read_evaluation(path, name) for path, name in zip(args.results, names, strict=True)]
        if not args.other_protocols:
            check_protocols(evaluations)
        rows = compare(evaluations)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            write_file(args.out / "comparison.md", as_markdown(rows).encode())
            write_file(args.out / "comparison.csv", as_csv(rows).encode())
            write_file(args.out / "comparison.png", plot(evaluations, rows))
    except (ValueError, FileExistsError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(as_text(rows)))
    for one in evaluations:
        if one.num_unjudged:
            print(f"{one.name}: {one.num_unjudged} answers could not be judged and count neither as right nor as wrong")
    if args.out:
        print(f"kept: {args.out}/comparison.md, .csv and .png")
    return 0


def _names(paths: Sequence[Path], given: str) -> list[str]:
    """A name for each result: those given, else the shortest ends of their paths that tell them apart."""
    if given:
        names = given.split(",")
        if len(names) != len(paths) or len(set(names)) < len(names):
            raise ValueError(f"--names: expected {len(paths)} different names, found {given!r}")
        return names
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"expected different results, found one twice: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    sys.exit(main())
