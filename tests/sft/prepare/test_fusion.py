"""`sft.prepare fusion`: shares, reasons, exact ids, and the modes that SFT makes of the rows."""

import json
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from model.batch import pack_rows
from model.data.sources import DataFolders
from model.interface import THINKING_INSTRUCTION, Mode
from sft.config import SftConfig, SftDataConfig
from sft.data import Demonstrations, open_samples
from sft.prepare.config import DemonstrationTableConfig, FusionConfig
from sft.prepare.fusion import make, mixture
from tests.rlhf.prompt_data import png, write_jsonl
from tests.sft.test_data import rollout, store

TEXT = "<think>I look.</think>\\boxed{1}"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counted(out: Path) -> dict:
    summary = json.loads((out / "summary.json").read_text())
    dropped = lines(out / "dropped.jsonl")
    assert summary["num_rows"] == summary["kept"] + len(dropped)
    assert Counter(row["reason"] for row in dropped) == summary["dropped"]
    return summary


@pytest.fixture
def mix(tmp_path, tiny):
    """Mixes ten rollouts of five prompts with direct rows; gives the folder that is written."""
    processor = tiny[1]
    (tmp_path / "a.png").write_bytes(png(0))
    prompts = [
        {"id": f"p{n}", "question": f"Question {n}?", "answer": "1", "image": "a.png", "dataset": "dots"}
        for n in range(6)
    ]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    one_by_one = [
        i for piece in ("<think>", "I ", "lo", "ok.", "</think>", "\\box", "ed{1}") for i in ids(processor, piece)
    ]
    assert processor.tokenizer.decode(one_by_one) == TEXT and one_by_one != processor.completion(TEXT)[:-1]
    sampled = [one_by_one, processor.completion(TEXT)[:-1]]
    good = [
        rollout(
            f"p{n}",
            [*sampled[k], processor.tokenizer.end_id],
            text=TEXT,
            parts={"answer": 1.0, "format": 1.0, "judge": k},
        )
        for n in range(5)
        for k in range(2)
    ]
    bad = [
        rollout("p1", [1], text="x", parts={"answer": 0.0, "format": 1.0}),
        rollout("p1", [1], text="x", finish_reason="length"),
        rollout("p1", [1], text="x", parts={"answer": 1.0, "format": None}),
    ]
    store(tmp_path / "rollouts", 1, [*bad, *good])
    store(tmp_path / "rollouts", 2, good[:1])

    def run(direct: list[dict], *overrides: str, out: str = "out") -> Path:
        path = write_jsonl(tmp_path / "direct.jsonl", direct)
        fixed = [f"rollouts={tmp_path / 'rollouts'}", f"prompts=[{tmp_path / 'prompts.jsonl'}]", f"direct=[{path}]"]
        values = OmegaConf.to_container(OmegaConf.from_dotlist([*fixed, f"out={tmp_path / out}", *overrides]))
        assert isinstance(values, dict)
        data = DemonstrationTableConfig(**{"max_bad_rows": 0.9, **values.pop("data", {})})
        make(FusionConfig(**values, data=data))
        return tmp_path / out

    return run


def ids(processor, text: str) -> list[int]:
    return processor.completion(text)[:-1]


def plain(count: int) -> list[dict]:
    return [{"id": f"d{n}", "question": f"{n}+0?", "answer": f"It is {n}."} for n in range(count)]


@pytest.mark.parametrize(
    ("thinking", "direct", "share", "num_rows", "expected"),
    [
        (10, 1000, 0.9, 0, (10, 90)),
        (100, 45, 0.9, 0, (5, 45)),
        (100, 1000, 0.9, 50, (5, 45)),
        (3, 20, 0.9, 0, (2, 20)),
        (7, 9, 0.0, 0, (7, 0)),
        (7, 9, 1.0, 4, (0, 4)),
        (0, 9, 0.5, 0, (0, 0)),
    ],
)
def test_the_largest_mixture_with_the_share(thinking, direct, share, num_rows, expected):
    assert mixture(thinking, direct, share, num_rows) == expected


