"""The published model's interface strings and token names: a checkpoint answers as intended only with exactly these.

Sources: the model's public README (thinking instruction), its chat template (system text), its tokenizer files (names).
"""

import hashlib
from enum import Enum

from model.json_values import member

THINKING_INSTRUCTION = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. "
    "The reasoning process MUST BE enclosed within <think> </think> tags. "
    "The final answer MUST BE put in \\boxed{}."
)
DEFAULT_SYSTEM_TEXT = "你是由抖音内容理解组开发的多模态大模型，英文名叫UniVL, 是一个有用无害的人工智能助手。"

SHA256 = {
    "thinking_instruction": "ce8dbcf37ba747f35b4951d2f267615c7621d8c4d20ffc9524202081ed98bf5f",
    "default_system_text": "6954e88e7e35548c871bf7b1c1a0d49bdda105b71958fe68db0d325ec1abeab6",
}

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
THINK_START, THINK_END = "<think>", "</think>"

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
    """How a checkpoint is asked: `think` appends the published instruction, `direct` appends nothing."""

    think = "think"
    direct = "direct"

    @classmethod
    def of(cls, given: "Mode | str") -> "Mode":
        """The mode that is meant, by itself or by its name. `ValueError` for anything else."""
        return member(cls, given, "mode")


def verify_interface_strings() -> None:
    """Raise `ValueError` if a string was altered; run by the processor and by a test."""
    for name, text in (
        ("thinking_instruction", THINKING_INSTRUCTION),
        ("default_system_text", DEFAULT_SYSTEM_TEXT),
    ):
        found = hashlib.sha256(text.encode("utf-8")).hexdigest()
        if found != SHA256[name]:
            raise ValueError(f"{name}: expected sha256 {SHA256[name]}, found {found}; restore model/interface.py")
