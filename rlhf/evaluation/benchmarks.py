"""The benchmarks that a checkpoint can be measured on, and the wording of their questions: `benchmarks.yaml`."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cache
from pathlib import Path

import yaml

from model.json_values import JsonObject, member
from rlhf.evaluation.overall import SCORES
from rlhf.evaluation.rules import RULES

CATALOGUE = Path(__file__).with_name("benchmarks.yaml")
MOST_TILES = 64
"""Tiles of all images of a question together, SAIL-VL2's authors in VLMEvalKit (`total_max_num`)."""
_CHINESE = re.compile("[\u4e00-\u9fff]")


class Judging(Enum):
    """Whether a language model judges answers: never, those that the rule does not find, or it has to be there."""

    none = "none"
    optional = "optional"
    needed = "needed"


@dataclass(frozen=True)
class Form:
    """The wording of a question."""

    text: str
    chinese: str = ""  # the wording where question or options have Chinese characters; empty: `text`

    def filled(self, question: str, options: Mapping[str, str]) -> str:
        """Return the question with its options, each on a line of its own."""
        listed = "".join(f"\n{letter}. {text}" for letter, text in options.items())
        chosen = self.chinese if self.chinese and _CHINESE.search(question + listed) else self.text
        return chosen.replace("{options}", listed).replace("{question}", question)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the catalogue; `benchmarks.yaml` explains the fields."""

    name: str
    title: str
    file: str
    form: str
    rule: str
    score: str
    judge: Judging
    proven: str
    tiles: int = 10
    upscale: int = 1
    split: str = ""
    drops_period: bool = False
    graded: bool = False  # the judge gives a grade from 0 to 1 instead of right or wrong
    frames: int = 0  # frames of a video; 0: the questions are about images
    answer_column: str = "answer"

    def tiles_of(self, num_images: int) -> int:
        """Return the cap of tiles of each image where a question has so many."""
        return max(1, min(self.tiles, MOST_TILES // max(1, num_images)))


@dataclass(frozen=True)
class Catalogue:
    """All benchmarks, forms and averages."""

    benchmarks: dict[str, Benchmark]
    forms: dict[str, Form]
    averages: dict[str, list[str]]
    unsupported: dict[str, str] = field(default_factory=dict)

    def chosen(self, names: Sequence[str]) -> list[Benchmark]:
        """Return benchmarks by name. `ValueError` for unknown ones, for those not built, and for one named twice."""
        found: list[Benchmark] = []
        for name in names:
            if name in self.unsupported:
                raise ValueError(f"benchmarks: {name}: not available: {self.unsupported[name]}")
            if name not in self.benchmarks:
                near = difflib.get_close_matches(name, self.benchmarks, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"benchmarks: expected some of {', '.join(self.benchmarks)}, found {name!r}{hint}")
            found.append(self.benchmarks[name])
        if len(set(names)) < len(names):
            raise ValueError(f"benchmarks: expected each once, found {', '.join(names)}")
        return found


@cache
def catalogue() -> Catalogue:
    """Read the catalogue that comes with the toolkit."""
    raw = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    benchmarks = {name: _benchmark(name, entry) for name, entry in raw["benchmarks"].items()}
    forms = {name: Form(**entry) for name, entry in raw["forms"].items()}
    for one in benchmarks.values():
        if one.form not in forms or one.score not in SCORES or one.rule not in {*RULES, "none"}:
            raise ValueError(f"{CATALOGUE}: {one.name}: expected a known form, rule and score, found {one}")
    return Catalogue(benchmarks, forms, raw["averages"], raw["unsupported"])


def _benchmark(name: str, entry: JsonObject) -> Benchmark:
    known = {one.name for one in fields(Benchmark)}
    if unknown := entry.keys() - known:
        raise ValueError(f"{CATALOGUE}: {name}: expected fields among {sorted(known)}, found {sorted(unknown)}")
    return Benchmark(name=name, **{**entry, "judge": member(Judging, entry["judge"], f"{name}.judge")})


def with_forms(found: Catalogue, path: str) -> Catalogue:
    """Return the catalogue with the wordings of a user's file in place of ours.

    The file is YAML, `FORM: {text: ..., chinese: ...}`. `ValueError` names what is wrong with it.
    """
    if not path:
        return found
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"data.forms: expected a YAML file of wordings, found: {error}") from None
    if not isinstance(given, dict) or not given:
        raise ValueError(f"data.forms: {path}: expected FORM: {{text: ...}} for some of {', '.join(found.forms)}")
    forms = dict(found.forms)
    for name, entry in given.items():
        if name not in forms:
            raise ValueError(f"data.forms: {path}: expected some of {', '.join(found.forms)}, found {name!r}")
        if not isinstance(entry, dict) or not {"text"} <= entry.keys() <= {"text", "chinese"}:
            raise ValueError(f"data.forms: {path}: {name}: expected text and, if wanted, chinese, found {entry!r:.80}")
        if not all(isinstance(text, str) and "{question}" in text for text in entry.values()):
            raise ValueError(f"data.forms: {path}: {name}: expected texts that hold {{question}}, found {entry!r:.80}")
        if "{options}" in forms[name].text and not all("{options}" in text for text in entry.values()):
            raise ValueError(f"data.forms: {path}: {name}: expected texts that hold {{options}}, found {entry!r:.80}")
        forms[name] = Form(**entry)
    return Catalogue(found.benchmarks, forms, found.averages, found.unsupported)
