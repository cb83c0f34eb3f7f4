"""Score a file of completions: `python -m rewards.score --verifier math --input in.jsonl --output out.jsonl`.

Every input row gives one output line, in order: the input's fields and `value` (null where unscorable or not
applicable), `status` (ok | unscorable), `answer` (the one that was extracted), `reason`, `seconds`. Where the input has
a field of such a name, ours gets `scored_` in front. A run that was killed goes on where its output ends. Settings
stand beside the output in `<output>.settings.json`.
"""

import argparse
import fcntl
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from model.run.durable import OUT_OF_SPACE, OutOfSpace, write_file
from model.run.ends import run_command
from model.run.failpoints import reach
from model.run.printable import printable
from rewards.answers import AnswerRule, extract
from rewards.data_rows import DataRow, completion_of, mode_of_row, numbered_rows
from rewards.result import Claim, Outcome, Status
from rewards.sandbox.pool import ScoringPool
from rewards.scoring import Scorer
from rewards.verifiers.registry import VERIFIERS, check_options

ADDED = ("value", "status", "answer", "reason", "seconds")
NOTHING_SCORED = 3
_CHUNK = 256
_LINE = re.compile(r"^line \d+: ")
_NO_REFERENCE = ("format", "overlong", "repetition", "language")


@dataclass(frozen=True)
class Settings:
    """The settings that the verdicts of an output depend on; they stand beside the output as JSON."""

    verifier: str
    options: dict[str, float | str]
    extract: list[str]
    timeout: float
    fields: list[str]  # the names of `ADDED` in this output


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when all lines are judged (unscorable ones too), 1: files failed, 2: bad arguments, 3: no line could be
    scored, 5: SIGTERM, 6: no space left, 130: interrupted."""
    return run_command(lambda: _score(arguments))


def _score(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        args.input, args.output = args.input.expanduser(), args.output.expanduser()
        settings = _settings(args)
        done = _prepare_output(args.input, args.output, settings)
        for field, name in zip(ADDED, settings.fields, strict=True):
            if name != field:
                print(f"rewards.score: the input's own {field!r} is kept; ours is {name!r}", file=sys.stderr)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: `~` of a user that is not there
        if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
            raise
        print(f"rewards.score: {error}", file=sys.stderr)
        return 2
    try:
        return _run(args, settings, done)
    except KeyboardInterrupt:
        print(f"rewards.score: interrupted; {_goes_on(args)}", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"rewards.score: {error}; {_goes_on(args)}", file=sys.stderr)
        return OutOfSpace.exit_code if error.errno in OUT_OF_SPACE else 1


def _goes_on(args: argparse.Namespace) -> str:
    return f"the same command goes on after {args.output}'s last line"


def read_rows(source: Path) -> Iterator[tuple[int, DataRow, str]]:
    """Yield (number, fields, fault) of every input row; a fault names the row and says what is wrong with it."""
    for number, row, fault in numbered_rows(source):
        if not fault and not isinstance(completion_of(row), str):
            kind = type(completion_of(row)).__name__
            fault = f"line {number}: expected the text field 'completion', found {kind}"
        yield number, row, fault


def _settings(args: argparse.Namespace) -> Settings:
    options = {}
    for pair in args.options:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--options: expected KEY=VALUE, found {pair!r}")
        if key in options:
            raise ValueError(f"--options: expected each key once, found {key!r} twice")
        options[key] = _option_value(value)
    names = [name.strip() for name in args.extract.split(",")]
    known = [rule.value for rule in AnswerRule]
    for name in names:
        if name not in known:
            raise ValueError(f"--extract: expected names among {', '.join(known)}, found {name!r}")
    if args.workers < 1 or not 0 < args.timeout < math.inf:
        raise ValueError("--workers, --timeout: expected at least one worker and a positive number of seconds")
    options = check_options(args.verifier, options)
    if not args.input.exists():
        raise ValueError(f"--input: expected a file, found none at {args.input}")
    return Settings(args.verifier, options, names, args.timeout, _field_names(args.input))


def _field_names(source: Path) -> list[str]:
    """Return the names of `ADDED` in the output: none of them is a field of the input."""
    taken = {key for _, row, fault in numbered_rows(source) if not fault for key in row}
    names: list[str] = []
    for name in ADDED:
        while name in taken:
            name = f"scored_{name}"
        names.append(name)
    return names


def _option_value(text: str) -> float | str:
    try:
        return float(text) if any(mark in text for mark in ".eE") else int(text)
    except ValueError:
        return text


def _prepare_output(source: Path, output: Path, settings: Settings) -> int:
    """Make the output ready; the number of lines that are already judged. `ValueError` when it belongs to another input
    or other settings."""
    if not output.parent.is_dir():
        raise ValueError(f"--output: expected an existing directory, found none at {output.parent}")
    if output.exists() and output.samefile(source):
        raise ValueError("--output: expected another file than --input")
    beside = output.with_name(output.name + ".settings.json")
    mend = f"name another output, or remove {output} and {beside.name} to start afresh"
    if not output.exists():
        write_file(beside, json.dumps(asdict(settings)).encode())
        output.touch()
        return 0
    if not beside.exists():
        raise ValueError(f"--output: {output} exists and was not written by this command; {mend}")
    try:
        found = json.loads(beside.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--output: expected a JSON object in {beside}, found something else; {mend}")
    if found != asdict(settings):
        differing = ", ".join(key for key, value in asdict(settings).items() if found.get(key) != value)
        raise ValueError(f"--output: {output} was written with other settings ({differing}); {mend}")
    _drop_torn_line(output)
    return _compare_lines(source, output, settings.fields, mend)


def _drop_torn_line(output: Path) -> None:
    with output.open("rb+") as file:
        end = file.seek(0, 2)
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                file.truncate(begin + newline + 1)
                return
            end = begin
        file.truncate(0)


def _compare_lines(source: Path, output: Path, added: Sequence[str], mend: str) -> int:
    done = 0
    inputs = read_rows(source)
    with output.open("rb") as outputs:
        for done, line in enumerate(outputs, 1):
            _, fields, _ = next(inputs, (0, None, ""))
            if fields is None or _own_fields(_parsed(line), added) != fields:
                raise ValueError(
                    f"--output: line {done} of {output} does not come from line {done} of {source}; {mend}"
                )
    return done


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _own_fields(row: object, added: Sequence[str]) -> DataRow | None:
    return {key: value for key, value in row.items() if key not in added} if isinstance(row, dict) else None


def _run(args: argparse.Namespace, settings: Settings, done: int) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(1 for _ in numbered_rows(args.input))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    counts, reasons = {"ok": 0, "unscorable": 0}, Counter[str]()
    with (
        args.output.open("ab") as outputs,
        ScoringPool(args.workers, args.timeout) as pool,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        try:
            fcntl.flock(outputs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"rewards.score: --output: {args.output} is being written by another run", file=sys.stderr)
            return 2
        bar = progress.add_task(args.verifier, total=total, completed=done)
        numbered = islice(read_rows(args.input), done, None)
        scorer = Scorer(pool)
        while chunk := list(islice(numbered, _CHUNK)):
            reach("judge")
            for line in _judge(chunk, settings, scorer):
                counts[str(line[settings.fields[1]])] += 1
                reasons[_LINE.sub("", str(line[settings.fields[3]]))[:200]] += 1
                outputs.write(_encode(line))
                reach("line")
            outputs.flush()
            reach("judged")
            progress.update(bar, advance=len(chunk))
    print(f"judged {sum(counts.values())} lines: {counts['ok']} ok, {counts['unscorable']} unscorable", file=sys.stderr)
    if not counts["unscorable"]:
        return 0
    del reasons[""]
    reason, count = reasons.most_common(1)[0]
    print(f"unscorable most often ({count} of {counts['unscorable']}): {printable(reason)}", file=sys.stderr)
    if counts["ok"]:
        return 0
    print("rewards.score: no line could be scored; mend the input or name another --verifier", file=sys.stderr)
    return NOTHING_SCORED


def _judge(chunk: Sequence[tuple[int, DataRow, str]], settings: Settings, scorer: Scorer) -> Iterator[DataRow]:
    rules = [AnswerRule(name) for name in settings.extract]
    rows = [(row, fault or _missing(number, row, settings.verifier)) for number, row, fault in chunk]
    claims = [_claim(row, rules) for row, fault in rows if not fault]
    outcomes = iter(scorer.score(settings.verifier, claims, settings.options))
    judged = iter(claims)
    for row, fault in rows:
        outcome = Outcome(None, Status.unscorable, fault) if fault else next(outcomes)
        answer = None if fault else next(judged).answer
        added = (outcome.value, outcome.status.value, answer, outcome.reason, round(outcome.seconds, 6))
        yield row | dict(zip(settings.fields, added, strict=True))


def _missing(number: int, row: DataRow, verifier: str) -> str:
    if verifier not in _NO_REFERENCE and "reference" not in row:
        return f"line {number}: verifier {verifier!r} needs the field 'reference'"
    tokens = row.get("num_tokens")
    if verifier == "overlong" and (isinstance(tokens, bool) or not isinstance(tokens, int)):
        return f"line {number}: verifier 'overlong' needs the whole number 'num_tokens'"
    return ""


def _claim(row: DataRow, rules: Sequence[AnswerRule]) -> Claim:
    columns = {key: value for key, value in row.items() if key not in ("completion", "text", "reference")}
    tokens, finish = row.get("num_tokens"), row.get("finish_reason")
    completion = str(completion_of(row))
    return Claim(
        completion,
        extract(completion, rules),
        row.get("reference", ""),
        columns,
        tokens if isinstance(tokens, int) else 0,
        finish if isinstance(finish, str) else "stop",
        mode_of_row(row),
    )


def _encode(line: DataRow) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair can only be written escaped
        return json.dumps(line).encode() + b"\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rewards.score", description="Score a file of completions with a verifier.")
    parser.add_argument("--verifier", required=True, help=", ".join(VERIFIERS))
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        help="JSONL, Parquet, TSV or datasets folder, an output of rollouts.generate, or a run's rollouts/step_*.jsonl",
    )
    parser.add_argument("--output", required=True, type=Path, help="JSONL to write; continued if it exists")
    parser.add_argument("--workers", type=int, default=2, help="scorer processes")
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds a line may take; past them it is unscorable"
    )
    rules = ",".join(rule.value for rule in AnswerRule)
    parser.add_argument("--extract", default="boxed", metavar="RULES", help=f"tried in order, among {rules}")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="options of the verifier")
    return parser


if __name__ == "__main__":
    sys.exit(main())
