"""Settings of reading rows, shared by pre-training, SFT, RL and evaluation."""

from dataclasses import dataclass, field

from model.run.config import OUTSIDE


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
    """text, or chat messages; empty: the first of messages, question, problem, prompt"""
    reference_column: str = ""
    """a dot leads into an object; empty: the first of reference, answer, solution, reward_model.ground_truth"""
    dataset_column: str = ""
    """empty: dataset or data_source"""
