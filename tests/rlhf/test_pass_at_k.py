"""`rlhf.pass_at_k`: which prompts are kept, and why; resumed, extended, and read again as prompts."""

import json
from pathlib import Path

import pytest

from conf.cli import load_config
from model.checkpoint import load_processor
from model.interface import Mode
from rewards.result import RewardResult
from rlhf.prompts import PromptSet
from rlhf.selection import pass_at_k
from rlhf.selection.config import PassAtKConfig
from rlhf.selection.pass_at_k import Counted, drop_reason, select
from rollouts.config import RolloutConfig
from tests.rlhf.prompt_data import write_jsonl


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def command(tiny_folder, easy_prompts, tmp_path, monkeypatch):
    """Runs the command on five prompts; prompt pN gets N right completions of each four."""

    def rewarded(tasks, groups, rubric, tokenizer):
        results = []
        for task, group in zip(tasks, groups, strict=True):
            right = int(task.prompt.id[1:])
            results.append([(one, RewardResult(1.0, {"answer": float(one.sample_index % 4 < right)})) for one in group])
        return results

    monkeypatch.setattr(pass_at_k, "reward", rewarded)

    def run(*overrides: str, out: str = "out") -> Path:
        fixed = [f"checkpoint={tiny_folder}", f"prompts={easy_prompts}", f"out={tmp_path / out}", "num_prompts=5"]
        select(load_config("pass_at_k", [*fixed, "num_threads=1", "rollouts.max_completion_tokens=3", *overrides])[0])
        return tmp_path / out

    return run


def test_prompts_between_always_and_never_right_are_kept_and_can_be_trained_on(command, tiny_folder):
    out = command("k=8")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_right_of_k"] == {"0": 1, "1": 0, "2": 1, "3": 0, "4": 1, "5": 0, "6": 1, "7": 0, "8": 1}
    assert summary["dropped"] == {"all_right": 1, "all_wrong": 1} and summary["kept"] == 3
    assert [(row["id"], row["pass_rate"]) for row in lines(out / "prompts.jsonl")] == [
        ("p1", 0.25),
        ("p2", 0.5),
        ("p3", 0.75),
    ]
    assert lines(out / "dropped.jsonl")[1] == {"id": "p4", "reason": "all_right", "pass_rate": 1.0}
    assert len(lines(out / "unfiltered.jsonl")) == 3
    again = PromptSet(out / "prompts.jsonl", load_processor(tiny_folder), Mode.think, RolloutConfig().within(512))
    assert [row.prompt.id for row in again.items] == ["p1", "p2", "p3"] and len(again.build(0).images) == 1
    assert again.items[0].prompt.reference == "1"


def test_a_larger_k_samples_only_what_is_new_and_a_repetition_samples_nothing(command, monkeypatch, capsys):
    out = command("k=4")
    first = (out / "samples" / "0.jsonl").read_text()
    sampled: list[int] = []
    generate = pass_at_k.generate
    monkeypatch.setattr(
        pass_at_k, "generate", lambda worker, requests: sampled.append(len(requests)) or generate(worker, requests)
    )
    command("k=4")
    assert sampled == [] and "20 completions are there already" in capsys.readouterr().out
    command("k=8", "drop_all_wrong=false")
    assert sampled == [5] and (out / "samples" / "0.jsonl").read_text() == first
    blocks = [lines(out / "samples" / f"{block}.jsonl")[1]["groups"] for block in range(2)]
    assert blocks[0] != blocks[1], "another block has samples of its own"
    assert [row["id"] for row in lines(out / "prompts.jsonl")] == ["p0", "p1", "p2", "p3"]
    command("k=8", "rollouts.temperature=0.5")
    assert sampled == [5, 5, 5] and "completions of another checkpoint" in capsys.readouterr().err


def test_nothing_left_is_an_error_after_the_counts_are_written(command, tmp_path):
    with pytest.raises(ValueError, match=r"prompts: expected some to be left, found none of 5: .*'all_right': 4"):
        command("k=4", "max_pass_rate=0.2")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["kept"] == 0
    assert not (tmp_path / "out" / "prompts.jsonl").exists()


