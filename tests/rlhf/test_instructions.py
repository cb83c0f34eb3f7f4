"""A thinking instruction that a prompt holds already is not given twice, and nothing else is touched."""

import json

import pytest

from model.data.config import InstructionRule
from model.data.sources import DataFolders
from model.interface import AUTO_INSTRUCTION, THINKING_INSTRUCTION, Mode
from rlhf.config import DataConfig
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from tests.rlhf.prompt_data import png, write_jsonl

OWN = "Reason between <think> and </think>, then put the answer into \\boxed{}."
R1 = "The reasoning and the answer are enclosed within <think> </think> and <answer> </answer> tags."


def chat(*turns: tuple[str, object]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture
def opened(tiny, tmp_path):
    def open_rows(prompts: list, mode: Mode = Mode.think, **data) -> PromptSet:
        (tmp_path / "a.png").write_bytes(png(0))
        rows = [{"prompt": prompt, "answer": "2", "data_source": "x"} for prompt in prompts]
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        config = RolloutConfig(max_prompt_tokens=400, max_completion_tokens=16)
        return PromptSet(path, tiny[1], mode, config, DataConfig(**data), DataFolders())

    return open_rows


def prompt_text(prompts: PromptSet, tiny, index: int = 0, mode: Mode = Mode.think) -> str:
    return tiny[1].tokenizer.decode(prompts.by_id(prompts.ids[index], mode).tokens.ids)


@pytest.mark.parametrize(
    "content",
    [
        f"1+1? {THINKING_INSTRUCTION}",
        f"1+1?\n{THINKING_INSTRUCTION}\n",
        [{"type": "text", "text": f"1+1? {THINKING_INSTRUCTION}"}],
        [{"type": "text", "text": "1+1?"}, {"type": "text", "text": THINKING_INSTRUCTION}],
    ],
)
def test_the_published_instruction_at_the_end_is_as_if_the_mode_gave_it(opened, tiny, content):
    """Ids are those of the plain question in both modes: the instruction's think tags are tokens, not text."""
    found, plain = opened([chat(("user", content))]), opened([chat(("user", "1+1?"))])
    for mode in Mode:
        assert found.by_id(found.ids[0], mode).tokens.ids == plain.by_id(plain.ids[0], mode).tokens.ids
    assert prompt_text(found, tiny).count(THINKING_INSTRUCTION) == 1
    assert "1 prompts end with the thinking instruction" in "\n".join(found.described())


def test_our_instruction_of_mode_auto_at_the_end_is_as_if_the_mode_gave_it(opened, tiny):
    found, plain = opened([chat(("user", f"1+1? {AUTO_INSTRUCTION}"))]), opened([chat(("user", "1+1?"))])
    for mode in Mode:
        assert found.by_id(found.ids[0], mode).tokens.ids == plain.by_id(plain.ids[0], mode).tokens.ids
    assert prompt_text(found, tiny, mode=Mode.auto).count(AUTO_INSTRUCTION) == 1


def test_a_prompt_that_asks_for_a_thought_in_its_own_words_is_a_bad_row_in_mode_auto(opened):
    own = "1+1? Think within <think> and </think>, then answer in \\boxed{}."
    with pytest.raises(ValueError, match="expected a prompt that mode=auto can add its instruction to"):
        opened([chat(("user", own))], mode=Mode.auto)
    judged = opened([chat(("user", f"{own} Say first in <judge> whether you must think."))], mode=Mode.auto)
    assert judged[0].mode is Mode.auto and not judged.items[0].adds_instruction


def test_verls_layout_keeps_image_system_text_and_one_instruction(tiny, tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    row = {
        "data_source": "hiyouga/geometry3k",
        "prompt": chat(("system", "Be brief."), ("user", f"<image>Find x. {THINKING_INSTRUCTION}")),
        "images": ["a.png"],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 0, "answer": "3", "question": "<image>Find x."},
        "problem": "another text",
    }
    path = write_jsonl(tmp_path / "verl.jsonl", [row])
    config = RolloutConfig(max_prompt_tokens=200, max_completion_tokens=16)
    prompts = PromptSet(path, tiny[1], Mode.think, config)
    text = prompt_text(prompts, tiny)
    assert text.count(THINKING_INSTRUCTION) == 1 and "another text" not in text
    assert text.index("Be brief.") < text.index("Find x.") < text.index(THINKING_INSTRUCTION)
    assert prompts[0].prompt.reference == "3" and len(prompts[0].images) == 1
    assert prompts.described()[0] == (
        f"prompts: 1 rows (median {prompts.length(0)} tokens, longest {prompts.length(0)}), question <- prompt, answer <- "
        "reward_model.ground_truth, images <- images, data set <- data_source; not used: ability, extra_info, problem"
    )


@pytest.mark.parametrize(
    "prompt", [chat(("user", f"1+1? {OWN}")), chat(("system", OWN), ("user", "1+1?")), f"1+1? {OWN}"]
)
def test_an_instruction_in_other_words_is_left_alone_and_none_is_added(opened, tiny, prompt):
    found = opened([prompt, chat(("user", "2+2?"))])
    assert THINKING_INSTRUCTION not in prompt_text(found, tiny) and OWN in prompt_text(found, tiny)
    assert THINKING_INSTRUCTION in prompt_text(found, tiny, 1)
    assert any("1 prompts ask for <think> and \\boxed in their own words" in line for line in found.described())


@pytest.mark.parametrize(
    "prompt",
    [
        chat(("system", R1), ("user", "1+1?")),  # it asks for tags, the published one for a box
        chat(("user", "1+1? Put the final answer into \\boxed{}.")),  # it asks for no thought
        chat(("user", f"1+1? {OWN}"), ("assistant", "2"), ("user", "2+2?")),  # an earlier turn
        chat(("user", "What does <think> mean in a box?")),
    ],
)
def test_what_asks_for_less_gets_the_published_instruction(opened, tiny, prompt):
    found = opened([prompt])
    assert prompt_text(found, tiny).count(THINKING_INSTRUCTION) == 1
    assert len(found.described()) == 1


def test_the_rule_may_be_set(opened, tiny):
    twice = f"1+1? {THINKING_INSTRUCTION}"
    assert prompt_text(opened([twice], instruction=InstructionRule.always), tiny).count("You FIRST think") == 2
    assert prompt_text(opened([twice], instruction=InstructionRule.never), tiny).count("You FIRST think") == 1
    assert "You FIRST" not in prompt_text(opened(["1+1?"], instruction=InstructionRule.never), tiny)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "P?", "prompt": chat(("system", "S."), ("user", "Q?"))}, ("S.", "Q?")),
        ({"question": "P?", "prompt": chat(("user", "Q?"))}, ("Q?",)),
        ({"problem": "P?", "prompt": "Q?"}, ("P?",)),
        ({"problem": "P?", "prompt": []}, ("P?",)),
        ({"problem": "P?", "prompt": chat(("user", "Q?")), "messages": chat(("user", "M?"))}, ("M?",)),
    ],
)
def test_messages_go_before_a_text(tiny, tmp_path, row, said):
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, "answer": "2"}])
    limits = RolloutConfig(max_prompt_tokens=90, max_completion_tokens=16)
    text = prompt_text(PromptSet(path, tiny[1], Mode.direct, limits), tiny)
    assert [part for part in ("S.", "P?", "Q?", "M?") if part in text] == list(said)
    if "problem" in row:
        text = prompt_text(PromptSet(path, tiny[1], Mode.direct, limits, DataConfig(question_column="problem")), tiny)
        assert "P?" in text and "S." not in text


