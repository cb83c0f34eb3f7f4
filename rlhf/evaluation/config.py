"""The settings of `python -m rlhf.evaluate`."""

import re
from dataclasses import dataclass, field

from model.engine.config import Device
from model.json_values import member
from model.run.config import OUTSIDE
from rewards.config import DEFAULT_REQUESTS_PER_MINUTE, RewardConfig
from rlhf.config import BOTH_MODES, DataConfig, EvaluationMode, checked_modes
from rollouts.config import RolloutConfig


@dataclass
class JudgeConfig:
    """A language model at an endpoint that speaks OpenAI's chat completions protocol."""

    base_url: str = ""
    """address such as http://localhost:8000/v1; empty: there is no judge"""
    model: str = ""
    """name of the judge at that address"""
    api_key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the key; empty: none is sent"""
    request_seconds: float = 60.0
    """limit of one request"""
    retries: int = 3
    """further requests after one that failed"""
    requests_per_minute: float = DEFAULT_REQUESTS_PER_MINUTE
    """most requests in a minute"""
    concurrency: int = 8
    """requests at the same time"""
    cache: str = field(default="", metadata=OUTSIDE)
    """folder that keeps verdicts; empty: beside the result"""

    def __post_init__(self) -> None:
        if self.base_url and not self.model:
            raise ValueError("judge.model: expected the name of the judge at judge.base_url, found nothing")
        if self.model and not self.base_url:
            raise ValueError("judge.base_url: expected the address of judge.model, found nothing")
        if self.base_url and not re.match(r"https?://[^\s/@?#]+(/[^\s@?#]*)?$", self.base_url):
            found = "another form" if "@" in self.base_url else repr(self.base_url)
            raise ValueError(f"judge.base_url: expected an address such as http://localhost:8000/v1, found {found}")
        for name, least in (("concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"judge.{name}: expected at least {least}, found {getattr(self, name)}")
        for name in ("request_seconds", "requests_per_minute"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"judge.{name}: expected a number above 0, found {getattr(self, name)}")


@dataclass
class EvaluationDataConfig(DataConfig):
    """How files of prompts, and tables of benchmarks, are read."""

    folder: str = field(default="", metadata=OUTSIDE)
    """folder of VLMEvalKit's TSV files; `data=FOLDER` says the same"""
    predictions: str = field(default="", metadata=OUTSIDE)
    """predictions that another program stored, which are scored instead of asking a checkpoint: a TSV or JSONL file
    with columns index and prediction, or a folder of *FILE.tsv for several benchmarks"""
    forms: str = field(default="", metadata=OUTSIDE)
    """YAML file with wordings of questions in place of ours; docs/benchmarks.md"""


@dataclass
class EvaluateConfig:
    checkpoint: str = ""
    """folder of the model to evaluate"""
    prompts: str = ""
    """JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`; images lie beside the file or in it"""
    benchmarks: list[str] = field(default_factory=list)
    """benchmarks by name instead of prompts, such as [mmstar, chartqa]; their tables lie in data.folder
    (docs/benchmarks.md)"""
    output: str = ""
    """NAME.json for the result; every answer stands beside it in NAME.answers.jsonl, and images that prompts hold as
    bytes in NAME.media. Empty: a summary is printed and nothing is kept; -: the result is printed as JSON to stdout,
    and all else to stderr"""
    modes: list[EvaluationMode] = field(default_factory=lambda: list(BOTH_MODES))
    """how every prompt is answered, one after the other: some of think, think_sampled, direct and auto"""
    num_prompts: int = 0
    """use the first so many rows; 0 uses all"""
    num_samples: int = 1
    """sampled thinking completions per prompt; with several, pass@k is reported too"""
    group_by: str = ""
    """column whose values split the accuracies: each value gets its own; empty: none"""
    seed: int = 0
    """seed of the sampled evaluation"""
    num_threads: int = 2
    """CPU threads inside an operation"""
    device: Device = Device.auto
    """where to run: the GPU if there is one, in bfloat16, or what is named"""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """the language model that judges answers of benchmarks"""
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)

    def __post_init__(self) -> None:
        self.device = member(Device, self.device, "device")
        self._check_inputs()
        self.modes = checked_modes(self.modes, "modes")
        for name, least in (("num_prompts", 0), ("num_samples", 1), ("seed", 0), ("num_threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")

    def _check_inputs(self) -> None:
        """`ValueError` where it is not clear what is asked, or of whom."""
        if self.prompts and self.benchmarks:
            raise ValueError(f"prompts, benchmarks: expected one of both, found {self.prompts} and {self.benchmarks}")
        if not self.prompts and not self.benchmarks:
            raise ValueError("prompts: expected a path, found nothing; or name benchmarks=[...] (docs/benchmarks.md)")
        if bool(self.checkpoint) == bool(self.data.predictions):
            found = "both" if self.checkpoint else "neither"
            raise ValueError(f"checkpoint: expected a path, or data.predictions instead, found {found}")
        if self.benchmarks and not self.data.folder:
            raise ValueError(
                "data.folder: expected the folder of VLMEvalKit's TSV files with benchmarks, found nothing; give it as "
                "data=FOLDER"
            )
        for name in () if self.benchmarks else ("folder", "predictions", "forms"):
            if value := getattr(self.data, name):
                raise ValueError(f"data.{name}: expected benchmarks beside it, found {value!r} alone")
        if self.data.predictions and (self.num_prompts or self.num_samples != 1):
            raise ValueError(
                "num_prompts, num_samples: expected 0 and 1 with data.predictions, of which every one is scored, found "
                f"{self.num_prompts} and {self.num_samples}"
            )
        if self.judge.base_url and not self.benchmarks:
            raise ValueError(
                f"judge.base_url: {self.judge.base_url!r} judges benchmarks, of which none are named; a judge of "
                "prompts is a reward function (docs/rewards.md)"
            )
        if self.benchmarks and self.group_by:
            raise ValueError(
                f"group_by: expected none with benchmarks, found {self.group_by!r}; each has parts of its own"
            )