class TestGeneral:
    """Prompts that are added to the chosen ones without a choice."""

    @pytest.fixture
    def general(self, tmp_path) -> Path:
        folder = tmp_path / "llava"
        folder.mkdir()
        (folder / "look.png").write_bytes((tmp_path / "0.png").read_bytes())
        rows = [{"id": f"p{n}", "question": f"What {n}?", "answer": f"a {n}", "image": "look.png"} for n in range(10)]
        return write_jsonl(folder / "one_vision.jsonl", rows)

    def test_they_are_half_of_the_hard_cases_mixture(self, command, general, tiny_folder):
        hard = ("k=4", "max_pass_rate=0.6", "drop_all_wrong=false")
        out = command(*hard, f"general={general}", "reward.datasets={one_vision: exact}")
        rows = lines(out / "prompts.jsonl")
        assert [row["id"] for row in rows[:3]] == ["p0", "p1", "p2"] and len(rows) == 6
        assert [(row["chosen_by"], row["pass_rate"]) for row in rows[3:]] == [("general", None)] * 3
        assert {row["dataset"] for row in rows} == {"prompts", "one_vision"}
        assert len({row["id"] for row in rows}) == 6, "ids that clash are told apart"
        assert [row["id"] for row in lines(out / "unfiltered.jsonl")][3:] == [row["id"] for row in rows[3:]]
        summary = json.loads((out / "summary.json").read_text())
        assert summary["general"] == {"num_prompts": 10, "added": 3, "share": 0.5} and summary["kept"] == 3
        again = PromptSet(out / "prompts.jsonl", load_processor(tiny_folder), Mode.think, RolloutConfig().within(512))
        assert len(again) == 6 and again.items[5].dataset == "one_vision" and len(again.build(5).images) == 1
        first = (out / "prompts.jsonl").read_bytes()
        command(*hard, f"general={general}")
        assert (out / "prompts.jsonl").read_bytes() == first
        assert len(lines(command(*hard, f"general={general}", "general_share=0.25") / "prompts.jsonl")) == 4

    def test_too_few_are_said(self, command, general, capsys):
        out = command("k=4", f"general={general}", "general_share=0.9")
        assert len(lines(out / "prompts.jsonl")) == 13
        assert (
            "general: expected 27 prompts for general.share = 0.9 beside 3 chosen ones, found 10"
            in capsys.readouterr().err
        )

    def test_a_share_of_all_is_refused(self, command, general):
        with pytest.raises(ValueError, match=r"general\.share: expected above 0 and below 1, found 1\.0"):
            command(f"general={general}", "general_share=1")


def test_prompts_are_never_written_over(command, tmp_path):
    before = (tmp_path / "prompts.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"out: expected another folder than that of the prompts, found .*prompts\.jsonl"
    ):
        command("k=4", out=".")
    assert (tmp_path / "prompts.jsonl").read_bytes() == before


def test_every_drop_has_its_reason():
    config = PassAtKConfig(checkpoint="c", prompts="p", out="o")
    counted = {None: "unread", Counted(0, 0): "unscorable", Counted(8, 8): "all_right", Counted(0, 8): "all_wrong"}
    assert {one: drop_reason(one, config) for one in counted} == counted
    assert drop_reason(Counted(1, 8), config) == ""
    config = PassAtKConfig(checkpoint="c", prompts="p", out="o", min_pass_rate=0.25)
    assert [drop_reason(Counted(n, 8), config) for n in (0, 1, 2)] == ["all_wrong", "too_hard", ""]
    with pytest.raises(ValueError, match=r"drop_all_wrong: expected true with min_pass_rate = 0\.25"):
        PassAtKConfig(checkpoint="c", prompts="p", out="o", min_pass_rate=0.25, drop_all_wrong=False)
    for name, value in {"k": 6, "max_pass_rate": 0.0, "min_pass_rate": 1.0, "out": ""}.items():
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            PassAtKConfig(**{"checkpoint": "c", "prompts": "p", "out": "o", name: value})
