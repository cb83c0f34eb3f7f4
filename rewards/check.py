"""Test a reward before a run trusts it: `python -m rewards.check my_rewards.py:fn --data sample.jsonl`.

The reward is called as a run would call it (in a process of its own, with a deadline), on the completions of the data
and on probes that deserve nothing. Exit code 0: the reward keeps its contract, is deterministic and pays no probe;
1: it does not; 2: wrong usage.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.run.durable import OUT_OF_SPACE
from model.run.ends import run_command
from model.run.failpoints import reach
from model.run.printable import printable
from rewards.answers import AnswerRule, extract, parse_completion
from rewards.config import NO_VERIFIER, RewardConfig, WeightCheck
from rewards.data_rows import DataRow, mode_of_row, opened_rows
from rewards.probes import probes
from rewards.result import RewardInput, RewardResult, Status
from rewards.rubric import Rubric

_SLOW_SHARE = 0.5  # a completion that takes more than this share of the deadline is reported


class Checker:
    """Scores inputs with a single reward."""

    def __init__(self, args: argparse.Namespace) -> None:
        settings: dict[str, Any] = {
            "answer_rules": args.extract,
            "timeout_seconds": args.timeout,
            "num_workers": args.workers,
            "max_unscorable_share": 1.0,
            "weight_check": WeightCheck.free,
        }
        from rewards.verifiers.registry import VERIFIERS

        if args.reward in VERIFIERS:
            settings |= {"verifier": args.reward, "answer_weight": 1.0, "format_weight": 0.0}
            self.name = "answer"
            options = {args.reward: args.options}
        else:
            self.name = args.reward.rpartition(":")[2]
            settings |= {
                "functions": [args.reward],
                "function_weights": [1.0],
                "verifier": NO_VERIFIER,
            }
            options = {self.name: args.options}
        settings["options"] = options if args.options else {}
        self.rubric = Rubric(RewardConfig(**settings))

    def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
        """Return one result per input. Its value is this reward's own part; other parts do not count."""
        return [
            result
            if result.status is Status.unscorable and result.reason.startswith(f"{self.name}:")
            else RewardResult(result.parts.get(self.name), result.parts)
            for result in self.rubric.score(inputs)
        ]


