"""Users who come with the data and the reward of another trainer: two overrides at most, and reward or accuracy rises.

The start model was shown the form of an answer, and says one of four numbers by chance. Two questions have two answers,
which only the reward tells. Overrides beyond paths and sizes stand in a list of their own, so that they can be counted.
"""

import json
import random
from pathlib import Path
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Runner

pytestmark = pytest.mark.slow
TRUTHS = {"How many cats?": "2", "How many dogs?": "4"}
SYSTEM = "Count."
SIZES = [
    *("trainer.max_steps=20", "trainer.groups_per_step=8", "trainer.mini_batch_size=64", "trainer.passes=1"),
    *(
        "rollouts.max_completion_tokens=20",
        "optimizer.learning_rate=3e-4",
        "optimizer.warmup_steps=4",
        "engine.num_threads=1",
    ),
]
# A step has 64 completions. Their share of right ones, near a quarter, has a standard error of 0.04 over two steps and of
# 0.03 over five, so 0.1 is two standard errors of the difference; 0.2 was seen.
LEAST_RISE = 0.1
TRL_REWARD = '''
def accuracy(prompts, completions, solution, **kwargs):
    """Whether the boxed number is the one between the tags."""
    rewards = []
    for prompt, completion, truth in zip(prompts, completions, solution):
        assert prompt[0]["role"] == "system"
        said = completion[0]["content"].rpartition("\\\\boxed{")[2].partition("}")[0]
        right = truth.split("<answer>")[1].split("</answer>")[0].strip()
        rewards.append(said == right)
    return rewards
'''
VERL_REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "zoo" and extra_info["split"] == "train"
    right = f"\\\\boxed{{{ground_truth}}}" in solution_str
    return {"score": 1.0 if right else 0.1 * ("boxed" in solution_str), "acc": right}
"""


@pytest.fixture(scope="module")
def start(runner: Runner, tiny_folder: Path, tmp_path_factory) -> Path:
    """A model that closes its thought and says a number from 1 to 4, each as often."""
    folder = tmp_path_factory.mktemp("start")
    chance = random.Random(0)
    questions = list(TRUTHS) * 160
    rows = [
        {"question": question, "thinking": "I count.", "answer": str(chance.randint(1, 4))} for question in questions
    ]
    write_lines(folder / "demonstrations.jsonl", rows)
    arguments = [f"checkpoint={tiny_folder}", f"data.demonstrations={folder / 'demonstrations.jsonl'}"]
    arguments += ["batch_size=16", "max_steps=40", "optimizer.learning_rate=3e-3", "optimizer.schedule=linear"]
    runner.run(
        "sft.train", [*arguments, "optimizer.warmup_steps=5", "engine.num_threads=1", f"run.dir={folder / 'run'}"]
    )
    return folder / "run" / "final"


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def asked() -> list[tuple[str, str]]:
    return list(TRUTHS.items()) * 80


def trained(runner: Runner, start: Path, data: Path, folder: Path, overrides: list[str]) -> list[dict]:
    """The metrics of 20 steps."""
    assert len(overrides) <= 2
    arguments = [f"checkpoint={start}", f"prompts={data}", f"run.dir={folder / 'run'}", *SIZES, *overrides]
    runner.run("rlhf.train", arguments)
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def rise(metrics: list[dict], name: str) -> float:
    """The mean of the last five steps less that of the first two."""
    return mean(step[name] for step in metrics[-5:]) - mean(step[name] for step in metrics[:2])


def test_trl_rows_and_a_trl_function(runner, start, tmp_path):
    rows = [
        {
            "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            "solution": f"<think>so many</think> <answer> {truth} </answer>",
        }
        for question, truth in asked()
    ]
    write_lines(tmp_path / "train.jsonl", rows)
    (tmp_path / "my_rewards.py").write_text(TRL_REWARD)
    only_mine = [f"reward.functions=[{tmp_path / 'my_rewards.py'}:accuracy]", "reward.verifier=none"]
    metrics = trained(runner, start, tmp_path / "train.jsonl", tmp_path, only_mine)
    assert rise(metrics, "reward") > LEAST_RISE, [step["reward"] for step in metrics]
    said = runner.log.read_text()
    assert "question <- prompt" in said and "reward: accuracy x 1 " in said


def test_verl_rows_and_compute_score(runner, start, tmp_path):
    rows = [
        {
            "data_source": "zoo",
            "prompt": [{"role": "user", "content": question}],
            "ability": "counting",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"split": "train", "index": index},
        }
        for index, (question, truth) in enumerate(asked())
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    (tmp_path / "my_rewards.py").write_text(VERL_REWARD)
    only_mine = [f"reward.functions=[{tmp_path / 'my_rewards.py'}:compute_score]", "reward.verifier=none"]
    metrics = trained(runner, start, tmp_path / "train.parquet", tmp_path, only_mine)
    assert rise(metrics, "reward") > LEAST_RISE, [step["reward"] for step in metrics]
    said = runner.log.read_text()
    assert "answer <- reward_model.ground_truth" in said and "data set <- data_source" in said


def test_raw_gsm8k_rows_without_an_override(runner, start, tmp_path):
    rows = [{"question": question, "answer": f"We count them.\n#### {truth}"} for question, truth in asked()]
    write_lines(tmp_path / "train.jsonl", rows)
    metrics = trained(runner, start, tmp_path / "train.jsonl", tmp_path, [])
    assert rise(metrics, "accuracy") > LEAST_RISE, [step["accuracy"] for step in metrics]
    assert "gsm8k" in runner.log.read_text()  # the form in which references were read
