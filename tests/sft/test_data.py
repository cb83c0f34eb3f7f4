"""SFT samples: rejection sampling, mode by instruction, exact token ids, keyed order."""

import json
from pathlib import Path

import pytest

from model.data.sources import DataFolders
from model.interface import AUTO_INSTRUCTION, THINKING_INSTRUCTION, Mode
from sft.config import SftConfig, SftDataConfig
from sft.data import open_samples
from sft.rejection import rollout_files, select_rollouts


def rollout(prompt: str, ids: list[int], **changes) -> dict:
    row = {
        "step": 1,
        "prompt_id": prompt,
        "completion_ids": ids,
        "parts": {"answer": 1.0, "format": 1.0},
        "finish_reason": "stop",
    }
    return row | changes


def store(folder: Path, step: int, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_only_correct_wellformed_complete_rollouts_once_each(tmp_path):
    store(tmp_path, 1, [rollout("p0", [9])])
    store(
        tmp_path,
        2,
        [
            rollout("p1", [1, 2]),
            rollout("p1", [1, 2]),
            rollout("p1", [1, 3]),
            rollout("p2", [4], parts={"answer": 0.0, "format": 1.0}),
            rollout("p3", [5], parts={"answer": 1.0, "format": 0.0}),
            rollout("p4", [6], finish_reason="length"),
            rollout("p5", [7], parts={}),
        ],
    )
    chosen = select_rollouts(rollout_files(tmp_path, 1))
    assert [(row.prompt_id, row.completion_ids) for row in chosen] == [("p1", [1, 2]), ("p1", [1, 3])]
    assert len(select_rollouts(rollout_files(tmp_path, 5))) == 3
    store(tmp_path / "auto", 1, [rollout("p", [1], prompt_mode="auto")])
    with pytest.raises(ValueError, match="expected rollouts of a run with mode=think, found one of mode=auto"):
        select_rollouts(rollout_files(tmp_path / "auto", 1))
    store(tmp_path / "none", 1, [rollout("p", [1], parts={})])
    with pytest.raises(ValueError, match="expected correct, well-formed rollouts"):
        select_rollouts(rollout_files(tmp_path / "none", 1))
    with pytest.raises(ValueError, match="run the RL stage first"):
        rollout_files(tmp_path / "nowhere", 1)


@pytest.fixture
def fusion(tiny, easy_prompts, tmp_path):
    store(tmp_path / "rollouts", 1, [rollout(f"p{i}", [10 + i, tiny[1].tokenizer.end_id]) for i in range(5)])
    data = SftDataConfig(rollouts=str(tmp_path / "rollouts"), prompts=str(easy_prompts), direct_share=0.75)
    return open_samples(SftConfig(checkpoint="-", batch_size=8, data=data), tiny[1], DataFolders())


def test_fusion_mixes_modes_by_instruction(fusion, tiny):
    """Thinking samples carry the instruction and the sampled ids; direct ones neither, and end in the boxed reference."""
    tokenizer = tiny[1].tokenizer
    for step in range(4):
        rows = fusion(step)
        thinking = [row for row in rows if THINKING_INSTRUCTION in tokenizer.decode(row.prefix_ids)]
        direct = [row for row in rows if THINKING_INSTRUCTION not in tokenizer.decode(row.prefix_ids)]
        assert (len(thinking), len(direct)) == (2, 6)
        for row in thinking:
            number = row.completions[0][0] - 10
            assert f"Question {number}?" in tokenizer.decode(row.prefix_ids)
            assert row.completions[0] == [10 + number, tokenizer.end_id]
        for row in direct:
            number = tokenizer.decode(row.prefix_ids).partition("Question ")[2].partition("?")[0]
            assert tokenizer.decode(row.completions[0]) == f"\\boxed{{{int(number) % 10}}}"
            assert row.completions[0][-1] == tokenizer.end_id
        assert all([i.shape for i in row.images] == [(1, 3, 32, 32)] for row in rows)


def test_samples_are_a_function_of_the_step(fusion):
    once = [fusion(step) for step in range(3)]
    again = [fusion(step) for step in (2, 0, 1)]
    assert [r.prefix_ids for r in once[2]] == [r.prefix_ids for r in again[0]]
    assert [r.prefix_ids for r in once[0]] != [r.prefix_ids for r in once[1]]


def test_demonstrations_share_their_prompt(tiny, digits_folder):
    data = SftDataConfig(demonstrations=str(digits_folder / "demonstrations.jsonl"))
    rows = open_samples(SftConfig(checkpoint="-", batch_size=8, data=data), tiny[1], DataFolders())(0)
    tokenizer = tiny[1].tokenizer
    for row in rows:
        texts = [tokenizer.decode(completion) for completion in row.completions]
        assert len(set(texts)) == len(texts) >= 1
        assert len({text.partition("</think>")[2] for text in texts}) == 1  # one answer, several ways to it
        assert tiny[1].prompt([{"role": "user", "content": "x"}], Mode.think).ids[-3:] == list(row.prefix_ids)[-3:]


def test_an_update_of_more_rows_than_there_are_takes_each_once(tiny, tmp_path):
    """The report's batches of 1,024 on five rows would be two hundred passes, called one."""
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": str(n)}) + "\n" for n in range(5)))
    config = SftConfig(checkpoint="-", data=SftDataConfig(demonstrations=str(path)))
    rows = open_samples(config, tiny[1], DataFolders())(0)
    assert len({tuple(row.prefix_ids) for row in rows}) == len(rows) == 5


def test_rollouts_of_unknown_prompts_are_refused(tiny, easy_prompts, tmp_path):
    store(tmp_path / "rollouts", 1, [rollout("elsewhere", [1])])
    data = SftDataConfig(rollouts=str(tmp_path / "rollouts"), prompts=str(easy_prompts))
    with pytest.raises(ValueError, match=r"found no row for \['elsewhere'\]"):
        open_samples(SftConfig(checkpoint="-", data=data), tiny[1], DataFolders())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "found neither"),
        ({"demonstrations": "a", "rollouts": "b", "prompts": "c"}, "found both"),
        ({"rollouts": "b"}, "data.prompts"),
        ({"demonstrations": "a", "direct_share": 0.5}, "data.prompts"),
    ],
)
def test_contradictory_sources(data, message):
    with pytest.raises(ValueError, match=message):
        SftConfig(checkpoint="-", data=SftDataConfig(**data))