def test_nine_direct_rows_in_ten_and_every_rollout_has_its_reason(mix):
    out = mix(plain(60), "num_rows=40")
    rows = lines(out / "demonstrations.jsonl")
    assert Counter(row["mode"] for row in rows) == {"think": 4, "direct": 36}
    assert len({row["id"] for row in rows}) == 40
    summary = counted(out)
    assert (summary["thinking_found"], summary["direct_found"], summary["direct_share"]) == (10, 60, 0.9)
    expected = {"not_correct": 1, "not_finished": 1, "not_well_formed": 1, "repeated": 1, "surplus": 30}
    assert summary["dropped"] == expected
    again = mix(plain(60), "num_rows=40", out="again")
    assert (again / "demonstrations.jsonl").read_bytes() == (out / "demonstrations.jsonl").read_bytes()
    other = mix(plain(60), "num_rows=40", "seed=1", out="other")
    assert (other / "demonstrations.jsonl").read_bytes() != (out / "demonstrations.jsonl").read_bytes()


def test_a_judge_of_the_thought_and_a_number_for_each_prompt_choose_rollouts(mix):
    out = mix([], "direct_share=0", "min_parts={judge: 1.0}")
    assert [row["reward_parts"]["judge"] for row in lines(out / "demonstrations.jsonl")] == [1] * 5
    assert counted(out)["dropped"]["part_judge"] == 6
    out = mix([], "direct_share=0", "max_per_prompt=1")
    kept = [row["id"].partition("/")[0] for row in lines(out / "demonstrations.jsonl")]
    assert sorted(kept) == [f"p{n}" for n in range(5)] and counted(out)["dropped"]["max_per_prompt"] == 5
    with pytest.raises(ValueError, match=r"min_parts: .*\(answer, format, judge\), found 'juge'"):
        mix([], "direct_share=0", "min_parts={juge: 1.0}")


def test_sft_trains_the_sampled_ids_and_the_end_of_turn_in_both_modes(mix, tiny):
    """Thinking rows carry the instruction and the exact ids of their rollout; direct rows carry neither."""
    processor = tiny[1]
    out = mix(plain(10), "direct_share=0.5")
    found = Demonstrations(str(out / "demonstrations.jsonl"), SftDataConfig(), processor, DataFolders())
    by_id = {row["id"]: row for row in lines(out / "demonstrations.jsonl")}
    modes: Counter[Mode] = Counter()
    for index, sample in enumerate(found.items):
        row, given = found.build(index), by_id[sample.chat.id]
        prompt = processor.tokenizer.decode(row.prefix_ids)
        modes[sample.mode] += 1
        assert prompt.count(THINKING_INSTRUCTION) == (sample.mode is Mode.think)
        if sample.mode is Mode.think:
            assert row.completions == given["completion_ids"] and len(row.images) == 1
            assert given["dataset"] == "dots" and sample.completions == [TEXT]
        else:
            assert row.completions == [processor.completion(sample.completions[0])]
        labels = pack_rows([row], processor.placeholder_id, processor.config.pixels_per_token).target_ids.tolist()
        assert labels == list(row.completions[0]) and labels[-1] == processor.tokenizer.end_id
    assert modes == {Mode.think: 10, Mode.direct: 10}
    step = open_samples(
        SftConfig(checkpoint="-", batch_size=8, data=SftDataConfig(demonstrations=str(out / "demonstrations.jsonl"))),
        processor,
        DataFolders(),
    )(0)
    assert len(step) == 8


def test_ids_of_another_tokenizer_are_no_good_row(mix, tiny, tmp_path):
    out = mix([], "direct_share=0", "num_rows=2")
    first, second = lines(out / "demonstrations.jsonl")
    for ids in (
        [[5, 6]],
        [first["completion_ids"][0][:-1]],
        [[-1]],
        [[10**9]],
        [["a"]],
        "x",
        first["completion_ids"] * 2,
    ):
        write_jsonl(out / "demonstrations.jsonl", [first, {**second, "completion_ids": ids}])
        config = SftDataConfig(max_bad_rows=0.5)
        found = Demonstrations(
            str(out / "demonstrations.jsonl"), config, tiny[1], DataFolders(report=tmp_path / "bad.jsonl")
        )
        assert len(found) == 1 and "leave the column out to train the texts" in (tmp_path / "bad.jsonl").read_text()


