"""Settings of converting a public data set to prompts."""

import difflib
from dataclasses import dataclass, field

from model.run.config import OUTSIDE

DATA_SETS = {
    "geometry3k": "Geometry3K",
    "mmk12": "MMK12",
    "mm_eureka": "MM-Eureka",
    "scienceqa": "ScienceQA",
    "clevr": "CLEVR",
    "mathv360k": "MathV360K",
    "llava_cot": "LLaVA-CoT-100k",
    "mathvision": "MATH-Vision",
    "chartqa": "ChartQA",
    "docvqa": "DocVQA",
}
"""The data sets that can be converted: name here -> name of its authors."""


@dataclass
class ConvertConfig:
    dataset: str = ""
    """the data set; a first word without `=` stands for it. One of geometry3k, mmk12, mm_eureka, scienceqa, clevr,
    mathv360k, llava_cot, mathvision, chartqa, docvqa"""
    source: str = field(default="", metadata=OUTSIDE)
    """folder that the data set was downloaded to, or one of its files"""
    out: str = field(default="", metadata=OUTSIDE)
    """new folder for SPLIT.jsonl, images and summary.json"""
    max_bad_rows: float = field(default=0.01, metadata=OUTSIDE)
    """rows that may be skipped because they cannot be used: a share of all below 1, a number from 1 on"""

    def __post_init__(self) -> None:
        self.dataset = _known(self.dataset)
        for name in ("source", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a folder, found none")
        if not 0 <= self.max_bad_rows < float("inf"):
            raise ValueError(f"max_bad_rows: expected 0 or more, found {self.max_bad_rows}")


def _known(given: str) -> str:
    """The name of a data set as it is written here, from its authors' spelling too."""
    plain = given.lower().replace("-", "_")
    names = {**{title.lower().replace("-", "_"): name for name, title in DATA_SETS.items()}, **dict.fromkeys(DATA_SETS)}
    if plain in names:
        return names[plain] or plain
    near = difflib.get_close_matches(plain, DATA_SETS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"dataset: expected one of {', '.join(DATA_SETS)}, found {given or 'none'}{hint}")