@pytest.mark.parametrize("said", [{}, {"mode": "auto"}])
def test_completions_with_a_judge_section_teach_mode_auto(tiny, tmp_path, said):
    """The prompt has our instruction, so that a policy learns the form before it is rewarded for it."""
    completions = [
        '<judge>{"requires_reasoning": true}</judge><think>1 and 1</think>\\boxed{2}',
        '<judge>{"requires_reasoning": false}</judge>\\boxed{2}',
    ]
    row = {"id": "d", "messages": [{"role": "user", "content": "1+1?"}], "completions": completions, **said}
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(json.dumps(row) + "\n")
    config = SftConfig(checkpoint="-", data=SftDataConfig(demonstrations=str(path)))
    (built,) = open_samples(config, tiny[1], DataFolders())(0)
    decode = tiny[1].tokenizer.decode
    assert decode(built.prefix_ids).count(AUTO_INSTRUCTION) == 1
    assert [decode(ids) for ids in built.completions] == completions


def test_mode_auto_without_a_judge_section_is_refused(tiny, tmp_path):
    row = {"messages": [{"role": "user", "content": "1+1?"}], "mode": "auto", "completions": ["<think>a</think>2"]}
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="expected a <judge> section at the beginning of each in mode auto"):
        open_samples(SftConfig(checkpoint="-", data=SftDataConfig(demonstrations=str(path))), tiny[1], DataFolders())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completions": []}, r"demonstrations\.jsonl:1: completions: expected a list of at least one text"),
        ({"completions": [5]}, r"demonstrations\.jsonl:1: completions: expected a list of at least one text"),
        ({"mode": "thinking"}, r"demonstrations\.jsonl:1: mode: expected think, direct or auto"),
        ({"messages": []}, "ends with a user message"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages: expected turns of .*found one of \['user'\]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "gone.png"}]}]},
            "gone.png: expected a file",
        ),
    ],
)
def test_bad_demonstrations_are_refused_before_training(tiny, tmp_path, change, message):
    row = {"id": "d", "mode": "think", "messages": [{"role": "user", "content": "x"}], "completions": ["y"]}
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(json.dumps(row | change) + "\n")
    with pytest.raises(ValueError, match=message):
        open_samples(SftConfig(checkpoint="-", data=SftDataConfig(demonstrations=str(path))), tiny[1], DataFolders())


def test_line_separators_inside_strings_do_not_split_rows(tiny, tmp_path):
    """U+2028 and U+0085 end a line for `str.splitlines`, not for JSONL."""
    text = "a\u2028b\x85c"
    store(tmp_path, 1, [rollout("p", [1], text=text)])
    path = tmp_path / "step_000001.jsonl"
    path.write_text(json.dumps(rollout("p", [1], text=text), ensure_ascii=False) + "\n", encoding="utf-8")
    assert select_rollouts(rollout_files(tmp_path, 1))[0].text == text
    from model.run.logs import cut_lines

    before = path.read_bytes()
    cut_lines(path, 1)
    assert path.read_bytes() == before
