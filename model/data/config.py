"""Settings of reading rows, shared by pre-training, SFT, RL and evaluation."""

from dataclasses import dataclass, field
from enum import Enum

from model.json_values import member
from model.run.config import OUTSIDE


class ReferenceForm(Enum):
    """How a reference column holds the answer. `auto` recognises the other forms where they are unmistakable."""

    auto = "auto"
    plain = "plain"
    gsm8k = "gsm8k"
    boxed = "boxed"
    answer_tag = "answer_tag"


class InstructionRule(Enum):
    """When thinking mode adds its instruction to a prompt. `auto`: where the prompt does not hold one already."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class TableConfig:
    """How files of rows with images are read; docs/data.md."""

    max_bad_rows: float = field(default=0.01, metadata=OUTSIDE)
    """rows that may be skipped because they cannot be used: a share of all below 1, a number from 1 on"""
    max_image_bytes: int = 32 * 2**20
    """largest image, as stored; never more than the default"""
    cache_mib: int = field(default=256, metadata=OUTSIDE)
    """memory for rows that are ready to be used again, mostly pixels"""
    id_column: str = ""
    """empty: id or index, else NAME-ROW"""
    image_column: str = ""
    """one image or a list; empty: the first of images, image, image_path"""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_rows < float("inf"):
            raise ValueError(f"data.max_bad_rows: expected 0 or more, found {self.max_bad_rows}")
        for name, least in (("max_image_bytes", 1), ("cache_mib", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}: expected at least {least}, found {getattr(self, name)}")


@dataclass
class ChatTableConfig(TableConfig):
    """How files of messages are read; docs/data.md."""

    question_column: str = ""
    """text, or chat messages; empty: messages, else a prompt that is messages, else question, problem, prompt"""
    reference_column: str = ""
    """a dot leads into an object; empty: the first of reference, answer, solution, reward_model.ground_truth,
    ground_truth"""
    reference_form: ReferenceForm = ReferenceForm.auto
    """how that column holds the answer: plain, behind #### (gsm8k), boxed, answer_tag; auto tells them apart"""
    instruction: InstructionRule = InstructionRule.auto
    """whether thinking mode adds its instruction: auto, where a prompt has none already; always; never"""
    dataset_column: str = ""
    """empty: dataset or data_source"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reference_form = member(ReferenceForm, self.reference_form, "data.reference_form")
        self.instruction = member(InstructionRule, self.instruction, "data.instruction")
