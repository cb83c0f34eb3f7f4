"""Settings of reading rows, shared by pre-training, SFT, RL and evaluation."""

from collections.abc import Collection
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from model.json_values import member
from model.run.config import OUTSIDE

HELD_OUT = "evaluation"
"""Name of the report of held-out rows that cannot be used, beside those of sources."""
_WITH_SOURCES = ("max_bad_rows",)
"""Settings of tables that hold for streams too."""
VIDEO_DEADLINE_S = 120.0
"""Seconds of decoding after which a video is given up."""


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


class SourceKind(Enum):
    """How the rows of a source become training text. `auto` decides by the columns of each row."""

    auto = "auto"
    document = "document"
    chat = "chat"


class TooLong(Enum):
    """The fate of a row with more tokens than a micro-batch holds: it is a bad row, or its trained text is cut."""

    refuse = "refuse"
    cut = "cut"


@dataclass
class SourceConfig:
    """One source of a mixture; docs/data.md."""

    paths: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """files, folders or patterns below data.folder: .jsonl, .json, .tar, .parquet, .tsv, folders saved by `datasets`"""
    weight: float = 1.0
    """share of the stream, relative to the weights of the other sources"""
    max_epochs: float = 0.0
    """passes over its rows after which it ends and the other sources share its place; 0: it never ends"""
    kind: SourceKind = SourceKind.auto
    """document: text that follows images and prefix, without roles; chat: turns of user and assistant; auto: by its
    columns"""
    template: str = ""
    """question that makes a chat of a row which has only images and a text, such as a caption; empty: a document"""
    question_column: str = ""
    """empty: the first of the known columns that a row has"""
    answer_column: str = ""
    """empty: the first of the known columns that a row has"""
    image_column: str = ""
    """empty: images, image or image_path"""
    media: str = field(default="", metadata=OUTSIDE)
    """folder, below data.folder, that image and video files are named from; empty: the folder of the data file"""
    row_weights: str = field(default="", metadata=OUTSIDE)
    """file (.npy, one number of 0 or more a row) that says how often a pass holds each row on average; empty: once"""

    def __post_init__(self) -> None:
        self.kind = member(SourceKind, self.kind, "data.sources.NAME.kind")
        for name in ("weight", "max_epochs"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"data.sources.NAME.{name}: expected 0 or more, found {getattr(self, name)}")


@dataclass
class PackingConfig:
    """How rows of a stream are packed into micro-batches of engine.micro_batch_tokens."""

    candidates: int = 32
    """rows that wait in the buffer, for each micro-batch of a step: more waste less and take longer to come in"""
    max_wait: int = 64
    """steps after which a row that was passed over goes in before all others"""
    too_long: TooLong = TooLong.refuse
    """rule for a row with more tokens than a micro-batch holds: refuse counts it as bad, cut cuts its trained text"""

    def __post_init__(self) -> None:
        self.too_long = member(TooLong, self.too_long, "data.packing.too_long")
        for name in ("candidates", "max_wait"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.packing.{name}: expected at least 1, found {getattr(self, name)}")


@dataclass
class LoaderConfig:
    """How rows of a stream are read and decoded ahead of training."""

    workers: int = field(default=2, metadata=OUTSIDE)
    """processes that read and decode rows ahead; 0 does it between the steps"""
    ahead: int = field(default=2, metadata=OUTSIDE)
    """steps that are read ahead"""
    ahead_mib: int = field(default=4096, metadata=OUTSIDE)
    """memory for pixels of rows that are read ahead, beside those of the step that trains"""
    patience_s: float = field(default=300.0, metadata=OUTSIDE)
    """seconds without a row after which a worker is ended and replaced; more than a video may take"""
    index: str = field(default="", metadata=OUTSIDE)
    """folder of the indices of the files; empty: .sailvl2_index beside each file"""
    decode_all: bool = field(default=False, metadata=OUTSIDE)
    """decode every image once while the index is made, so that damaged ones are bad rows before training begins"""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("ahead", 1), ("ahead_mib", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.loader.{name}: expected at least {least}, found {getattr(self, name)}")
        least = 1.25 * VIDEO_DEADLINE_S
        if self.workers and not least <= self.patience_s < float("inf"):
            raise ValueError(
                f"data.loader.patience_s: expected at least {least:g}, because a row with a video may take "
                f"{VIDEO_DEADLINE_S:g} seconds, found {self.patience_s:g}"
            )


@dataclass
class StreamConfig:
    """Several sources as one stream of packed rows, in pre-training and SFT; docs/data.md."""

    folder: str = field(default="", metadata=OUTSIDE)
    """folder that the paths of data.sources are relative to; empty: the working directory"""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """sources by name, such as {captions: {paths: [captions.jsonl], weight: 3}}"""
    source_weights: str = field(default="", metadata=OUTSIDE)
    """JSON file with an object of names and weights, which replace those of data.sources"""
    micro_batches_per_step: int = 0
    """micro-batches of engine.micro_batch_tokens packed tokens in an update; needed with data.sources"""
    packing: PackingConfig = field(default_factory=PackingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    def check_stream(self, instead: Collection[str]) -> None:
        """`ValueError` for settings that contradict each other, and for those that change nothing.

        `instead`: settings that name other data, which the caller compares with `sources` itself.
        """
        of_streams = {one.name for one in fields(StreamConfig)}
        given = [one.name for one in fields(self) if getattr(self, one.name) != _default(one)]
        if not self.sources:
            if alone := [name for name in given if name in of_streams]:
                raise ValueError(f"data.{alone[0]}: expected data.sources beside it, found none; name the sources")
            return
        if idle := [name for name in given if name not in {*of_streams, *instead, *_WITH_SOURCES}]:
            raise ValueError(
                f"data.{idle[0]}: expected none with data.sources, found {getattr(self, idle[0])!r:.80}; it has no "
                "effect there: each source has columns and a template of its own (docs/data.md)"
            )
        for name, source in self.sources.items():
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"data.sources: expected names of letters, digits, _ and -, found {name!r}")
            if name == HELD_OUT:
                raise ValueError(f"data.sources: expected another name than {name}, which held-out rows have")
            if not source.paths:
                raise ValueError(f"data.sources.{name}.paths: expected at least one file, found none")
        if self.micro_batches_per_step < 1:
            raise ValueError(
                "data.micro_batches_per_step: expected at least 1 with data.sources, found "
                f"{self.micro_batches_per_step}; it is the size of an update in micro-batches"
            )

    def held_out(self, path: str, name: str) -> SourceConfig:
        """Held-out rows at `path`, read as the source `name` is, or as all are where no name is given and they agree;
        then their images are named from the folder of `path`.

        `ValueError` for a name that no source has.
        """
        if name and not self.sources:
            raise ValueError(f"evaluation.source: expected data.sources beside it, found {name!r} alone")
        if name and name not in self.sources:
            raise ValueError(f"evaluation.source: expected one of {', '.join(self.sources)}, found {name!r}")
        named = [self.sources[name]] if name else [*self.sources.values()]
        media = str(Path(self.folder, named[0].media)) if name and named[0].media else ""
        forms = [replace(one, paths=[path], weight=1.0, max_epochs=0.0, row_weights="", media=media) for one in named]
        return forms[0] if forms and all(one == forms[0] for one in forms) else SourceConfig(paths=[path])


def _default(one: "Field[Any]") -> object:
    return one.default if one.default_factory is MISSING else one.default_factory()
