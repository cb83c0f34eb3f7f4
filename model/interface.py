"""The interface strings and token names: a checkpoint answers as intended only with exactly these.

All are the published model's but those of `Mode.auto`, which are ours. Sources: the model's public README (thinking
instruction), its chat template (system text), its tokenizer files (names).
"""

import hashlib
from enum import Enum

from model.json_values import member

THINKING_INSTRUCTION = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. "
    "The reasoning process MUST BE enclosed within <think> </think> tags. "
    "The final answer MUST BE put in \\boxed{}."
)
AUTO_INSTRUCTION = (
    "You FIRST judge whether the question requires a reasoning process. "
    'The judgment MUST BE enclosed within <judge> </judge> tags, as {"requires_reasoning": true} or '
    '{"requires_reasoning": false}. '
    "If it does, the reasoning process as an internal monologue MUST follow, enclosed within <think> </think> tags; "
    "if it does not, the answer follows directly. "
    "The final answer MUST BE put in \\boxed{}."
)
"""Ours: SAIL-RL (arXiv 2511.02280) publishes no prompt that we could read. A model that was trained with this text
answers as intended only with exactly this text."""
DEFAULT_SYSTEM_TEXT = "你是由抖音内容理解组开发的多模态大模型，英文名叫UniVL, 是一个有用无害的人工智能助手。"

SHA256 = {
    "thinking_instruction": "ce8dbcf37ba747f35b4951d2f267615c7621d8c4d20ffc9524202081ed98bf5f",
    "auto_instruction": "d8d921e4f964a47a9fba7ccc9268218137fbdf76db0c246f7c288e119ab664cc",
    "default_system_text": "6954e88e7e35548c871bf7b1c1a0d49bdda105b71958fe68db0d325ec1abeab6",
}

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
THINK_START, THINK_END = "<think>", "</think>"
JUDGE_START, JUDGE_END = "<judge>", "</judge>"
"""The tags of the section that comes first in `Mode.auto`. They are text, for the published vocabulary has no such
tokens."""

CONTROL_TOKENS = (
    END_OF_TEXT,
    IM_START,
    IM_END,
    THINK_START,
    THINK_END,
    IMAGE_START,
    IMAGE_END,
    IMAGE_CONTEXT,
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
"""Added tokens in the order of their ids. The think tags are written by the policy, so decoding keeps them."""


class Mode(Enum):
    """How a checkpoint is asked: `think` appends the published instruction, `direct` appends nothing, and `auto`
    appends `AUTO_INSTRUCTION`: the model judges first whether to think (SAIL-RL)."""

    think = "think"
    direct = "direct"
    auto = "auto"

    @property
    def instruction(self) -> str:
        """The text behind the last question; empty in direct mode."""
        return {Mode.think: THINKING_INSTRUCTION, Mode.auto: AUTO_INSTRUCTION}.get(self, "")

    @property
    def template_value(self) -> bool | str:
        """The value of the chat template's variable `thinking` that asks for this mode.

        It is not "auto": vLLM's server takes that word in a request for a value that was not given.
        """
        return "if_needed" if self is Mode.auto else self is Mode.think

    @classmethod
    def of(cls, given: "Mode | str") -> "Mode":
        """The mode that is meant, by itself or by its name. `ValueError` for anything else."""
        return member(cls, given, "mode")


def verify_interface_strings() -> None:
    """Raise `ValueError` if a string was altered; run by the processor and by a test."""
    for name, text in (
        ("thinking_instruction", THINKING_INSTRUCTION),
        ("auto_instruction", AUTO_INSTRUCTION),
        ("default_system_text", DEFAULT_SYSTEM_TEXT),
    ):
        found = hashlib.sha256(text.encode("utf-8")).hexdigest()
        if found != SHA256[name]:
            raise ValueError(f"{name}: expected sha256 {SHA256[name]}, found {found}; restore model/interface.py")
