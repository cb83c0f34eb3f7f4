"""Settings of `python -m sft.prepare`: what LongCoT SFT, think-fusion SFT and RL are trained on."""

import re
from dataclasses import dataclass, field
from enum import Enum

from model.data.config import ChatTableConfig
from model.json_values import JsonObject, member
from model.run.config import OUTSIDE


@dataclass
class DemonstrationTableConfig(ChatTableConfig):
    """How files of demonstrations are read; docs/sft.md lists the shapes of rows."""

    completion_column: str = ""
    """one text, a list, or messages; empty: completions or completion, else what docs/sft.md says"""
    thinking_column: str = ""
    """the thought before an answer; empty: thinking, reasoning, reasoning_content, cot or rationale"""


def _require_paths(config: object, *names: str) -> None:
    for name in names:
        found = getattr(config, name)
        if not found or (isinstance(found, list) and not all(found)):
            raise ValueError(f"{name}: expected {'files' if isinstance(found, list) else 'a path'}, found nothing")


def _check_hints(hints: list[str]) -> None:
    for hint in hints:
        try:
            re.compile(hint)
        except re.error as error:
            raise ValueError(f"hints: expected regular expressions, found {hint!r:.80}: {error}") from None


def _check_least(config: object, least: dict[str, int]) -> None:
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name}: expected at least {bound}, found {getattr(config, name)}")


@dataclass
class LongCotConfig:
    """Cleaning of Chain-of-Thought demonstrations (SAIL-VL2 report, section 4.1.3); docs/thinking-data.md.

    The report names the steps and no thresholds: those here are ours.
    """

    rows: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """one or several files or folders of demonstrations, in any shape that docs/sft.md lists"""
    out: str = field(default="", metadata=OUTSIDE)
    """folder to write"""
    split_solutions: bool = True
    """make a thought of a solution without think tags that ends with its answer: in a box, in answer tags, behind ####
    or behind "the answer is" on a line of its own"""
    hints: list[str] = field(default_factory=list)
    """further regular expressions of instructions that are cut from the beginning and the end of questions"""
    max_overlap: float = 0.8
    """rows whose answer repeats a larger share of the thought's tokens are dropped; 1 keeps all"""
    min_thought_tokens: int = 1
    """thoughts with fewer tokens (words, numbers and signs) are dropped"""
    max_thought_tokens: int = 0
    """thoughts with more tokens are dropped; 0: no limit"""
    verifier: str = ""
    """judges the answers of rows that have a reference, and wrong ones are dropped; empty: none is judged"""
    long_answer_tokens: int = 32
    """answers with more tokens are long: a judge shortens them where there is one"""
    drop_long_answers: bool = False
    """drop rows whose answer is long and could not be shortened"""
    judge: JsonObject = field(default_factory=dict)
    """endpoint that shortens long answers, such as {base_url: http://localhost:8000/v1, model: NAME}; empty: none"""
    bucket_edges: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024, 2048, 4096])
    """tokens of a thought at which the next bucket of lengths begins"""
    bucket_share: float = 1.0
    """largest share of the kept rows that one bucket may hold; rows beyond it are dropped at random; 1: no balancing"""
    seed: int = 0
    """seed of the rows that balancing drops"""
    data: DemonstrationTableConfig = field(default_factory=DemonstrationTableConfig)

    def __post_init__(self) -> None:
        _require_paths(self, "rows", "out")
        _check_hints(self.hints)
        least = {"min_thought_tokens": 0, "max_thought_tokens": 0, "long_answer_tokens": 1, "seed": 0}
        _check_least(self, least)
        for name in ("max_overlap", "bucket_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected above 0 and at most 1, found {getattr(self, name)}")
        if sorted({*self.bucket_edges}) != self.bucket_edges or min(self.bucket_edges, default=1) < 1:
            raise ValueError(f"bucket_edges: expected rising numbers from 1, found {self.bucket_edges}")


@dataclass
class FusionConfig:
    """The mixture of think-fusion SFT (SAIL-VL2 report, section 4.2.4); docs/thinking-data.md."""

    rollouts: str = field(default="", metadata=OUTSIDE)
    """folder of rollouts that an RL run stored; correct, well-formed and finished ones become thinking rows"""
    prompts: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """the prompts that the RL run was trained on, with their images: its `prompts`, then those of its data.also"""
    direct: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """one or several files or folders of direct answers, in any shape that docs/sft.md lists"""
    out: str = field(default="", metadata=OUTSIDE)
    """folder to write"""
    direct_share: float = 0.9
    """share of direct rows among all that are written; the report's is 0.9"""
    num_rows: int = 0
    """rows to write, at most; 0: as many as the share allows"""
    last_rollout_steps: int = 20
    """how many of the RL run's last steps to take rollouts from"""
    min_parts: dict[str, float] = field(default_factory=dict)
    """least value of further reward parts of a rollout, such as {reasoning: 1.0} for a judge of the thought"""
    max_per_prompt: int = 0
    """rollouts of one prompt to keep, at most, drawn at random; 0 keeps all"""
    refuse_tagged: bool = False
    """refuse direct rows with think tags instead of dropping and counting them"""
    seed: int = 0
    """seed of what is drawn, and of the order of the rows"""
    data: DemonstrationTableConfig = field(default_factory=DemonstrationTableConfig)
    """how the direct rows are read"""
    prompt_data: ChatTableConfig = field(default_factory=ChatTableConfig)
    """how the prompts are read"""

    def __post_init__(self) -> None:
        _require_paths(self, "out")
        if not 0 <= self.direct_share <= 1:
            raise ValueError(f"direct_share: expected a share between 0 and 1, found {self.direct_share}")
        if self.direct_share < 1:
            _require_paths(self, "rollouts", "prompts")
        if self.direct_share > 0:
            _require_paths(self, "direct")
        _check_least(self, {"num_rows": 0, "last_rollout_steps": 1, "max_per_prompt": 0, "seed": 0})


class Others(Enum):
    """The fate of rows that cannot be rewritten."""

    keep = "keep"
    drop = "drop"


@dataclass
class FreeResponseConfig:
    """Multiple choice with numbers or formulas as options, rewritten as free response; docs/thinking-data.md."""

    prompts: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """one or several files or folders of prompts with references"""
    out: str = field(default="", metadata=OUTSIDE)
    """folder to write"""
    options_column: str = ""
    """a list of texts, or texts by letter; empty: options or choices, else the lines of the question"""
    dataset_suffix: str = "-free_response"
    """put behind the data set of a rewritten row, so that reward.datasets does not give it the verifier of letters"""
    others: Others = Others.keep
    """rows that cannot be rewritten: keep leaves them as they are, drop drops them"""
    hints: list[str] = field(default_factory=list)
    """further regular expressions of instructions that are cut from the beginning and the end of rewritten questions"""
    data: ChatTableConfig = field(default_factory=ChatTableConfig)

    def __post_init__(self) -> None:
        self.others = member(Others, self.others, "others")
        _require_paths(self, "prompts", "out")
        _check_hints(self.hints)