def test_references_of_mixed_forms_are_counted_and_said(tiny, tmp_path):
    answers = ["We add.\n#### 2", {"ground_truth": "2", "style": "rule"}, "2", "\\boxed{1} or \\boxed{2}"]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"problem": "1+1?", "answer": answer} for answer in answers])
    prompts = PromptSet(path, tiny[1], Mode.think, RolloutConfig(max_prompt_tokens=90, max_completion_tokens=16))
    assert [row.prompt.reference for row in prompts.items] == ["2", "2", "2", "\\boxed{1} or \\boxed{2}"]
    assert prompts.items[0].prompt.meta["answer"] == json.loads(json.dumps(answers[0]))  # as a TRL function gets it
    assert prompts.described()[1:] == [
        "prompts: references read: 1 as `#### ANSWER`, 1 as `{ground_truth: ANSWER}`; data.reference_form=plain takes "
        "them as they are",
        "prompts: references: 1 hold ####, \\boxed or <answer> in a way that is not clear, and are taken as they are; "
        "data.reference_form=gsm8k, boxed or answer_tag reads them",
    ]


def test_a_reference_that_cannot_be_read_is_no_fault_where_none_is_needed(tiny, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"problem": "1+1?", "answer": True}])
    limits = RolloutConfig(max_prompt_tokens=90, max_completion_tokens=16)
    assert len(PromptSet(path, tiny[1], Mode.think, limits, needs_reference=lambda columns: False)) == 1
    with pytest.raises(ValueError, match="reference: expected str, found True"):
        PromptSet(path, tiny[1], Mode.think, limits)