def as_input(row: DataRow, completion: str, number: int, rules: Sequence[AnswerRule]) -> RewardInput:
    known = {"id", "messages", "reference", "completion", "images", "finish_reason"}
    return RewardInput(
        prompt_id=str(row.get("id", number)),
        messages=row.get("messages") or [{"role": "user", "content": str(row.get("prompt", ""))}],
        images=[str(image) for image in row.get("images") or []],
        reference=row["reference"],
        completion=completion,
        thinking=parse_completion(completion).thinking,
        answer=extract(completion, rules),
        # No tokenizer is at hand: one id per four characters stands for the length.
        token_ids=list(range(-(-len(completion) // 4))),
        finish_reason=str(row.get("finish_reason", "stop")),
        meta={key: value for key, value in row.items() if key not in known},
        mode=mode_of_row(row),
    )


def honest(row: DataRow) -> str:
    """Return the row's own completion, or a well-formed right one."""
    completion = row.get("completion")
    if completion is None:
        return f"<think>It follows from the question.</think>\\boxed{{{row['reference']}}}"
    return str(completion)


def check(args: argparse.Namespace, console: Console) -> list[str]:
    """List everything that is wrong with the reward, in words, and print what was seen."""
    rules = args.extract
    checker = Checker(args)
    with opened_rows(Path(args.data).expanduser(), args.rows) as rows, checker.rubric as rubric:
        reach("read")
        rubric.check_functions()
        inputs = [as_input(row, honest(row), number, rules) for number, row in enumerate(rows)]
        reach("contract")
        problems = _check_contract(checker, inputs, args.timeout, console)
        reach("probes")
        attacks = [
            (family, as_input(row, text, number, rules))
            for number, row in enumerate(rows[: args.probe_rows])
            for family, text in probes(str(row["reference"]), row)
        ]
        # Each on its own: a function that sees a whole batch must not see which of its members are probes.
        alone = [replace(item, prompt_id=f"{item.prompt_id}/{i}") for i, (_, item) in enumerate(attacks)]
        results = checker.score(alone)
        problems += _report_probes(attacks, results, args.threshold, console)
    return problems


def _check_contract(checker: Checker, inputs: Sequence[RewardInput], timeout: float, console: Console) -> list[str]:
    problems = []
    first = checker.score(inputs)
    failed = [(i, result) for i, result in enumerate(first) if result.status is Status.unscorable]
    if failed:
        index, result = failed[0]
        problems.append(f"contract: {len(failed)} of {len(inputs)} rows are unscorable; row {index}: {result.reason}")
    again = list(reversed(checker.score(list(reversed(inputs)))))
    changed = [i for i, (a, b) in enumerate(zip(first, again, strict=True)) if a.value != b.value]
    if changed:
        index = changed[0]
        problems.append(
            f"determinism: {len(changed)} of {len(inputs)} rows got another value in reversed order; row {index}: "
            f"{first[index].value}, then {again[index].value}"
        )
    seconds = []
    for item in inputs[:20]:
        start = time.perf_counter()
        checker.score([item])
        seconds.append(time.perf_counter() - start)
    slowest = max(seconds)
    values = [result.value for result in first if result.value is not None]
    spread = f"{min(values):.3g} to {max(values):.3g}" if values else "-"
    console.print(
        f"{len(inputs)} rows: values {spread}, "
        f"{sum(value is None for value in (r.value for r in first)) - len(failed)} not applicable, "
        f"{len(failed)} unscorable; {statistics.median(seconds) * 1000:.1f} ms a completion, slowest "
        f"{slowest * 1000:.1f} ms"
    )
    if slowest > _SLOW_SHARE * timeout:
        problems.append(f"speed: a completion took {slowest:.2f} s, more than half of the deadline of {timeout:g} s")
    return problems


def _report_probes(
    attacks: Sequence[tuple[str, RewardInput]],
    results: Sequence[RewardResult],
    threshold: float,
    console: Console,
) -> list[str]:
    table = Table("probe", "tried", "paid", "unscorable", "largest value")
    problems = []
    for family in dict.fromkeys(family for family, _ in attacks):
        own = [(item, result) for (f, item), result in zip(attacks, results, strict=True) if f == family]
        paid = [(item, result) for item, result in own if (result.value or 0.0) > threshold]
        unscorable = sum(result.status is Status.unscorable for _, result in own)
        top = max((result.value for _, result in own if result.value is not None), default=None)
        table.add_row(family, str(len(own)), str(len(paid)), str(unscorable), "-" if top is None else f"{top:.3g}")
        if paid:
            item, result = max(paid, key=lambda pair: pair[1].value or 0.0)
            problems.append(
                f"probe {family!r} earned {result.value:.3g}: {item.completion[:120]!r} (reference {item.reference!r})"
            )
    console.print(table)
    return problems


def _option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _rules(text: str) -> list[AnswerRule]:
    try:
        return [AnswerRule(rule.strip()) for rule in text.split(",")]
    except ValueError:
        known = ", ".join(rule.value for rule in AnswerRule)
        raise argparse.ArgumentTypeError(f"expected names among {known}, found {text!r}") from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rewards.check", description="Test a reward before a run trusts it."
    )
    parser.add_argument("reward", help="FILE.py:NAME, package.module:NAME, an entry point, or a verifier's name")
    parser.add_argument(
        "--data",
        required=True,
        help="rows with `reference`, and `completion` or a question with its images (JSONL, Parquet, TSV, datasets "
        "folder), or rollouts that a run stored",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as one JSON object, and nothing else")
    parser.add_argument("--rows", type=int, default=200, help="rows to read (default 200)")
    parser.add_argument("--probe-rows", type=int, default=5, help="rows that probes are made from (default 5)")
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="a probe above this value earned reward (default 0)"
    )
    parser.add_argument("--timeout", type=float, default=5.0, help="deadline of one call in seconds (default 5)")
    parser.add_argument("--workers", type=int, default=1, help="scorer processes (default 1)")
    known = ",".join(rule.value for rule in AnswerRule)
    parser.add_argument(
        "--extract", type=_rules, default="boxed", metavar="RULES", help=f"tried in order, among {known}"
    )
    parser.add_argument("--options", type=_option, nargs="*", default=[], help="KEY=VALUE settings of the reward")
    args = parser.parse_args(arguments)
    args.options = dict(args.options)
    if args.rows < 1 or args.probe_rows < 1:
        parser.error("--rows, --probe-rows: expected at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: _check(parse(arguments)))


def _check(args: argparse.Namespace) -> int:
    console = Console(quiet=args.json)
    try:
        problems = check(args, console)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"reward": args.reward, "problems": problems}))
    else:
        print("\n".join(f"FOUND {printable(problem, 1000)}" for problem in problems) or "nothing found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