class TestDirectRows:
    def test_rows_that_think_are_dropped_for_a_counted_reason(self, mix):
        blank = {"id": "blank", "question": "1?", "answer": "<think>\n\n</think>\n\nOne."}
        chat = [
            {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
        ]
        tagged = [*chat[:1], {"role": "assistant", "content": TEXT}, *chat[2:]]
        rows = {
            "blank": blank,
            "reference": {"id": "reference", "question": "2?", "reference": "7"},
            "chat": {"id": "chat", "messages": chat},
            "asked": {"id": "asked", "question": f"3? {THINKING_INSTRUCTION}", "answer": "3"},
            "think_tags": {"question": "4?", "answer": TEXT},
            "think_tags ": {"messages": tagged},
            "mode_think": {"question": "5?", "answer": "5", "mode": "think"},
            "asks_to_think": {"question": "Use <think></think> and \\boxed{}. 6?", "answer": "6"},
            "unreadable": {"question": "7?"},
            "unreadable ": {"question": "8?", "answer": "8", "image": "gone.png"},
        }
        out = mix([*rows.values()], "direct_share=1")
        kept = {row["id"]: row for row in lines(out / "demonstrations.jsonl")}
        assert sorted(kept) == ["asked", "blank", "chat", "reference"]
        assert kept["blank"]["completions"] == ["One."] and kept["reference"]["completions"] == ["\\boxed{7}"]
        assert kept["asked"]["messages"] == [{"role": "user", "content": "3?"}]
        assert kept["chat"]["messages"] == chat[:3] and kept["chat"]["completions"] == ["d"]
        summary = counted(out)
        assert summary["dropped"] == {"asks_to_think": 1, "mode_think": 1, "think_tags": 2, "unreadable": 2}
        assert (summary["boxed_references"], summary["blank_thoughts_cut"], summary["thinking_found"]) == (1, 1, 0)

    def test_tags_are_refused_on_request(self, mix):
        with pytest.raises(ValueError, match=r"direct: .*direct\.jsonl:2: expected answers without think tags"):
            mix([*plain(1), {"question": "4?", "answer": TEXT}], "refuse_tagged=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts=[direct.jsonl]"], r"prompts: expected a .*direct\.jsonl, found none"),
        (["rollouts=nowhere"], "rollouts: expected step_.*; run the RL stage first"),
        (["direct=[]"], "direct: expected files, found nothing"),
        (["direct_share=2"], "direct_share: expected a share between 0 and 1"),
        (["prompts=[]"], "prompts: expected files, found nothing"),
    ],
)
def test_bad_settings_are_refused_by_name(mix, overrides, message):
    with pytest.raises(ValueError, match=message):
        mix(plain(3), *overrides)


def test_rollouts_of_unknown_prompts_are_refused(mix, tmp_path):
    store(tmp_path / "rollouts", 3, [rollout("elsewhere", [1], text="x")])
    with pytest.raises(ValueError, match=r"prompts: .*found no row for \['elsewhere'\]"):
        mix(plain(3))


def test_prompts_of_several_files_have_the_ids_of_rl(mix, tmp_path):
    store(tmp_path / "rollouts", 3, [rollout("more/p0", [1], text=TEXT)])
    write_jsonl(tmp_path / "more.jsonl", [{"id": "p0", "question": "More?", "answer": "1"}])
    files = f"prompts=[{tmp_path / 'prompts.jsonl'},{tmp_path / 'more.jsonl'}]"
    out = mix([], "direct_share=0", "last_rollout_steps=1", files)
    [row] = lines(out / "demonstrations.jsonl")
    assert row["id"] == "more/p0/step_000003-1" and row["messages"] == [{"role": "user", "content": "More?"}]
