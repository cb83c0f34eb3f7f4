"""Rows of other projects become the samples that our own rows give: ids, mode, images, one sample a turn."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.sources import DataFolders
from model.interface import THINKING_INSTRUCTION, Mode
from sft.config import SftDataConfig
from sft.data import Demonstrations
from tests.rlhf.prompt_data import base64_of, png, write_jsonl

THOUGHT = "<think>It is.</think>\\boxed{2}"


def say(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def llava(speaker: str, value: str) -> dict:
    return {"from": speaker, "value": value}


ASKED, SAID = say("user", "<image>1+1?"), say("assistant", THOUGHT)
IMAGE = {"image": "a.png"}

SHAPES = {
    "ours": {"messages": [ASKED], "completions": [THOUGHT], "mode": "think", **IMAGE},
    "ours without mode": {"messages": [ASKED], "completions": [THOUGHT], **IMAGE},
    "one text": {"question": "1+1?", "completions": THOUGHT, **IMAGE},
    "OpenAI": {"messages": [ASKED, SAID], **IMAGE},
    "OpenAI parts": {
        "messages": [
            say("user", [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "1+1?"}]),
            say("assistant", [{"type": "text", "text": THOUGHT}]),
        ]
    },
    "OpenAI bytes": {
        "messages": [
            say(
                "user",
                [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(png(0))}"}},
                    {"type": "text", "text": "1+1?"},
                ],
            ),
            say("assistant", [{"type": "text", "text": THOUGHT}]),
        ]
    },
    "LLaVA": {"conversations": [llava("human", "<image>\n1+1?"), llava("gpt", THOUGHT)], **IMAGE},
    "ShareGPT": {"conversations": [llava("user", "1+1?"), llava("assistant", THOUGHT)], "images": ["a.png"]},
    "TRL texts": {"prompt": "1+1?", "completion": THOUGHT, **IMAGE},
    "TRL messages": {"prompt": [ASKED], "completion": [SAID], **IMAGE},
    "thought and answer": {"question": "1+1?", "thinking": "It is.", "answer": 2, **IMAGE},
    "thought and raw answer": {"problem": "1+1?", "cot": "<think>It is.</think>", "solution": "So.\n#### 2", **IMAGE},
    "solution with a thought": {"problem": "1+1?", "solution": THOUGHT, "answer": "2", **IMAGE},
    "thought of a message": {
        "messages": [ASKED, {**say("assistant", "\\boxed{2}"), "reasoning_content": "It is."}],
        **IMAGE,
    },
    "messages before a text": {"prompt": [ASKED], "question": "no", "completion": [SAID], **IMAGE},
    "instruction in the prompt": {"messages": [say("user", f"<image>1+1? {THINKING_INSTRUCTION}"), SAID], **IMAGE},
}


@pytest.fixture
def opened(tiny, tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))

    def open_rows(rows: list[dict], parquet: bool = False, **data) -> Demonstrations:
        path = tmp_path / "rows.parquet"
        if parquet:
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path = write_jsonl(tmp_path / "rows.jsonl", rows)
        return Demonstrations(str(path), SftDataConfig(**data), tiny[1], DataFolders(tmp_path / "media"))

    return open_rows


@pytest.fixture
def texts(tiny):
    """(prompt, completions) of a sample as text."""

    def decode(source: Demonstrations, index: int = 0) -> tuple[str, list[str]]:
        row, decoder = source.build(index), tiny[1].tokenizer
        return decoder.decode(row.prefix_ids), [decoder.decode(completion) for completion in row.completions]

    return decode


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_sample_of_our_own(opened, tiny, shape, parquet):
    found = opened([SHAPES[shape]], parquet)
    row = found.build(0)
    messages = [say("user", [{"type": "image", "image": "a.png"}, {"type": "text", "text": "1+1?"}])]
    prompt = tiny[1].prompt(messages, Mode.think, found.items[0].chat.file.parent)
    assert row.prefix_ids == prompt.ids
    assert row.completions == [tiny[1].completion(THOUGHT)]
    assert [image.shape for image in row.images] == [(1, 3, 32, 32)]
    assert found.ids == ["rows-1"]


def test_each_turn_of_a_conversation_is_a_sample(opened, texts):
    turns = [
        say("system", "Be brief."),
        say("user", "Look."),
        say("assistant", "A dot."),
        say("user", f"How many? {THINKING_INSTRUCTION}"),
        say("assistant", THOUGHT),
        say("user", "Sure?"),
        say("assistant", "Yes."),
    ]
    found = opened([{"id": "c", "messages": turns, "images": ["a.png"]}])
    assert found.ids == ["c", "c/2", "c/3"]
    assert [sample.mode for sample in found.items] == [Mode.direct, Mode.think, Mode.direct]
    asked = [texts(found, index)[0] for index in range(3)]
    assert [texts(found, index)[1][0] for index in range(3)] == ["A dot.", THOUGHT, "Yes."]
    assert [text.count(THINKING_INSTRUCTION) for text in asked] == [0, 1, 0]
    assert all("Be brief." in text for text in asked) and "Sure?" not in asked[1] and THOUGHT in asked[2]
    assert all(len(found.build(index).images) == 1 for index in range(3))  # before the first user's text
    said = "\n".join(found.described())
    assert "1 rows (3 samples, " in said and "1 rows have several turns of the assistant" in said


def test_what_was_inferred_is_said(opened):
    rows = [
        {"id": "a", "question": "1+1?", "answer": "A long answer."},
        {"id": "a", "question": "1+1?", "answer": "<think>\n\n</think>\n\nTwo."},
        {"question": "1+1?", "answer": "<think>So.</think>Two."},
    ]
    found = opened(rows)
    assert found.ids == ["a", "a#2", "rows-3"]
    assert [(sample.mode, sample.completions) for sample in found.items] == [
        (Mode.direct, ["A long answer."]),
        (Mode.direct, ["Two."]),
        (Mode.think, ["<think>So.</think>Two."]),
    ]
    lines = found.described()
    assert lines[0].endswith("question <- question, answer <- answer, id <- id")
    assert lines[1:] == [
        "data.demonstrations: 2 rows say no mode and have no thought: taken as direct",
        "data.demonstrations: 1 rows hold a blank thought, which is left out",
        "data.demonstrations: 1 rows share their id with an earlier row; a number tells them apart",
        "data.demonstrations: 1 rows say no mode and have a thought: taken as think",
        "data.demonstrations: 1 rows of mode think have no \\boxed answer, which the instruction asks for",
    ]


def test_several_columns_of_a_question_or_an_answer_count_as_used(opened, texts):
    alpaca = {"instruction": "Translate.", "input": "cat", "output": "chat"}
    thought = {"question": "1+1?", "prompt": "unused", "thinking": "It is.", "answer": "2"}
    first, second = opened([alpaca]), opened([thought])
    assert "Translate.\ncat" in texts(first)[0] and "1+1?" in texts(second)[0]
    assert first.described()[0].endswith("question <- instruction and input, answer <- output")
    assert second.described()[0].endswith("question <- question, answer <- thinking and answer; not used: prompt")


def test_columns_may_be_named(opened, texts):
    row = {"q": "1+1?", "why": "It is.", "answer": "2", "best": ["ignored"], "worst": "Three."}
    assert texts(opened([row], question_column="q", thinking_column="why"))[1][0].startswith(THOUGHT)
    assert texts(opened([row], question_column="q", completion_column="worst"))[1][0].startswith("Three.")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [say("user", "x")]}, r"expected a column of completions, .* found \['messages'\]"),
        ({"messages": [say("user", "x"), say("assistant", "")]}, "expected the assistant to say a text, found ''"),
        (
            {"messages": [say("user", "x"), say("assistant", [{"type": "image"}])]},
            "expected the assistant to say a text",
        ),
        ({"messages": [say("user", "x"), say("tool", "y"), say("assistant", "z")]}, "found one of 'tool'"),
        (
            {"messages": [say("user", "x"), {**say("assistant", "z"), "tool_calls": [{"id": 1}]}]},
            "expected turns without tool_calls",
        ),
        (
            {"messages": [{"role": "human", "content": "q"}]},
            "expected turns of user, assistant, system, found one of 'h",
        ),
        ({"conversations": [llava("gpt", "x")]}, "expected a list that ends with a user message"),
        ({"conversations": [llava("human", "<image>x"), llava("gpt", "y")]}, "images: expected 1 for the places"),
        ({"conversations": ["x"]}, "conversations: expected objects with role and content, found 'x'"),
        ({"question": "x", "cot": "a<think>b", "answer": "2"}, "without think tags in it"),
        ({"question": "x", "cot": " ", "answer": "2"}, "cot: expected a text, found ' '"),
        ({"question": "x", "completions": ["a", "<think>b</think>c"]}, "where some completions have a thought"),
        ({"question": "x", "completions": ["a"], "mode": "both"}, "mode: expected think, direct or auto, found 'both'"),
        ({"completions": ["a"]}, "nor is there a column question"),
        ({"prompt": 3, "completion": [say("assistant", "a")]}, "prompt: expected text or messages, found 3"),
        (
            {"question": "x", "answer": "y" * 9000},
            "expected at most the model's positions = 512 tokens, found more in 9",
        ),
        ({"question": "x", "completions": ["\ud800"]}, "UTF-8"),
    ],
)
def test_rows_without_a_known_shape_say_what_was_expected(opened, row, said):
    with pytest.raises(ValueError, match=said):
        opened([row])


def test_a_table_of_tabs_is_read_too(tiny, tmp_path, texts):
    path = tmp_path / "rows.tsv"
    path.write_text(f"index\tquestion\tanswer\n1\t1+1?\t{THOUGHT}\n")
    found = Demonstrations(str(path), SftDataConfig(), tiny[1], DataFolders())
    assert found.ids == ["1"] and texts(found)[1] == [THOUGHT]
