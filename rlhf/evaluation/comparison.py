"""Two evaluations or more compared on the same questions: paired differences, a frontier of accuracy against tokens."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.json_values import JsonObject, parse_json, read_json_object
from rlhf.evaluation.estimates import Difference, paired_difference
from rlhf.evaluation.protocol import differences
from rlhf.evaluation.stage import answers_file

ALL = "all"
"""The name of all data sets together, where there are several."""


@dataclass(frozen=True)
class Evaluation:
    """One result and its answers."""

    name: str
    path: Path
    protocols: Mapping[tuple[str, str], JsonObject]  # (data set, mode) -> protocol
    scores: Mapping[tuple[str, str], Mapping[str, float]]  # (data set, mode) -> question -> mean score of its samples
    units: Mapping[tuple[str, str], str]  # (data set, question) -> what belongs together, such as the rows of an image
    tokens: Mapping[tuple[str, str], float]  # (data set, mode) -> mean tokens of a completion; none where unknown
    num_unjudged: int


@dataclass(frozen=True)
class Row:
    """The difference of one evaluation from the first, on one data set in one mode."""

    first: str
    second: str
    dataset: str
    mode: str
    protocol: str  # the id, or both
    num_left_out: int  # questions that only one of both has a judged answer to
    found: Difference


def read_evaluation(path: Path, name: str) -> Evaluation:
    """Read a result of `rlhf.evaluate` and the answers beside it. `ValueError` for anything else."""
    if path.is_dir():
        raise ValueError(f"{path}: expected the file that rlhf.evaluate wrote with output=FILE.json, found a folder")
    try:
        result = read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a result of rlhf.evaluate, found: {error}") from None
    answers = answers_file(path)
    if "num_eval" not in result or not answers.is_file():
        raise ValueError(
            f"{path}: expected a result of rlhf.evaluate with {answers.name} beside it, found another file"
        )
    protocols = _protocols(result)
    if not protocols:
        raise ValueError(
            f"{path}: expected a result with protocol ids, found one of an earlier version; evaluate again"
        )
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[tuple[str, str], list[float]] = defaultdict(list)
    units: dict[tuple[str, str], str] = {}
    num_unjudged = 0
    for number, line in enumerate(answers.read_bytes().splitlines(), 1):
        try:
            record = parse_json(line)
            key = (record["dataset"] if "benchmarks" in result else "", record["mode"])
            tokens[key].append(float(record.get("num_tokens", math.nan)))
            score = _score(record)
            if score is None:
                num_unjudged += 1
            else:
                scores[key][record["id"]].append(score)
                units[key[0], record["id"]] = str(record.get("unit") or record["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{answers}: line {number}: expected an answer, found: {error!r}") from None
    return Evaluation(
        name,
        path,
        protocols,
        {key: {row: sum(found) / len(found) for row, found in rows.items()} for key, rows in scores.items()},
        units,
        {key: sum(found) / len(found) for key, found in tokens.items()},
        num_unjudged,
    )


def _protocols(result: JsonObject) -> dict[tuple[str, str], JsonObject]:
    benchmarks = result.get("benchmarks", {"": result})
    return {
        (name, mode): protocol
        for name, found in benchmarks.items()
        for mode, protocol in found.get("protocols", {}).items()
    }


def _score(record: JsonObject) -> float | None:
    """The score of an answer: its answer part, so that grades count as they are; None where nobody judged it."""
    if record["verdict"] in ("unscorable", "unjudged"):
        return None
    part = record.get("parts", {}).get("answer", record.get("score"))
    return float(record["verdict"] == "right") if part is None else min(1.0, float(part))


def check_protocols(evaluations: Sequence[Evaluation]) -> None:
    """`ValueError` where evaluations differ in their protocols; it names what is other."""
    first = evaluations[0]
    for other in evaluations[1:]:
        for key in first.protocols.keys() & other.protocols.keys():
            one, two = first.protocols[key], other.protocols[key]
            if one["id"] != two["id"]:
                parts = "; ".join(differences(one, two)[:6])
                title = " ".join(filter(None, key))
                raise ValueError(
                    f"{first.path} and {other.path}: {title}: expected one protocol, found {one['id']} and "
                    f"{two['id']}: {parts}. Figures of both cannot be compared; --other-protocols does so all the same"
                )


def compare(evaluations: Sequence[Evaluation]) -> list[Row]:
    """Compare each with the first one, on every data set and mode that both have, and on all data sets together.

    `ValueError` where two have no question in common.
    """
    first = evaluations[0]
    rows: list[Row] = []
    for other in evaluations[1:]:
        common = [key for key in first.scores if key in other.scores]
        found = [row for key in common if (row := _row(first, other, [key])) is not None]
        if not found:
            raise ValueError(
                f"{first.path} and {other.path}: expected judged answers to the same questions, found none"
            )
        rows += found
        for mode in dict.fromkeys(mode for _, mode in common):
            keys = [key for key in common if key[1] == mode]
            if len(keys) > 1 and (row := _row(first, other, keys)) is not None:
                rows.append(row)
    return rows


def _row(first: Evaluation, other: Evaluation, keys: Sequence[tuple[str, str]]) -> Row | None:
    pairs: list[tuple[float, float]] = []
    units: list[tuple[str, str]] = []
    num_left_out = 0
    for key in keys:
        here, there = first.scores[key], other.scores[key]
        common = [question for question in here if question in there]
        pairs += [(here[question], there[question]) for question in common]
        units += [(key[0], first.units[key[0], question]) for question in common]
        num_left_out += len(here.keys() | there.keys()) - len(common)
    if not pairs:
        return None
    ids = dict.fromkeys(one.protocols[key]["id"] for key in keys for one in (first, other) if key in one.protocols)
    dataset, mode = keys[0] if len(keys) == 1 else (ALL, keys[0][1])
    found = paired_difference([one for one, _ in pairs], [two for _, two in pairs], units)
    protocol = " ".join(ids) if len(keys) == 1 else f"{len(ids)} protocols"
    return Row(first.name, other.name, dataset or "prompts", mode, protocol, num_left_out, found)


_COLUMNS = (
    "first", "second", "data set", "mode", "questions", "first, %", "second, %", "difference", "95 % low", "95 % high",
    "p", "test", "better", "worse", "left out", "protocol",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    found = row.found
    return [
        row.first,
        row.second,
        row.dataset,
        row.mode,
        str(found.num_questions),
        f"{100 * found.first:.2f}",
        f"{100 * found.second:.2f}",
        f"{100 * found.difference:+.2f}",
        f"{100 * found.interval[0]:+.2f}",
        f"{100 * found.interval[1]:+.2f}",
        f"{found.p_value:.4f}",
        found.test,
        str(found.num_better),
        str(found.num_worse),
        str(row.num_left_out),
        row.protocol,
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """The comparison as a Markdown table, with a sentence on what it says."""
    lines = [
        "Differences are second minus first, in points of 100, on the questions that both answered. The interval",
        "resamples questions 10,000 times; p is the chance of such a difference between two that are equally good.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
        *(f"| {' | '.join(cell.replace('|', ' ') for cell in _cells(row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The comparison as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue()


def as_text(rows: Sequence[Row]) -> list[str]:
    """The comparison for a terminal."""
    lines = []
    for row in rows:
        found = row.found
        low, high = (f"{100 * end:+.1f}" for end in found.interval)
        clear = "" if found.interval[0] <= 0 <= found.interval[1] else "; the interval excludes 0"
        lines.append(
            f"{row.dataset} {row.mode}: {row.first} {100 * found.first:.1f} -> {row.second} {100 * found.second:.1f}, "
            f"{100 * found.difference:+.1f} points ({low} to {high}, p {found.p_value:.3f}) on {found.num_questions} "
            f"questions{clear}"
        )
        if row.num_left_out:
            lines.append(f"  {row.num_left_out} questions have a judged answer in one of both only, and are left out")
    return lines


def frontier(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, float, float]]:
    """(evaluation, mode, mean tokens, mean score) over all data sets: what accuracy costs in tokens."""
    points = []
    for one in evaluations:
        for mode in dict.fromkeys(mode for _, mode in one.scores):
            keys = [key for key in one.scores if key[1] == mode and not math.isnan(one.tokens.get(key, math.nan))]
            scores = [score for key in keys for score in one.scores[key].values()]
            if scores:
                tokens = sum(one.tokens[key] * len(one.scores[key]) for key in keys) / len(scores)
                points.append((one.name, mode, tokens, sum(scores) / len(scores)))
    return points


def plot(evaluations: Sequence[Evaluation], rows: Sequence[Row]) -> bytes:
    """Both plots as a PNG: differences with their intervals, and the frontier of accuracy against tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((11, max(4.0, 1.5 + 0.35 * len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, row in enumerate(reversed(rows)):
        found = row.found
        left.plot([100 * end for end in found.interval], [place, place], color="tab:blue")
        left.plot([100 * found.difference], [place], "o", color="tab:blue")
    left.set_yticks(range(len(rows)), [f"{row.second}: {row.dataset}, {row.mode}" for row in reversed(rows)])
    left.axvline(0, color="grey", linewidth=0.8)
    left.set_xlabel(f"points more than {evaluations[0].name}, 95 % interval")
    points = frontier(evaluations)
    for name in dict.fromkeys(name for name, *_ in points):
        own = sorted((tokens, 100 * score, mode) for one, mode, tokens, score in points if one == name)
        right.plot([tokens for tokens, _, _ in own], [score for _, score, _ in own], "o-", label=name)
        for tokens, score, mode in own:
            right.annotate(mode, (tokens, score), textcoords="offset points", xytext=(4, 4), fontsize=8)
    right.set_xlabel("tokens of an answer")
    right.set_ylabel("accuracy, %")
    if points:
        right.legend(fontsize=8)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
