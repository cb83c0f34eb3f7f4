"""The pages for those who come from TRL and verl: their functions run as printed, and the names in their tables exist."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from rewards.config import RewardConfig
from rewards.result import RewardInput
from rewards.rubric import Rubric
from rlhf.config import RlConfig
from tests.conftest import require_extra
from tests.test_prose import keys

DOCS = Path(__file__).resolve().parents[2] / "docs"


def printed_function(page: str, folder: Path) -> Path:
    path = folder / "my_rewards.py"
    path.write_text(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)[0])
    return path


def rows_of(page: str, heading: str) -> list[tuple[str, str]]:
    """(theirs, ours) of each row of the table under a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:1] == "|"]
    return [(first, second) for first, second in cells[2:]]


@pytest.mark.parametrize(
    ("page", "name", "meta"),
    [
        ("from-trl.md", "accuracy", {"solution": "<think>so</think> <answer> 7 </answer>"}),
        ("from-verl.md", "compute_score", {"data_source": "x", "reward_model": {"ground_truth": "7"}}),
        ("from-verl.md", "compute_scores", {"data_source": "x", "reward_model": {"ground_truth": "7"}}),
    ],
)
def test_printed_functions_are_the_whole_reward(tmp_path, page, name, meta):
    path = printed_function(page, tmp_path)
    with Rubric(RewardConfig(verifier="none", functions=[f"{path}:{name}"])) as rubric:
        asked = [{"role": "user", "content": "?"}]
        inputs = [RewardInput("p", asked, [], "7", f"so \\boxed{{{n}}}", "", str(n), [1], "stop", meta) for n in (7, 8)]
        assert [result.value for result in rubric.score(inputs)] == [1.0, 0.0]


def test_the_names_of_trl_are_fields_of_its_config():
    require_extra("trl", "trl")
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "trainer", "grpo_config.py").read_text()
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments)} | set(re.findall(r"^    (\w+): ", source, re.MULTILINE))
    named = [name for theirs, _ in rows_of("from-trl.md", "GRPOConfig") for name in re.findall(r"\b[a-z]+_\w+", theirs)]
    values = {"dr_grpo"}
    assert len(named) > 40 and not set(named) - known - values


@pytest.mark.parametrize(("page", "heading"), [("from-trl.md", "GRPOConfig"), ("from-verl.md", "Keys")])
def test_our_column_names_keys(page, heading):
    """The test of all documents looks for keys with dots; a table of keys has one in nearly every row."""
    top = {field.name for field in fields(RlConfig)}
    ours = [re.findall(r"`([a-z_.]+)[`=]", cell) for _, cell in rows_of(page, heading)]
    found = [any(name in keys() or name in top for name in names) for names in ours]
    assert sum(found) >= len(found) - 4
