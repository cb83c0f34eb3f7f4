"""From judged rows of a benchmark to its figure, as VLMEvalKit of August 2026 computes it; all figures are of 100."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Judged:
    """A row of a benchmark and what was made of its answer."""

    index: str
    columns: Mapping[str, str]
    score: float  # from 0 to 1; 1 is right
    answer: str | None = None  # the answer as the rule or the judge found it
    unit: str = ""  # names what the row belongs to together with others (`unit_of`)


@dataclass(frozen=True)
class Figure:
    """The figure of a benchmark. None where the rows that are there do not make one."""

    score: float | None
    parts: dict[str, float] = field(default_factory=dict)


def accuracy(rows: Sequence[Judged]) -> Figure:
    """Mean over the rows, and over those of each category."""
    return Figure(_score(rows), _by(rows, "category", "l2-category"))


def _by(rows: Sequence[Judged], *columns: str) -> dict[str, float]:
    """Return the mean of the rows of each value of the first of the columns that rows have."""
    column = next((name for name in columns if any(name in row.columns for row in rows)), "")
    groups = _grouped(rows, lambda row: row.columns.get(column, ""))
    return {str(name): _score(group) for name, group in sorted(groups.items(), key=str) if name}


def circular(rows: Sequence[Judged]) -> Figure:
    """A question counts if it is right in every order of its options (MMBench). `index` modulo 10^6 names it."""
    groups = _grouped(rows, lambda row: row.columns.get("g_index") or str(int(row.index) % 1_000_000))
    asked = {name: group for name, group in groups.items() if any(row.index == name for row in group)}
    whole = [Judged(str(name), group[0].columns, min(row.score for row in group)) for name, group in asked.items()]
    return accuracy(whole) if whole else Figure(None)


_MME_PERCEPTION = (
    *("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene"),
)
_MME_REASONING = ["code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"]
_MME_MOST = 2800


def mme(rows: Sequence[Judged]) -> Figure:
    """Sum over 14 categories of the share of right answers and of right pairs of an image, of 2,800."""
    parts: dict[str, float] = {}
    for category, own in _grouped(rows, lambda row: row.columns.get("category", "")).items():
        pairs = _grouped(own, lambda row: row.columns.get("image_path", "")).values()
        both = [pair[0].score * pair[1].score for pair in pairs if len(pair) > 1]
        if both:
            parts[str(category)] = _score(own) + _mean(both)
    for name, categories in (("perception", _MME_PERCEPTION), ("reasoning", _MME_REASONING)):
        if all(category in parts for category in categories):
            parts[name] = sum(parts[category] for category in categories)
    if not {"perception", "reasoning"} <= parts.keys():
        return Figure(None, parts)
    return Figure((parts["perception"] + parts["reasoning"]) / _MME_MOST * 100, parts)


def hallusionbench(rows: Sequence[Judged]) -> Figure:
    """Mean of the shares of right answers, of figures and of questions all of whose answers are right."""

    def all_right(place: int) -> float:
        groups = _grouped(rows, lambda row: (row.columns.get("l2-category"), *_places(row.index, 3, place)))
        return _mean([min(row.score for row in group) for group in groups.values()])

    parts = {"aAcc": _score(rows), "fAcc": all_right(4), "qAcc": all_right(5)}
    return Figure(sum(parts.values()) / 3, parts)


def _places(index: str, *places: int) -> list[str]:
    pieces = index.split("_")
    if len(pieces) <= max(places):
        raise ValueError(f"index: expected one such as x_y_z_SET_FIGURE_QUESTION, found {index!r}")
    return [pieces[place] for place in places]


def pope(rows: Sequence[Judged]) -> Figure:
    """F1 of answering yes, a row counted once for each of its categories."""
    spread = [row for row in rows for _ in row.columns.get("category", "").split(",")]
    said = [(row.columns.get("answer") == "Yes", row.answer == "Yes") for row in spread]
    right = sum(wanted and found for wanted, found in said)
    precision = right / max(1, sum(found for _, found in said))
    recall = right / max(1, sum(wanted for wanted, _ in said))
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return Figure(f1 * 100, {"accuracy": _score(spread), "precision": precision * 100, "recall": recall * 100})


_AMBER = {
    "discriminative-attribute-state": "Attribute",
    "discriminative-attribute-number": "Attribute",
    "discriminative-attribute-action": "Attribute",
    "discriminative-hallucination": "Existence",
    "discriminative-relation": "Relation",
    "relation": "Relation",
}


def amber(rows: Sequence[Judged]) -> Figure:
    """Mean over attribute, existence and relation."""
    named = _grouped(rows, lambda row: _AMBER.get(row.columns.get("category", ""), row.columns.get("category", "")))
    parts = {str(name): _score(group) for name, group in named.items()}
    return Figure(sum(parts.values()) / len(parts), parts)


def fours(rows: Sequence[Judged]) -> Figure:
    """Four rows in turn, which are one unit, are one question, right if all are (CRPE). Others are left out."""
    whole = [four for four in _grouped(rows, lambda row: row.unit).values() if len(four) == 4]
    groups = [Judged(four[0].index, four[-1].columns, min(row.score for row in four)) for four in whole]
    return accuracy(groups) if groups else Figure(None)


def splits(rows: Sequence[Judged]) -> Figure:
    """Mean over the splits other than validation (RefCOCO)."""
    parts = {}
    for name, group in _grouped(rows, lambda row: row.columns.get("split") or row.columns.get("category", "")).items():
        parts[str(name)] = _score(group)
    tests = [value for name, value in parts.items() if not name.lower().rstrip().endswith("val")]
    return Figure(sum(tests) / len(tests) if tests else None, parts)


def worst_of_variants(rows: Sequence[Judged]) -> Figure:
    """A question counts if every one of its variants is right (DynaMath); `average` is the mean over all rows."""
    groups = _grouped(rows, lambda row: row.columns.get("qid", row.index))
    worst = _mean([min(row.score for row in group) for group in groups.values()])
    return Figure(worst, {"average": _score(rows), "worst": worst})


def wemath(rows: Sequence[Judged]) -> Figure:
    """The strict score: 1 less shares of half inadequate generalisation, of insufficient knowledge, and of rote memory.

    A problem with several steps and its steps share column `ID`; column `key` names them 2steps_1, 2steps_multi, ...
    """
    counts: dict[str, int] = defaultdict(int)
    for group in _grouped(rows, lambda row: row.columns.get("ID", row.columns.get("id", ""))).values():
        steps = {row.columns.get("key", ""): row.score >= 1 for row in group}
        whole = [right for key, right in steps.items() if key.endswith("_multi")]
        if len(whole) != 1:
            continue
        single = [right for key, right in steps.items() if not key.endswith("_multi")]
        counts["problems"] += 1
        if whole[0]:
            counts["complete mastery" if all(single) else "rote memory"] += 1
        else:
            counts["inadequate generalisation" if all(single) else "insufficient knowledge"] += 1
    total = counts.pop("problems", 0)
    if not total:
        return Figure(None, {"accuracy": _score(rows)})
    lost = counts["inadequate generalisation"] / 2 + counts["insufficient knowledge"] + counts["rote memory"]
    shares = {name: 100 * count / total for name, count in counts.items()}
    return Figure(100 * (1 - lost / total), {**shares, "accuracy": _score(rows)})


def _grouped(rows: Iterable[Judged], key: Callable[[Judged], Hashable]) -> dict[Hashable, list[Judged]]:
    groups: dict[Hashable, list[Judged]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _score(rows: Iterable[Judged]) -> float:
    return _mean([row.score for row in rows])


def _mean(values: Sequence[float]) -> float:
    """Return 100 times the mean; there has to be a value."""
    return 100 * sum(values) / len(values)


_UNITS = {"mme": "image_path", "amber": "image_path", "pope": "image_path", "worst_of_variants": "qid", "wemath": "ID"}
"""Score -> the column whose values name what belongs together."""


def unit_of(score: str, index: str, columns: Mapping[str, str], ordinal: int) -> str:
    """Name the unit of a row whose answers are not independent of others': a question, an image, a problem.

    Empty where a row is alone. `ordinal`: the number of the row, from 0. `ValueError` for an index of another form.
    """
    if score == "circular":
        if not index.isdecimal():
            raise ValueError(f"index: expected a whole number, found {index!r:.80}")
        return columns.get("g_index") or str(int(index) % 1_000_000)
    if score == "fours":
        return str(ordinal // 4)
    if score == "hallusionbench":
        return "_".join([columns.get("l2-category", ""), *_places(index, 3, 4, 5)[:1]])
    if (name := _UNITS.get(score)) is None:
        return ""
    return columns.get(name, columns.get(name.lower(), ""))


SCORES: dict[str, Callable[[Sequence[Judged]], Figure]] = {
    "accuracy": accuracy,
    "mean": accuracy,
    "circular": circular,
    "mme": mme,
    "hallusionbench": hallusionbench,
    "pope": pope,
    "amber": amber,
    "fours": fours,
    "splits": splits,
    "worst_of_variants": worst_of_variants,
    "wemath": wemath,
}
"""The figures by name, as `benchmarks.yaml` names them. Each is given at least one row; see `figure_of`."""


COLUMNS = {
    "mme": ("category", "image_path"),
    "hallusionbench": ("l2-category",),
    "pope": ("category",),
    "amber": ("category",),
    "fours": ("category",),
    "worst_of_variants": ("qid",),
    "wemath": ("key",),
}
"""The columns that a figure is made of, beside `index`."""
ALL_RIGHT = ("circular", "fours", "hallusionbench", "mme", "wemath", "worst_of_variants")
"""Figures to which several rows count as one, so that a unit with an answer that nobody judged has no value."""


def means_of(score: str, rows: Sequence[Judged]) -> tuple[list[float], list[int]] | None:
    """(sums, numbers) of the values of each unit whose mean is the figure, each from 0 to 1; None for other figures."""
    units: dict[str, list[Judged]] = {}
    for number, row in enumerate(rows):
        units.setdefault(row.unit or f"row {number}", []).append(row)
    if score in ("accuracy", "mean"):
        return [sum(row.score for row in own) for own in units.values()], [len(own) for own in units.values()]
    whole: dict[str, Callable[[str, list[Judged]], bool]] = {
        "circular": lambda name, own: any(row.index == name for row in own),
        "fours": lambda name, own: len(own) == 4,
        "worst_of_variants": lambda name, own: True,
    }
    if score not in whole:
        return None
    counted = [min(row.score for row in own) for name, own in units.items() if whole[score](name, own)]
    return counted, [1] * len(counted)


def figure_of(score: str, rows: Sequence[Judged]) -> Figure:
    """Return the figure of a benchmark's rows, None without rows. `ValueError` where a column it needs is not there."""
    return SCORES[score](rows) if rows else Figure(None)
