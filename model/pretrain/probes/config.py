"""Settings of the commands that look at checkpoints of pre-training: probes of the tower and of the experts."""

from dataclasses import dataclass, field

from model.config import Device
from model.json_values import member


@dataclass
class ProbeConfig:
    """Probes of the vision tower (SAIL-VL2 report, tables 6 and 7); docs/probes.md explains the figures."""

    checkpoints: list[str] = field(default_factory=list)
    """folders of models, for example before and after a stage"""
    data: str = ""
    """labelled images: JSONL, Parquet or TSV file, or a folder of Parquet or of `datasets`"""
    test: str = ""
    """labelled images to test on; empty: a share of `data` that the seed chooses"""
    test_share: float = 0.2
    """share of `data` that is held out where no `test` is given"""
    image_column: str = ""
    """column of the image; empty: the first of images, image, image_path"""
    label_column: str = "label"
    """column of the class: a text or an integer"""
    max_bad_rows: float = 0.01
    """rows that may be skipped because they cannot be used: a share of all below 1, a number from 1 on"""
    epochs: int = 10
    """passes of the head over the features (the report's)"""
    learning_rate: float = 1e-3
    """peak learning rate of the head, with a cosine down to 0 (ours)"""
    batch_size: int = 256
    """images of an update of the head, and tiles of a forward pass (ours)"""
    affinity_images: int = 5
    """images whose visual tokens are compared with the embedding table (the report's); 0: no comparison"""
    device: Device = Device.auto
    """where to compute: the GPU if there is one, or what is named"""
    num_threads: int = 2
    """CPU threads inside an operation"""
    seed: int = 0
    """seed of the split, of the head, and of the points that are drawn"""
    output: str = ""
    """JSON file for the figures; empty: none"""

    def __post_init__(self) -> None:
        self.device = member(Device, self.device, "device")
        if not self.checkpoints or not all(self.checkpoints):
            raise ValueError(f"checkpoints: expected at least one folder of a model, found {self.checkpoints}")
        if len({*self.checkpoints}) < len(self.checkpoints):
            raise ValueError(f"checkpoints: expected each folder once, found {self.checkpoints}")
        if not self.data:
            raise ValueError("data: expected a file of labelled images, found nothing")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share: expected a share between 0 and 1, found {self.test_share}")
        if not 0 <= self.max_bad_rows < float("inf"):
            raise ValueError(f"max_bad_rows: expected 0 or more, found {self.max_bad_rows}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate: expected a positive number, found {self.learning_rate}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("affinity_images", 0), ("num_threads", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")


@dataclass
class ExpertLoadConfig:
    """Load and activation entropy of the experts of an MoE (SAIL-VL2 report, section 2.2); docs/probes.md."""

    checkpoint: str = ""
    """folder of a model with experts"""
    text: str = ""
    """documents without images, in the formats and shapes of pre-training rows"""
    multimodal: str = ""
    """documents with images; empty: text alone"""
    mixes: dict[str, dict[str, float]] = field(default_factory=dict)
    """candidate text mixes to choose from, NAME: {FILE: share of the tokens}; shares are divided by their sum"""
    num_rows: int = 256
    """rows of each file, in an order that the seed decides; 0: all"""
    micro_batch_tokens: int = 8192
    """packed tokens of one forward pass"""
    device: Device = Device.auto
    """where to compute: the GPU if there is one, or what is named"""
    num_threads: int = 2
    """CPU threads inside an operation"""
    seed: int = 0
    """seed of the order of the rows"""
    output: str = ""
    """JSON file for the figures; empty: none"""

    def __post_init__(self) -> None:
        self.device = member(Device, self.device, "device")
        if not self.checkpoint:
            raise ValueError("checkpoint: expected the folder of a model with experts, found nothing")
        if not self.text and not self.mixes:
            raise ValueError("text, mixes: expected a file of documents or candidate mixes, found neither")
        for name, shares in self.mixes.items():
            given = shares.values()
            if not all(0 <= share < float("inf") for share in given) or not sum(given):
                raise ValueError(
                    f"mixes.{name}: expected files with shares of 0 or more that are not all 0, found {shares}"
                )
        for name, least in (("num_rows", 0), ("micro_batch_tokens", 1), ("num_threads", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
